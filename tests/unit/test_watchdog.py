"""The watchdog in a process of its own: what it ends, what it leaves, and what it says."""

import json
import signal
import subprocess
import sys
import threading

import pytest

from workers.watchdog import EXIT_STUCK

PATIENCE_S = 0.5
WITHIN_S = 60.0
PROGRAM = """
import asyncio, os, re, sys
from service import logs
from workers.watchdog import watched

def spin(secret):
    while True: pass

def deaf(secret):
    re.match("(a+)+$", "a" * 60 + secret)

async def main():
    async with watched({patience_s}):
        await asyncio.sleep(0)
        print("ready", flush=True)
        {then}

logs.configure("info")
asyncio.run(main())
print("over", flush=True)
"""
WAIT = "await asyncio.to_thread(sys.stdin.read)"


def started(then: str) -> "subprocess.Popen[str]":
    program = PROGRAM.format(patience_s=PATIENCE_S, then=then)
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_loop_that_stands_still_is_ended_and_says_where_but_not_with_what() -> None:
    child = started("spin('canary')")
    _, told = child.communicate(timeout=WITHIN_S)
    assert child.returncode == EXIT_STUCK
    [line] = [json.loads(line) for line in told.splitlines()]
    assert line["stack"].endswith("<string>:7 spin")
    assert "canary" not in told


def test_c_code_that_holds_the_interpreter_is_ended_by_the_kernel() -> None:
    child = started("deaf('canary')")
    _, told = child.communicate(timeout=WITHIN_S)
    assert child.returncode == -signal.SIGVTALRM
    assert "in deaf" in told
    assert "canary" not in told


@pytest.mark.parametrize("how", ["idle", "stopped"])
def test_an_idle_loop_and_a_stopped_process_are_left_alone(how: str) -> None:
    child = started(WAIT)
    if how == "stopped":
        child.send_signal(signal.SIGSTOP)
    threading.Event().wait(PATIENCE_S * 3)  # that time passes is what is tried
    child.send_signal(signal.SIGCONT)
    told, _ = child.communicate(timeout=WITHIN_S)
    assert (told, child.returncode) == ("over\n", 0)
