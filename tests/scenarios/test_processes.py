"""The supervisor, with children of a few lines."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from scenarios.processes import Supervisor, terminate_as_interrupt
from splitsight.errors import UserError

READY = "import json, sys, time; print(json.dumps({'event': 'ready', 'port': 7}), flush=True)\n"


def gone(pid: int, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_ready_line_log_and_memory(tmp_path: Path) -> None:
    code = "print('chatter', flush=True)\n" + READY + "print('words', file=sys.stderr, flush=True); time.sleep(60)"
    with Supervisor(tmp_path / "logs") as children:
        child = children.start("one", "first", ["-c", code])
        ticks = []
        assert child.wait_event("ready", 20, tick=lambda: ticks.append(1))["port"] == 7
        assert ticks
        children.check()
        time.sleep(0.6)
        assert 2 < children.peak_rss_mb()["one"] < 500
        pid = child.process.pid
    assert gone(pid)
    log = (tmp_path / "logs" / "one.log").read_text()
    assert "chatter" in log and "ready" not in log


def test_silent_child_is_given_up(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as children:
        child = children.start("one", "first", ["-c", "import time; time.sleep(60)"])
        with pytest.raises(UserError, match=r"the first was not ready within 0 s: see .*one\.log"):
            child.wait_event("ready", 0.3)


def test_a_dead_child_speaks_for_itself(tmp_path: Path) -> None:
    code = "import sys; print('noise\\nsplitsight: port 5 is taken: give another', file=sys.stderr); sys.exit(2)"
    with Supervisor(tmp_path) as children:
        child = children.start("one", "first", ["-c", code])
        with pytest.raises(UserError, match=r"^first: port 5 is taken: give another$") as caught:
            child.wait_event("ready", 20)
        assert caught.value.code == 2


def test_check_names_the_signal(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as children:
        child = children.start("one", "first", ["-c", READY + "time.sleep(60)"])
        child.wait_event("ready", 20)
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait(10)
        with pytest.raises(UserError, match="first was ended by SIGKILL unexpectedly"):
            children.check()


@pytest.mark.parametrize(("expected", "code"), [(True, 0), (False, 0), (True, 3)])
def test_check_knows_whose_end_is_planned(tmp_path: Path, expected: bool, code: int) -> None:
    with Supervisor(tmp_path) as children:
        child = children.start("one", "first", ["-c", f"import sys; sys.exit({code})"], expected_to_end=expected)
        child.process.wait(20)
        if expected and code == 0:
            children.check()
        else:
            with pytest.raises(UserError, match="unexpectedly"):
                children.check()


def test_stop_asks_first_and_then_kills(tmp_path: Path) -> None:
    polite = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    wait = "\nwhile True: time.sleep(0.05)"
    with Supervisor(tmp_path) as children:
        for key, manner in (("polite", polite), ("stubborn", stubborn)):
            children.start(key, key, ["-c", "import sys\n" + manner + READY + wait]).wait_event("ready", 20)
        assert children.stop("polite", grace=10) == 0
        assert children.stop("stubborn", grace=0.3) == -signal.SIGKILL
        children.check()


def test_grandchildren_go_too(tmp_path: Path) -> None:
    code = """
        import json, subprocess, sys, time
        p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(json.dumps({"event": "ready", "pid": p.pid}), flush=True)
        time.sleep(60)
    """
    with Supervisor(tmp_path) as children:
        pid = children.start("one", "first", ["-c", textwrap.dedent(code)]).wait_event("ready", 20)["pid"]
    assert gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    child = "from scenarios.processes import die_with_parent; die_with_parent()\n" + READY + "time.sleep(60)"
    parent = f"""
        import time
        from pathlib import Path
        from scenarios.processes import Supervisor
        with Supervisor(Path({str(tmp_path)!r})) as children:
            c = children.start("one", "first", ["-c", {child!r}])
            c.wait_event("ready", 20)
            print(c.process.pid, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.kill()
    process.wait(10)
    assert gone(pid)


def test_the_end_of_a_terminal_ends_nothing_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminate_as_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
