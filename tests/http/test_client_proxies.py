"""Which calls of the client go through a proxy that its environment names: those that leave this machine."""

from collections.abc import Iterator

import pytest

from service.client import AsyncClient, Client, Patience
from service.client.wire import past_proxies
from tests.fake_service import FakeService, fake_service, told

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

JOB = {"id": "job_1", "status": "queued"}
ONCE = Patience(total_s=0.0)
FAR = "http://darkroom.example"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    with fake_service() as fake:
        fake.script[f"GET {FAR}/v1/jobs/job_1"] = [told(JOB)]
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, fake.url)
            monkeypatch.setenv(name.lower(), fake.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        yield fake


@pytest.fixture
def near() -> Iterator[FakeService]:
    with fake_service() as fake:
        fake.script["GET /v1/jobs/job_1"] = [told(JOB)]
        yield fake


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
async def test_a_service_on_this_machine_is_asked_directly(proxy: FakeService, near: FakeService, host: str) -> None:
    url = near.url.replace("127.0.0.1", host)
    with Client(url, "token", patience=ONCE) as client:
        assert client.get("job_1")["id"] == "job_1"
    async with AsyncClient(url, "token", patience=ONCE) as client:
        assert (await client.get("job_1"))["id"] == "job_1"
    assert (len(near.asked), len(proxy.asked)) == (2, 0)


async def test_one_elsewhere_is_asked_through_the_proxy(proxy: FakeService) -> None:
    with Client(FAR, "token", patience=ONCE) as client:
        assert client.get("job_1")["id"] == "job_1"
    async with AsyncClient(FAR, "token", patience=ONCE) as client:
        assert (await client.get("job_1"))["id"] == "job_1"
    assert [asked.path for asked in proxy.asked] == [f"{FAR}/v1/jobs/job_1"] * 2


@pytest.mark.parametrize("link_is_near", [True, False])
def test_a_link_into_the_store_goes_by_where_the_store_is(
    proxy: FakeService, near: FakeService, *, link_is_near: bool
) -> None:
    link = f"{near.url if link_is_near else FAR}/images/job_1.png"
    near.script["GET /v1/jobs/job_1/image"] = [told({}, 307, Location=link)]
    for fake, at in ((near, ""), (proxy, FAR)):
        fake.script[f"GET {at}/images/job_1.png"] = [told({"is": "the image"})]
    with Client(near.url, "token", patience=ONCE) as client:
        assert client.image("job_1") == b'{"is": "the image"}'
    assert len(proxy.asked) == (0 if link_is_near else 1)


@pytest.mark.parametrize("host", ["127.8.8.8", "[::1]", "127.0.0.1"])
def test_every_loopback_address_is_this_machine(host: str) -> None:
    assert f"all://{host}" in past_proxies(f"http://{host}:8000")


@pytest.mark.parametrize("url", [FAR, "http://10.0.0.1:8000", "http://127.example:8000", "nonsense", "http://[", ""])
def test_no_other_host_is(url: str) -> None:
    assert past_proxies(url) == past_proxies(FAR)
    assert past_proxies(url).keys() == {"all://localhost", "all://127.0.0.1", "all://[::1]"}
