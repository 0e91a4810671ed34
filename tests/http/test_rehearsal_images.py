"""The rehearsal provider's images: signed, expiring, drawn as asked, or spoilt as told."""

from datetime import datetime
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image

from deploy.rehearsal.gallery import OVERSIZED_BYTES, PRIVATE_URL
from deploy.rehearsal.pictures import Picture, draw
from tests.rehearsal import Rehearsal

pytest_plugins = ["tests.fixtures_rehearsal"]


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def test_an_image_is_what_the_request_and_the_seed_say(rehearsal: Rehearsal) -> None:
    ended = rehearsal.ended("a pier", output_format="png")
    image = rehearsal.http.get(ended["result"]["sample"])
    assert image.headers["content-type"] == "image/png"
    assert image.content == draw(Picture("a pier", ended["result"]["seed"], 256, 256, "png"))


@pytest.mark.parametrize(
    ("model", "asked", "size", "form"),
    [
        ("flux-pro-1.1", {"width": 320, "height": 288}, (320, 288), "JPEG"),
        ("flux-dev", {}, (1024, 768), "JPEG"),
        ("flux-dev", {"output_format": "webp"}, (1024, 768), "WEBP"),
        ("flux-kontext-pro", {}, (1024, 1024), "PNG"),
        ("flux-kontext-max", {"aspect_ratio": "16:9"}, (1360, 768), "PNG"),
        ("flux-pro-1.1-ultra", {"aspect_ratio": "9:21"}, (1344, 3136), "JPEG"),
        ("flux-2-pro", {"width": 0, "height": 640}, (1024, 640), "JPEG"),
        ("a-model-of-tomorrow", {"width": 80, "height": 64}, (80, 64), "JPEG"),
    ],
)
def test_every_family_has_its_sizes(
    rehearsal: Rehearsal, model: str, asked: dict[str, object], size: tuple[int, int], form: str
) -> None:
    image = opened(rehearsal.http.get(rehearsal.sample("x", model=model, **asked)).content)
    assert (image.size, image.format) == (size, form)


def test_an_image_url_says_when_it_expires_and_is_403_from_then_on(rehearsal: Rehearsal) -> None:
    rehearsal.turn(url_life_s=600)
    url = rehearsal.sample()
    expiry = datetime.fromisoformat(parse_qs(urlsplit(url).query)["se"][0]).timestamp()
    assert expiry == int(rehearsal.clock.at) + 600
    rehearsal.clock.at = expiry - 0.1
    assert rehearsal.http.get(url).status_code == 200
    rehearsal.clock.at = expiry
    refused = rehearsal.http.get(url)
    assert (refused.status_code, refused.headers["content-type"]) == (403, "application/xml")
    assert "AuthenticationFailed" in refused.text


@pytest.mark.parametrize(("fresh", "status"), [(1, 200), (0, 403)])
def test_asking_again_may_give_a_fresh_url(rehearsal: Rehearsal, fresh: int, status: int) -> None:
    rehearsal.turn(fresh_url=fresh)
    task = rehearsal.submit()
    rehearsal.finish()
    rehearsal.clock.at += 3600
    again = rehearsal.poll(task).json()["result"]["sample"]
    assert rehearsal.http.get(again).status_code == status


@pytest.mark.parametrize(
    ("old", "new"), [("sig=", "sig=x"), ("se=2", "se=3"), ("&sig=", "&gis="), ("sample.", "other.")]
)
def test_a_changed_url_is_403(rehearsal: Rehearsal, old: str, new: str) -> None:
    assert rehearsal.http.get(rehearsal.sample().replace(old, new, 1)).status_code == 403


def test_an_expired_url_can_be_told(rehearsal: Rehearsal) -> None:
    assert rehearsal.http.get(rehearsal.sample("[expired]")).status_code == 403


def test_an_image_of_nobody_is_404(rehearsal: Rehearsal) -> None:
    assert rehearsal.http.get("/delivery/nobody/sample.png").status_code == 404


def test_a_cut_image_promises_more_than_it_sends(rehearsal: Rehearsal) -> None:
    with rehearsal.http.stream("GET", rehearsal.sample("[truncated]")) as image:
        with pytest.raises(httpx.RemoteProtocolError):
            image.read()
        assert 0 < image.num_bytes_downloaded < int(image.headers["content-length"])


def test_an_html_page_is_labelled_as_an_image(rehearsal: Rehearsal) -> None:
    page = rehearsal.http.get(rehearsal.sample("[html]"))
    assert page.headers["content-type"].startswith("image/jpeg")
    assert page.text.startswith("<!doctype html>")


def test_an_oversized_image_promises_5_gb_or_never_ends(rehearsal: Rehearsal) -> None:
    promises = set()
    for _ in range(8):
        with rehearsal.http.stream("GET", rehearsal.sample("[oversized]")) as image:
            promises.add(image.headers.get("content-length"))
            read = 0
            for chunk in image.iter_raw():
                read += len(chunk)
                if read > 4 * 1024 * 1024:
                    break
    assert promises == {str(OVERSIZED_BYTES), None}


def test_a_wrong_size_is_an_image_of_another_size(rehearsal: Rehearsal) -> None:
    assert opened(rehearsal.http.get(rehearsal.sample("[wrong-size]")).content).size != (256, 256)


def test_a_dripping_image_gives_its_first_byte(rehearsal: Rehearsal) -> None:
    with rehearsal.http.stream("GET", rehearsal.sample("[drip]")) as image:
        assert len(next(image.iter_raw())) == 1


def test_an_image_may_lead_to_a_private_address(rehearsal: Rehearsal) -> None:
    assert rehearsal.sample("[private-url]") == PRIVATE_URL
    assert rehearsal.http.get(rehearsal.sample("[redirect]")).headers["location"] == PRIVATE_URL


def test_an_image_fault_may_pass(rehearsal: Rehearsal) -> None:
    rehearsal.turn(image_fault_times=2)
    url = rehearsal.sample("[html]")
    kinds = [rehearsal.http.get(url).content[:2] for _ in range(3)]
    assert kinds == [b"<!", b"<!", b"\xff\xd8"]
