"""OpenAI's images API over a real socket: which requests are one, and what a client is told when images are missing."""

import asyncio
import gc
from typing import Any

import httpx
import pytest

from service.domain import events, layout
from service.domain.job import Image
from service.storage.desk import Desk
from tests.serving import Serving, move, person

pytest_plugins = ["tests.fixtures_web"]
pytestmark = [pytest.mark.anyio, pytest.mark.processes]

PATH = "/v1/images/generations"
WISH = {"prompt": "a heron", "model": "flux-dev"}
WITHIN_S = 15.0


async def ordered(client: httpx.AsyncClient, count: int) -> list[dict[str, Any]]:
    """The caller's jobs, oldest first, once there are so many."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            jobs: list[dict[str, Any]] = (await client.get("/v1/jobs")).json()["jobs"]
            if len(jobs) == count:
                return jobs[::-1]
            await asyncio.sleep(0)


async def made(desk: Desk, job_id: str) -> None:
    """It ends with an image, as far as its record says."""
    image = Image("nowhere", layout.image_key(job_id, "png"), "00" * 32, 3, 1, 1, "image/png", 7)
    task = f"task-{job_id}"
    await move(
        desk,
        job_id,
        events.Intended(attempt=1, delay_s=60),
        events.Ready(attempt=1, provider_id=task, url="https://delivery.bfl.ai/x", seed=7),
        events.Sealed(image=image),
        events.SidecarWritten(),
    )


async def moderated(desk: Desk, job_id: str) -> None:
    await move(
        desk,
        job_id,
        events.Intended(attempt=1, delay_s=60),
        events.Moderated(attempt=1, detail="violence"),
    )


async def asked(client: httpx.AsyncClient, *, key: str = "", again: int = 0, **more: Any) -> httpx.Response:
    headers = {"x-stainless-retry-count": str(again)} | ({"Idempotency-Key": key} if key else {})
    return await client.post(PATH, json=WISH | more, headers=headers)


async def test_of_several_images_those_that_came_are_given_and_the_others_named(
    alice: httpx.AsyncClient, desk: Desk
) -> None:
    asking = asyncio.create_task(asked(alice, n=3, seed=5))
    first, second, third = await ordered(alice, 3)
    assert [job["request"]["seed"] for job in (first, second, third)] == [5, 6, 7]
    await made(desk, first["id"])
    await moderated(desk, second["id"])
    await made(desk, third["id"])
    told = (await asking).json()
    assert [link["url"].partition("?")[0].rpartition("/")[2] for link in told["data"]] == [
        f"{first['id']}.png",
        f"{third['id']}.png",
    ]
    assert [(error["index"], error["code"]) for error in told["errors"]] == [(1, "moderation_blocked")]


async def test_where_none_came_the_error_says_that_another_try_is_of_no_use(
    alice: httpx.AsyncClient, desk: Desk
) -> None:
    asking = asyncio.create_task(asked(alice, n=2))
    for job in await ordered(alice, 2):
        await moderated(desk, job["id"])
    answer = await asking
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    assert answer.json()["error"]["code"] == "moderation_blocked"


async def test_a_client_with_a_key_of_its_own_is_taken_at_its_word(alice: httpx.AsyncClient, desk: Desk) -> None:
    both = [asyncio.create_task(asked(alice, key="mine")) for _ in range(2)]
    [job] = await ordered(alice, 1)
    await made(desk, job["id"])
    for asking in both:
        assert job["id"] in (await asking).json()["data"][0]["url"]
    other = await asked(alice, key="mine", prompt="a cat")
    assert (other.status_code, other.headers["x-should-retry"]) == (409, "false")
    assert other.json()["error"]["code"] == "idempotency_conflict"
    assert len(await ordered(alice, 1)) == 1


async def test_a_try_that_says_so_is_answered_by_what_it_began(alice: httpx.AsyncClient, desk: Desk) -> None:
    first = asyncio.create_task(asked(alice))
    [job] = await ordered(alice, 1)
    second = asyncio.create_task(asked(alice, again=1))
    await made(desk, job["id"])
    for asking in (first, second):
        assert job["id"] in (await asking).json()["data"][0]["url"]
    assert len(await ordered(alice, 1)) == 1


async def test_the_same_wish_at_the_same_time_is_one_of_its_own(alice: httpx.AsyncClient, desk: Desk) -> None:
    asking = [asyncio.create_task(asked(alice)) for _ in range(2)]
    jobs = await ordered(alice, 2)
    for job in jobs:
        await made(desk, job["id"])
    links = "".join([(await each).json()["data"][0]["url"] for each in asking])
    assert all(job["id"] in links for job in jobs)


async def test_an_answer_that_was_lost_on_its_way_is_given_again(alice: httpx.AsyncClient, desk: Desk) -> None:
    asking = asyncio.create_task(asked(alice))
    [job] = await ordered(alice, 1)
    await made(desk, job["id"])
    await asking
    assert job["id"] in (await asked(alice, again=1)).json()["data"][0]["url"]
    assert len(await ordered(alice, 1)) == 1


async def test_what_was_deleted_before_it_was_given_is_told_once_and_then_wished_anew(
    alice: httpx.AsyncClient, desk: Desk
) -> None:
    asking = asyncio.create_task(asked(alice))
    [job] = await ordered(alice, 1)
    asking.cancel()
    await asyncio.wait([asking])
    await made(desk, job["id"])
    assert (await alice.delete(f"/v1/jobs/{job['id']}")).status_code == 204
    gone = await asked(alice, again=1)
    assert (gone.status_code, gone.headers["x-should-retry"]) == (404, "false")
    asking = asyncio.create_task(asked(alice))
    [fresh] = await ordered(alice, 1)
    await made(desk, fresh["id"])
    assert fresh["id"] in (await asking).json()["data"][0]["url"]


async def test_a_client_that_goes_leaves_nothing_in_the_log(
    alice: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    asking = asyncio.create_task(asked(alice, n=2))
    await ordered(alice, 2)
    asking.cancel()
    await asyncio.wait([asking])
    again = asyncio.create_task(asked(alice, n=2, again=1))
    for job in await ordered(alice, 2):
        assert (await alice.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 200
    assert (await again).json()["error"]["code"] == "cancelled"
    gc.collect()  # a future that nobody looked at complains when it goes
    assert caplog.records == []


async def test_another_caller_who_asks_the_same_gets_an_image_of_its_own(
    web: Serving, alice: httpx.AsyncClient, desk: Desk
) -> None:
    mine = asyncio.create_task(asked(alice))
    [job] = await ordered(alice, 1)
    async with person("bob", web.url) as bob:
        theirs = asyncio.create_task(asked(bob, again=1))
        [other] = await ordered(bob, 1)
        for job_id in (job["id"], other["id"]):
            await made(desk, job_id)
        assert other["id"] in (await theirs).json()["data"][0]["url"]
    assert job["id"] in (await mine).json()["data"][0]["url"]


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"model": "gpt-image-1"}, "model", "model_not_found"),
        ({"size": "1792x1024"}, "size", "invalid_request"),
        ({"raw": True}, "raw", "invalid_request"),
        ({"output_format": "gif"}, "output_format", "invalid_request"),
        ({"webhook_url": "https://example.com"}, "webhook_url", "invalid_request"),
    ],
)
async def test_a_mistake_names_the_field_that_the_client_sent(
    alice: httpx.AsyncClient, more: dict[str, Any], param: str, code: str
) -> None:
    answer = await asked(alice, **more)
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["x-should-retry"]) == (400, "false")
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    if param == "model":
        assert "flux-pro-1.1" in error["message"]


@pytest.mark.parametrize("path", [PATH, "/flux/v1/flux-dev"])
async def test_a_mistake_with_half_a_character_in_it_is_still_told(alice: httpx.AsyncClient, path: str) -> None:
    body = b'{"prompt": "a heron", "\\ud800": 1}'
    answer = await alice.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    told = answer.json()
    if path == PATH:
        assert (told["error"]["param"], told["error"]["message"]) == (None, "Has a name that is not Unicode text")
    else:
        assert told["detail"][0]["loc"] == ["body"]
