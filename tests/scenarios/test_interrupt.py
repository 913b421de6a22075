"""Ctrl-C from the first moment on, with real processes, and how they leave."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: str, out: Path, options: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *options, "-m", "scenarios", *arguments, "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupt(process: subprocess.Popen, patience: float = 60) -> str:
    """Ctrl-C; returns what the process then said on standard error."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=patience)
    assert not psutil.wait_procs(children, timeout=10)[1]
    return said


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2])
def test_from_the_start_of_the_process(tmp_path: Path, delay: float) -> None:
    process = start("demo", out=tmp_path / "run")
    time.sleep(delay)
    try:
        said = interrupt(process, patience=15)
    except subprocess.TimeoutExpired:
        # raised within a callback of the interpreter's own imports, which prints and drops whatever is raised there;
        # nothing before our first line can be told to keep it, so one presses again
        said = interrupt(process)
        first = said.partition("streaming")[0]
        assert "Exception ignored in" in first and "KeyboardInterrupt" in first, said
        assert process.returncode == 130
        return
    if process.returncode == 130:
        assert said == ""
    else:  # before our first line it is the interpreter that is interrupted, and says so in its own way
        assert process.returncode in (1, -signal.SIGINT)
        assert "scenarios/cli" not in said, said


@pytest.mark.parametrize("delay", [0, 0.1, 0.4, 0.8, 1.6, 3.2])
@pytest.mark.parametrize("command", ["demo", "attack"])
def test_from_our_first_line(tmp_path: Path, command: str, delay: float) -> None:
    arguments = {
        "demo": ["demo", "--seconds", "60"],
        "attack": ["attack", "dmb", "--video", str(ROOT / "none.mp4"), "--limit", "1"],
    }[command]
    process = start(*arguments, out=tmp_path / "run", options=("-X", "importtime"))
    assert process.stderr is not None
    while "scenarios.interrupt" not in (line := process.stderr.readline()):
        assert line
    # its next import comes after the handler
    process.stderr.readline()
    time.sleep(delay)
    if process.poll() is not None:
        pytest.skip("it was quicker")
    said = interrupt(process)
    assert process.returncode == 130, said
    for word in ("Traceback", "KeyboardInterrupt", "Aborted"):
        assert word not in said


def test_processes_leave_without_dismantling_the_interpreter(tmp_path: Path) -> None:
    """What is registered with atexit and what was printed is not lost, nor is the exit status."""
    code = (
        "import atexit, sys\nfrom scenarios import interrupt\ninterrupt.leave_quickly()\n"
        "atexit.register(print, 'tidied up')\n"
        "class Slow:\n    def __del__(self): sys.stderr.write('dismantled')\n"
        "kept = Slow()\nkept.me = kept\nprint('done')\n{}"
    )
    for end, status in (("interrupt.ends_with(3)", 3), ("interrupt.ends_with(0)", 0), ("raise ValueError('a bug')", 1)):
        run = subprocess.run([sys.executable, "-c", code.format(end)], cwd=ROOT, capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (status, "done\ntidied up\n")
        assert "dismantled" not in run.stderr
        assert ("a bug" in run.stderr) == (status == 1)


@pytest.mark.parametrize(
    ("arguments", "status"), [(["list", "scenarios"], 0), (["list", "splits", "--target", "x"], 2)]
)
def test_exit_status_of_the_command_line(arguments: list[str], status: int) -> None:
    run = subprocess.run([sys.executable, "-m", "scenarios", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == status
    assert bool(run.stdout) == (status == 0) and run.stderr.count("\n") == (status != 0)
