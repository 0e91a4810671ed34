"""Each safety mechanism is taken out in a copy of the tree, and a test must turn red: a proof of the proofs."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

ROOT: Final = Path(__file__).parents[2]
TEST_S: Final = 500
FAILED: Final = 1  # pytest's exit code for "tests ran, and some failed"; 2 to 5 are mistakes of the run itself


@dataclass(frozen=True)
class Mechanism:
    """`there` stands exactly once in `file`; without the mechanism it is `gone`; `test` must see it."""

    name: str
    file: str
    there: str
    gone: str
    test: str


MECHANISMS: Final = (
    Mechanism(
        "fence",
        "service/storage/lua/jobs.lua",
        "if r[1] ~= a.version then return {'stale', int(now), {}} end",
        "",
        "tests/contract/test_store_machine.py",
    ),
    Mechanism(
        "event ids",
        "service/storage/lua/jobs.lua",
        "if string.find(seen, a.event_id, 1, true) then",
        "if false then",
        "tests/contract/test_store_machine.py",
    ),
    Mechanism(
        "due index",
        "service/storage/lua/jobs.lua",
        "  call('ZADD', P .. 'due', int(at), 'job:' .. id)\n",
        "",
        "tests/contract/test_store_machine.py",
    ),
    Mechanism(
        "one owner of a provider task",
        "service/storage/lua/jobs.lua",
        "if owner and owner ~= a.id then return {'taken', int(now), {}} end",
        "",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "cap",
        "service/storage/lua/jobs.lua",
        "return free <= 0 or (priority ~= 'high' and free <= kept)",
        "return false",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "checksum of a record",
        "service/storage/record.py",
        'if flat.get("sum") != checksum(flat):',
        "if False:",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "unknown-outcome rule",
        "workers/submit.py",
        'return events.OutcomeUnknown(attempt=attempt, detail=getattr(answer, "detail", "no task id"))',
        'return events.Refused(attempt=attempt, detail="", delay_s=0.0)',
        "tests/integration/test_submit.py",
    ),
    Mechanism(
        "intent before the POST",
        "workers/submit.py",
        "        if intended is None:\n            return\n        if lease.holds():",
        "        if lease.holds():",
        "tests/integration/test_submit.py",
    ),
    Mechanism(
        "put once",
        "service/storage/bucket.py",
        'once: dict[str, Any] = {"IfNoneMatch": "*"}',
        "once: dict[str, Any] = {}",
        "tests/contract/test_bucket.py",
    ),
    Mechanism(
        "dial guard",
        "workers/network.py",
        "if why := why_not_public(address):",
        'if why := "":',
        "tests/http/test_download.py::test_a_name_that_flips_to_loopback_is_never_dialled_there",
    ),
    Mechanism(
        "function list",
        "workers/entry.py",
        "if name not in listed:",
        "if False:",
        "tests/contract/test_listed_job.py",
    ),
    Mechanism(
        "proof of a callback",
        "service/api/webhooks.py",
        "if proof is Proof.WRONG:\n        return events.Disproved()",
        "if False:\n        return events.Disproved()",
        "tests/http/test_webhooks.py",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, away from the ones that people edit."""
    folder = tmp_path_factory.mktemp("mutant")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda each: each.name)
def test_a_test_turns_red_without_it(copy: Path, mechanism: Mechanism) -> None:
    file = copy / mechanism.file
    whole = file.read_text("utf-8")
    assert whole.count(mechanism.there) == 1, "the mechanism has moved: say here where it is"
    file.write_text(whole.replace(mechanism.there, mechanism.gone), "utf-8")
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "240", mechanism.test],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=TEST_S,
            check=False,
        )
    finally:
        file.write_text(whole, "utf-8")
    assert run.returncode == FAILED, f"nothing noticed that the {mechanism.name} was gone:\n{run.stdout[-3000:]}"
    print(f"without the {mechanism.name}: {run.stdout.strip().splitlines()[-1]}")
