"""Pulling an image, from servers on loopback that do what servers should not."""

import asyncio
import contextlib
import datetime as dt
import gzip
import hashlib
import ipaddress
import logging
import os
import random
import resource
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import httpcore
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.domain.addresses import HostList
from workers.download import (
    DEFAULT_LIMITS,
    Download,
    DownloadFailure,
    FailureKind,
    Limits,
    download,
    sweep_leftovers,
)
from workers.network import AddressRefused, GuardedBackend, Shards, Timeouts

pytestmark = pytest.mark.anyio

KIB = 1024
TLS = httpx.create_ssl_context(trust_env=False)  # 30 ms to make
IMAGE = random.Random(1).randbytes(300 * KIB)
CANARY = "canary-signature"
SMALL = Limits(max_bytes=512 * KIB)
HASTY = Limits(max_bytes=512 * KIB, rate_window_s=0.2)
PUBLIC = "93.184.215.14"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class FarSide:
    """A listener on loopback that reads one request a connection and then does what it is told."""

    def __init__(self, answer: Answer | bytes) -> None:
        self._answer = answer
        self._talks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0
        self.heads: list[bytes] = []
        self.asked = asyncio.Semaphore(0)  # released once for each request

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                self.asked.release()
                if not isinstance(self._answer, bytes):
                    await self._answer(writer)
                    break
                writer.write(self._answer)
                await writer.drain()
                if b"connection: close" in self.heads[-1].lower():
                    break
        writer.close()
        self._talks.discard(task)

    async def stop(self) -> None:
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)


@contextlib.asynccontextmanager
async def far_side(answer: Answer | bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[FarSide]:
    side = FarSide(answer)
    server = await asyncio.start_server(side.talk, "127.0.0.1", 0, ssl=tls)
    side.port = server.sockets[0].getsockname()[1]
    try:
        yield side
    finally:
        server.close()
        await side.stop()
        await server.wait_closed()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(headers or (f"Content-Length: {len(body)}",)), "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + end


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def listed(port: int) -> HostList:
    return HostList.parse(f"127.0.0.1:{port}")


async def pull(side: FarSide, directory: Path, limits: Limits = SMALL) -> Download | DownloadFailure:
    hosts = listed(side.port)
    async with Shards(connections=2, backend=GuardedBackend(hosts.private_ok), tls=TLS) as shards:
        url = f"http://127.0.0.1:{side.port}/results/a%2Fb.png?sig={CANARY}%3D"
        return await download(url, shards=shards, hosts=hosts, directory=directory, limits=limits)


async def failure(side_answer: Answer | bytes, directory: Path, limits: Limits = SMALL) -> tuple[FailureKind, str]:
    """Pull, expect no image, and look that nothing is left."""
    async with far_side(side_answer) as side:
        found = await pull(side, directory, limits)
    assert isinstance(found, DownloadFailure)
    assert files(directory) == []
    assert CANARY not in found.detail
    return found.kind, found.detail


# What is pulled


@pytest.mark.parametrize(
    "whole",
    [
        answer(IMAGE),
        answer(chunked(IMAGE[:7], IMAGE[7:]), "Transfer-Encoding: chunked"),
        answer(IMAGE, "Content-Type: text/html", "Connection: close"),
        answer(IMAGE, f"Content-Length: {len(IMAGE)}", "Content-Encoding: identity"),
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(IMAGE),
        b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE,
    ],
    ids=["length", "chunked", "until close", "identity", "early hints", "http/1.0"],
)
async def test_an_image_is_pulled_byte_for_byte_and_hashed(whole: bytes, tmp_path: Path) -> None:
    async with far_side(whole) as side:
        found = await pull(side, tmp_path)
    assert isinstance(found, Download)
    assert found.path.read_bytes() == IMAGE
    assert (found.bytes, found.sha256) == (len(IMAGE), hashlib.sha256(IMAGE).hexdigest())
    assert files(tmp_path) == [found.path]


async def test_the_signed_path_and_query_are_sent_unchanged_and_no_encoding_is_offered(tmp_path: Path) -> None:
    async with far_side(answer(IMAGE)) as side:
        await pull(side, tmp_path)
    request, *headers = side.heads[0].decode().lower().split("\r\n")
    assert request == f"get /results/a%2fb.png?sig={CANARY}%3d http/1.1"
    assert {"accept-encoding: identity", "connection: close", f"host: 127.0.0.1:{side.port}"} <= set(headers)


async def test_bytes_left_over_by_one_answer_are_not_the_next_image(tmp_path: Path) -> None:
    other = answer(b"another job's image")
    answers = iter([answer(b"first") + other, answer(b"second")])

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(next(answers))
        await writer.drain()

    async with far_side(reply) as side:
        hosts = listed(side.port)
        async with Shards(connections=1, backend=GuardedBackend(hosts.private_ok)) as shards:
            url = f"http://127.0.0.1:{side.port}/"
            found = [await download(url, shards=shards, hosts=hosts, directory=tmp_path) for _ in range(2)]
    assert [each.path.read_bytes() for each in found if isinstance(each, Download)] == [b"first", b"second"]


async def test_the_signature_reaches_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with far_side(answer(IMAGE)) as side:
        await pull(side, tmp_path)
    assert "127.0.0.1" in caplog.text
    assert CANARY not in caplog.text


# What is not


@pytest.mark.parametrize("status", ["403 Forbidden", "404 Not Found", "410 Gone"])
async def test_an_expired_url_is_told_apart(status: str, tmp_path: Path) -> None:
    kind, detail = await failure(answer(b"<Error/>", status=status), tmp_path)
    assert (kind, detail) == (FailureKind.EXPIRED, f"status {status[:3]}")


@pytest.mark.parametrize(
    "status", ["201 Created", "204 No Content", "206 Partial", "401 Who", "429 Slow", "500 x", "503 x"]
)
async def test_any_other_status_may_be_tried_again(status: str, tmp_path: Path) -> None:
    kind, detail = await failure(answer(b"", status=status), tmp_path)
    assert (kind, detail) == (FailureKind.UNAVAILABLE, f"status {status[:3]}")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_redirect_is_refused_and_its_target_never_dialled(status: str, scheme: str, tmp_path: Path) -> None:
    async with far_side(b"") as sink:
        location = f"Location: {scheme}://127.0.0.1:{sink.port}/"
        kind, _ = await failure(answer(b"", location, "Content-Length: 0", status=status), tmp_path)
        assert (kind, sink.connections) == (FailureKind.REFUSED, 0)


@pytest.mark.parametrize("place", ["mailto:x", "https:login", "foo:bar", "http://xn--a/"])
async def test_where_a_redirect_leads_is_not_read(place: str, tmp_path: Path) -> None:
    away = answer(b"", f"Location: {place}", "Content-Length: 0", status="302 Found")
    assert await failure(away, tmp_path) == (FailureKind.REFUSED, "redirect, status 302")


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "identity, gzip"])
async def test_a_compressed_answer_is_refused_unread(encoding: str, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    found = await failure(answer(bomb, f"Content-Encoding: {encoding}", f"Content-Length: {len(bomb)}"), tmp_path)
    assert found == (FailureKind.REFUSED, "compressed")


async def test_an_announced_size_over_the_cap_is_refused_unread(tmp_path: Path) -> None:
    kind, detail = await failure(answer(b"", f"Content-Length: {5 * 10**9}"), tmp_path)
    assert (kind, detail) == (FailureKind.TOO_LARGE, f"announced more than {SMALL.max_bytes} bytes")


async def test_one_byte_over_the_cap_is_too_large_and_the_cap_itself_is_not(tmp_path: Path) -> None:
    cap = Limits(max_bytes=len(IMAGE))
    async with far_side(answer(IMAGE, "Connection: close")) as side:
        found = await pull(side, tmp_path, cap)
    assert isinstance(found, Download)
    found.path.unlink()
    assert (await failure(answer(IMAGE + b"!", "Connection: close"), tmp_path, cap))[0] is FailureKind.TOO_LARGE


async def test_an_endless_answer_stops_at_the_cap_in_little_memory_and_disk(tmp_path: Path) -> None:
    sent_bytes = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(answer(b"", "Transfer-Encoding: chunked"))
        while True:
            writer.write(chunked(IMAGE, end=b""))
            await writer.drain()
            sent_bytes += len(IMAGE)

    tracemalloc.start()
    try:
        kind, _ = await failure(endless, tmp_path, DEFAULT_LIMITS)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kind is FailureKind.TOO_LARGE
    assert sent_bytes < DEFAULT_LIMITS.max_bytes + 16 * KIB * KIB  # what the kernel's buffers took besides
    assert peak_bytes < 8 * KIB * KIB


@pytest.mark.parametrize(
    "cut",
    [
        answer(IMAGE, f"Content-Length: {len(IMAGE) + 1}"),
        answer(b"", "Content-Length: 1"),
        answer(chunked(IMAGE, end=b""), "Transfer-Encoding: chunked"),
        answer(chunked(IMAGE)[:-9], "Transfer-Encoding: chunked"),
        answer(chunked(IMAGE, end=b"0\r\n"), "Transfer-Encoding: chunked"),
        answer(chunked(IMAGE, end=b"no number\r\n"), "Transfer-Encoding: chunked"),
    ],
    ids=["one byte short", "no byte", "no last chunk", "half a chunk", "half an end", "broken chunk"],
)
async def test_an_answer_cut_short_is_truncated(cut: bytes, tmp_path: Path) -> None:
    assert (await failure(cut, tmp_path))[0] is FailureKind.TRUNCATED


@pytest.mark.parametrize("cut_at", [0, 5, 17, 30])
async def test_an_answer_cut_in_its_head_is_unavailable(cut_at: int, tmp_path: Path) -> None:
    assert (await failure(answer(IMAGE)[:cut_at], tmp_path))[0] is FailureKind.UNAVAILABLE


async def test_a_reset_in_the_body_is_unavailable(tmp_path: Path) -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(IMAGE, "Content-Length: 400000"))
        await writer.drain()
        writer.transport.abort()

    assert (await failure(reset, tmp_path))[0] in {FailureKind.UNAVAILABLE, FailureKind.TRUNCATED}


async def hang(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def hang_after_the_head(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(b"", "Content-Length: 1000"))
    await hang(writer)


async def hang_before_the_end(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(IMAGE, f"Content-Length: {len(IMAGE) + 1}"))
    await hang(writer)


def drip(head: bytes, drop: bytes) -> Answer:
    async def write_for_ever(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.01)  # the drip itself

    return write_for_ever


DRIPS = {
    "hang": hang,
    "hang after the head": hang_after_the_head,
    "hang before the end": hang_before_the_end,
    "drip": drip(answer(b"", "Content-Length: 100000"), b"."),
    "drip in chunks": drip(answer(b"", "Transfer-Encoding: chunked"), chunked(b".", end=b"")),
    "drip in the head": drip(b"HTTP/1.1 200 OK\r\nX: ", b"."),
    "endless early hints": drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
}


@pytest.mark.parametrize("name", DRIPS)
async def test_whoever_is_below_the_minimum_rate_is_left(name: str, tmp_path: Path) -> None:
    found = await failure(DRIPS[name], tmp_path, HASTY)
    assert found == (FailureKind.UNAVAILABLE, "below the minimum rate")


async def test_a_steady_stream_ends_at_the_deadline(tmp_path: Path) -> None:
    limits = Limits(deadline_s=0.5, min_rate_bytes_per_s=1, rate_window_s=5)
    found = await failure(drip(answer(b"", "Content-Length: 1000000"), b"...."), tmp_path, limits)
    assert found == (FailureKind.UNAVAILABLE, "not done in 0.5 s")


def test_by_default_a_drip_lives_fifteen_seconds_at_most() -> None:
    assert 2 * DEFAULT_LIMITS.rate_window_s <= 15


async def test_a_head_without_end_is_unavailable(tmp_path: Path) -> None:
    assert (await failure(answer(b"", "X: " + "a" * 300_000), tmp_path))[0] is FailureKind.UNAVAILABLE


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    async with far_side(b"") as side:
        pass
    found = await pull(side, tmp_path)
    assert found == DownloadFailure(FailureKind.UNAVAILABLE, "ConnectError")


async def test_no_garbage_raises(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    whole = answer(chunked(IMAGE[:2000]), "Transfer-Encoding: chunked", "X: y") + answer(IMAGE[:99])

    async def garbage(writer: asyncio.StreamWriter) -> None:
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 20)):
            damaged[int(len(damaged) * dice.random() ** 3)] = dice.randrange(256)
        writer.write(damaged[: dice.randrange(len(damaged))])
        await writer.drain()

    async with far_side(garbage) as side:
        for _ in range(200):
            assert isinstance(await pull(side, tmp_path, HASTY), Download | DownloadFailure)


# Who is dialled


class Recorder(httpcore.AsyncNetworkBackend):
    """Notes every dial, and lets loopback through alone: a test stays on this machine."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: object = None,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append(host)
        if not ipaddress.ip_address(host).is_loopback:
            raise httpcore.ConnectError("not on this machine")
        return await httpcore.AnyIOBackend().connect_tcp(host, port, timeout, local_address)


class Names:
    """A resolver whose answers are told beforehand, one after the other; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def test_a_name_that_flips_to_loopback_is_never_dialled_there(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    flips = [dice.choice([[PUBLIC], ["127.0.0.1"], [PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC]]) for _ in range(1000)]
    names, recorder = Names(*flips), Recorder()
    async with far_side(answer(IMAGE)) as sink:
        hosts = HostList.parse(f"*.bfl.ai:{sink.port}")
        backend = GuardedBackend(hosts.private_ok, resolve=names, inner=recorder)
        async with Shards(connections=8, backend=backend) as shards:
            url = f"https://delivery.bfl.ai:{sink.port}/"
            found = [await download(url, shards=shards, hosts=hosts, directory=tmp_path) for _ in flips]
        assert sink.connections == 0
    kinds = [each.kind for each in found if isinstance(each, DownloadFailure)]
    assert kinds == [FailureKind.UNAVAILABLE if flip == [PUBLIC] else FailureKind.REFUSED for flip in flips]
    assert set(recorder.dialled) == {PUBLIC}
    assert names.asked == len(flips)  # asked once each: what was judged is what was dialled


INSIDE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1",
          "2002:7f00:1::", "fd00:ec2::254", "fe80::1%lo", "0.0.0.0", "::"]  # fmt: skip  # noqa: S104 - nothing is bound


@pytest.mark.parametrize("address", INSIDE)
@pytest.mark.parametrize("beside", [[], [PUBLIC]])
async def test_a_name_with_any_address_inside_is_refused(address: str, beside: list[str], tmp_path: Path) -> None:
    hosts, recorder = HostList.parse("*.bfl.ai"), Recorder()
    backend = GuardedBackend(hosts.private_ok, resolve=Names([*beside, address]), inner=recorder)
    async with Shards(connections=1, backend=backend) as shards:
        found = await download("https://a.bfl.ai/?x", shards=shards, hosts=hosts, directory=tmp_path)
    assert isinstance(found, DownloadFailure)
    assert (found.kind, recorder.dialled) == (FailureKind.REFUSED, [])
    assert "a.bfl.ai has an address that is not public" in found.detail


async def test_a_refused_url_is_never_resolved(tmp_path: Path) -> None:
    names = Names(["127.0.0.1"])
    hosts = HostList.parse("*.bfl.ai")
    async with Shards(connections=1, backend=GuardedBackend(hosts.private_ok, resolve=names)) as shards:
        found = await download("https://evil.com/?x", shards=shards, hosts=hosts, directory=tmp_path)
    assert found == DownloadFailure(FailureKind.REFUSED, "host_not_listed")
    assert names.asked == 0


async def test_a_listed_private_host_is_dialled_at_the_first_address_that_answers(tmp_path: Path) -> None:
    async with far_side(answer(IMAGE)) as side:
        hosts, recorder = HostList.parse(f"rehearsal:{side.port}"), Recorder()
        backend = GuardedBackend(hosts.private_ok, resolve=Names(["10.0.0.9", "127.0.0.1"]), inner=recorder)
        async with Shards(connections=1, backend=backend) as shards:
            url = f"http://rehearsal:{side.port}/"
            found = await download(url, shards=shards, hosts=hosts, directory=tmp_path)
    assert isinstance(found, Download)
    assert recorder.dialled == ["10.0.0.9", "127.0.0.1"]


@pytest.mark.parametrize("error", [OSError("no such host"), UnicodeError("label too long")])
async def test_a_name_that_does_not_resolve_is_unavailable(error: Exception, tmp_path: Path) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise error

    await expect_unavailable(unknown, tmp_path)


async def test_a_name_without_addresses_is_unavailable(tmp_path: Path) -> None:
    await expect_unavailable(Names([]), tmp_path)


async def test_a_resolver_that_hangs_is_unavailable(tmp_path: Path) -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    assert await expect_unavailable(silent, tmp_path) == "ConnectTimeout"


async def expect_unavailable(names: Callable[[str, int], Awaitable[Sequence[str]]], directory: Path) -> str:
    hosts = HostList.parse("*.bfl.ai")
    backend = GuardedBackend(hosts.private_ok, resolve=names, inner=Recorder())
    async with Shards(connections=1, backend=backend, timeouts=Timeouts(connect_s=0.1)) as shards:
        found = await download("https://a.bfl.ai/", shards=shards, hosts=hosts, directory=directory)
    assert isinstance(found, DownloadFailure)
    assert found.kind is FailureKind.UNAVAILABLE
    return found.detail


async def test_proxies_named_in_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with far_side(answer(b"proxied")) as sink, far_side(answer(IMAGE)) as side:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{sink.port}")
        found = await pull(side, tmp_path)
        assert isinstance(found, Download)
        assert (found.bytes, sink.connections) == (len(IMAGE), 0)


# TLS


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a certificate for delivery.example: the server's context, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "delivery.example")])
    begin = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=36_500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("delivery.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path_factory.mktemp("tls") / "delivery.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


async def pull_by_tls(
    side: FarSide, name: str, trust: ssl.SSLContext | None, directory: Path
) -> Download | DownloadFailure:
    hosts = HostList.parse(f"{name}:{side.port}")
    backend = GuardedBackend(hosts.private_ok, resolve=Names(["127.0.0.1"]))
    async with Shards(connections=1, backend=backend, tls=trust) as shards:
        return await download(f"https://{name}:{side.port}/", shards=shards, hosts=hosts, directory=directory)


async def test_the_certificate_is_verified_against_the_name_not_the_address(
    certified: tuple[ssl.SSLContext, ssl.SSLContext], tmp_path: Path
) -> None:
    server, trust = certified
    async with far_side(answer(IMAGE), server) as side:
        assert isinstance(await pull_by_tls(side, "delivery.example", trust, tmp_path), Download)
        wrong_name = await pull_by_tls(side, "other.example", trust, tmp_path)
        unknown_issuer = await pull_by_tls(side, "delivery.example", None, tmp_path)
        assert len(side.heads) == 1
    assert wrong_name == unknown_issuer == DownloadFailure(FailureKind.UNAVAILABLE, "ConnectError")


async def test_tls_that_breaks_in_the_body_is_no_error_of_ours(
    certified: tuple[ssl.SSLContext, ssl.SSLContext], tmp_path: Path
) -> None:
    server, trust = certified

    async def break_records(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(IMAGE[:1000], "Content-Length: 2000"))
        await writer.drain()
        os.write(writer.get_extra_info("socket").fileno(), b"this is no TLS record, and never was one")

    async with far_side(break_records, server) as side:
        found = await pull_by_tls(side, "delivery.example", trust, tmp_path)
    assert isinstance(found, DownloadFailure)
    assert found.kind is FailureKind.UNAVAILABLE


# What is left behind


@pytest.mark.parametrize("stuck", [hang, hang_after_the_head, hang_before_the_end])
async def test_a_cancelled_pull_leaves_no_file_and_gives_its_connection_back(stuck: Answer, tmp_path: Path) -> None:
    async with far_side(stuck) as side, far_side(answer(IMAGE)) as good:
        hosts = HostList.parse(f"127.0.0.1:{side.port},127.0.0.1:{good.port}")
        async with Shards(connections=1, backend=GuardedBackend(hosts.private_ok)) as shards:
            for _ in range(10):
                url = f"http://127.0.0.1:{side.port}/"
                task = asyncio.create_task(download(url, shards=shards, hosts=hosts, directory=tmp_path))
                await side.asked.acquire()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert files(tmp_path) == []
            url = f"http://127.0.0.1:{good.port}/"
            assert isinstance(await download(url, shards=shards, hosts=hosts, directory=tmp_path), Download)


async def test_a_missing_directory_is_our_own_fault(tmp_path: Path) -> None:
    async with far_side(answer(IMAGE)) as side:
        found = await pull(side, tmp_path / "gone")
    assert found == DownloadFailure(FailureKind.LOCAL, "disk: No such file or directory")


@contextlib.contextmanager
def files_of_at_most(limit_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_takes_no_more_is_our_own_fault_and_is_left_clean(tmp_path: Path) -> None:
    with files_of_at_most(64 * KIB):
        kind, detail = await failure(answer(IMAGE), tmp_path)
    assert (kind, detail) == (FailureKind.LOCAL, "disk: File too large")


async def test_no_free_connection_is_our_own_fault(tmp_path: Path) -> None:
    async with far_side(hang) as side:
        hosts = listed(side.port)
        timeouts = Timeouts(pool_s=0.05)
        async with Shards(connections=1, backend=GuardedBackend(hosts.private_ok), timeouts=timeouts) as shards:
            url = f"http://127.0.0.1:{side.port}/"
            first = asyncio.create_task(download(url, shards=shards, hosts=hosts, directory=tmp_path))
            await side.asked.acquire()
            second = await download(url, shards=shards, hosts=hosts, directory=tmp_path)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
    assert second == DownloadFailure(FailureKind.LOCAL, "no free connection")


def test_leftovers_are_swept_once_they_are_old_and_nothing_else_is(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / name for name in ("pull-old.part", "pull-fresh.part", "spooled.png"))
    for path in (old, fresh, other):
        path.write_bytes(IMAGE)
    for path in (old, other):
        os.utime(path, (0, 0))
    assert sweep_leftovers(tmp_path) == 1
    assert files(tmp_path) == [fresh, other]
    assert sweep_leftovers(tmp_path, stale_after_s=0) == 1


def test_sweeping_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sweep_leftovers(tmp_path / "gone")


# Shards


async def test_requests_fill_one_shard_before_the_next_and_share_what_is_free(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def wait(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(b"done"))
        await writer.drain()

    async with (
        far_side(wait) as side,
        Shards(connections=17, backend=httpcore.AnyIOBackend()) as shards,
    ):
        used: list[httpx.AsyncClient] = []

        async def ask() -> int:
            used.append(client := shards.client())
            return (await client.get(f"http://127.0.0.1:{side.port}/")).status_code

        asking = [asyncio.create_task(ask()) for _ in range(17)]
        for _ in asking:
            await side.asked.acquire()
        release.set()
        assert await asyncio.gather(*asking) == [200] * len(asking)
    assert [used.count(each) for each in dict.fromkeys(used)] == [8, 8, 1]


async def test_an_open_connection_is_used_again() -> None:
    async with far_side(answer(b"x")) as side, Shards(connections=32, backend=httpcore.AnyIOBackend()) as shards:
        for _ in range(5):
            await shards.client().get(f"http://127.0.0.1:{side.port}/")
        assert side.connections == 1


async def test_no_client_follows_a_redirect() -> None:
    async with far_side(b"") as sink:
        moved = answer(b"", f"Location: http://127.0.0.1:{sink.port}/", "Content-Length: 0", status="307 Moved")
        async with far_side(moved) as side, Shards(connections=1, backend=httpcore.AnyIOBackend()) as shards:
            response = await shards.client().post(f"http://127.0.0.1:{side.port}/")
        assert (response.status_code, sink.connections) == (307, 0)


async def test_cookies_are_not_kept() -> None:
    kept = answer(b"x", "Content-Length: 1", "Set-Cookie: id=1; Path=/")
    async with far_side(kept) as side, Shards(connections=1, backend=httpcore.AnyIOBackend()) as shards:
        for _ in range(2):
            await shards.client().get(f"http://127.0.0.1:{side.port}/")
    assert b"cookie" not in side.heads[1].lower()


async def test_a_refused_address_is_an_httpx_error_to_every_client() -> None:
    backend = GuardedBackend(lambda host, port: False, resolve=Names(["127.0.0.1"]))
    async with Shards(connections=1, backend=backend) as shards:
        with pytest.raises(AddressRefused) as refused:
            await shards.client().post("https://hooks.example/")
    assert isinstance(refused.value, httpx.ConnectError)
