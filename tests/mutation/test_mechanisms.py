"""Each safety mechanism is taken out in a copy of the tree, and a test must turn red: a proof of the proofs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from tests.mutation.mechanisms import MECHANISMS, Mechanism

ROOT: Final = Path(__file__).parents[2]
TEST_S: Final = 900
Run: TypeAlias = subprocess.CompletedProcess[str]
FAILED: Final = 1  # pytest's exit code for "tests ran, and some failed"; 2 to 5 are mistakes of the run itself


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files, away from the ones that people edit."""
    folder = tmp_path_factory.mktemp("mutant")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv-clients").symlink_to(ROOT / ".venv-clients")
    return folder


@pytest.fixture(scope="module")
def green() -> set[str]:
    """The tests that have been seen to pass while nothing was taken out."""
    return set()


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda each: each.name)
def test_each_mechanism_stands_where_the_list_says(mechanism: Mechanism) -> None:
    assert (ROOT / mechanism.file).read_text("utf-8").count(mechanism.there) == 1


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda each: each.name)
def test_a_test_turns_red_without_it(copy: Path, green: set[str], mechanism: Mechanism) -> None:
    if mechanism.test not in green:
        whole = tried(copy, mechanism.test)
        assert whole.returncode == 0, f"with every mechanism in place:\n{whole.stdout[-3000:]}"
        green.add(mechanism.test)
    run = tried_without(copy, mechanism)
    assert run.returncode == FAILED, f"nothing noticed that the {mechanism.name} was gone:\n{run.stdout[-3000:]}"
    assert "StartError" not in run.stdout, f"a part did not start, which proves nothing:\n{run.stdout[-3000:]}"
    print(f"{mechanism.name}:", *(line for line in run.stdout.splitlines() if line.startswith("FAILED")))


def tried_without(copy: Path, mechanism: Mechanism) -> Run:
    file = copy / mechanism.file
    whole = file.read_text("utf-8")
    file.write_text(whole.replace(mechanism.there, mechanism.gone), "utf-8")
    try:
        return tried(copy, mechanism.test)
    finally:
        file.write_text(whole, "utf-8")


def tried(copy: Path, test: str) -> Run:
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not soak", "--timeout", "240", test]
    command = [sys.executable, "-m", "pytest", *arguments]
    wide = os.environ | {"COLUMNS": "250"}  # so that the reason of a failure is told
    return subprocess.run(command, cwd=copy, env=wide, capture_output=True, text=True, timeout=TEST_S, check=False)
