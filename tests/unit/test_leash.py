"""Children that may not outlive the runner, and the lock that only the last of them gives back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.local.child import StartError, await_ready
from deploy.local.leash import Leash
from deploy.local.lock import Lock, Occupied

ENDS_S = 10
SLEEP = "import time; time.sleep(600)"
# A child that has a child of its own.
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
RUNNER = """
import os, sys, time
from pathlib import Path
from deploy.local.leash import Leash
from deploy.local.lock import Lock
folder = Path(sys.argv[1])
lock = Lock(folder / "run.lock")
lock.tell("http://here")
leash = Leash(held=[lock.descriptor])
for number in range(3):
    print(leash.spawn([sys.executable, "-c", sys.argv[2]], folder / "log", os.environ).pid, flush=True)
time.sleep(600)
"""


def child(leash: Leash, folder: Path) -> psutil.Process:
    """One that is on the leash and has said so in its log."""
    log = folder / f"{len(list(folder.iterdir()))}.log"
    process = leash.spawn([sys.executable, "-c", f"print('up', flush=True); {SLEEP}"], log, os.environ)
    await_ready(process, lambda: log.stat().st_size > 0, log, ENDS_S)
    return psutil.Process(process.pid)


def test_no_child_or_grandchild_outlives_a_killed_runner(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(tmp_path), PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout
        children = [psutil.Process(int(runner.stdout.readline())) for _ in range(3)]
        family = [*children, *(grandchild for each in children for grandchild in each.children())]
        with pytest.raises(Occupied, match=f"process {runner.pid} at http://here"):
            Lock(tmp_path / "run.lock")
        runner.kill()
    _, alive = psutil.wait_procs(family, timeout=ENDS_S)
    assert not alive


def test_the_lock_is_free_only_when_the_last_child_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNER, str(tmp_path), SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout
        children = [psutil.Process(int(runner.stdout.readline())) for _ in range(3)]
        runner.kill()
    Lock(tmp_path / "run.lock").release()
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children)


def test_a_closed_leash_holds_nobody_and_takes_nobody(tmp_path: Path) -> None:
    leash = Leash()
    held = child(leash, tmp_path)
    leash.close()
    assert not held.is_running()
    with pytest.raises(StartError, match="being stopped"):
        child(leash, tmp_path)


def test_a_killed_guardian_is_replaced_by_one_who_knows_all(tmp_path: Path) -> None:
    leash = Leash()
    first = child(leash, tmp_path)
    leash._guardian.kill()
    leash._guardian.wait(ENDS_S)
    second = child(leash, tmp_path)
    with Path(os.devnull).open("wb") as elsewhere:
        os.dup2(elsewhere.fileno(), leash._pipe, inheritable=False)  # the pipe ends, as with this process it would
    assert leash._guardian.wait(ENDS_S) == 0
    assert {leash.wait(each.pid) for each in (first, second)} == {-signal.SIGKILL}
    leash.close()


def test_a_child_that_ended_is_forgotten(tmp_path: Path) -> None:
    leash = Leash()
    pid = leash.spawn([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "child.log", os.environ).pid
    assert leash.wait(pid) == 7
    with pytest.raises(KeyError):
        leash.wait(pid)
    leash.close()
