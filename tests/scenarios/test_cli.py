"""The command line: help, errors as one sentence, exit codes."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from scenarios import cli
from scenarios.cli.guard import guarded
from scenarios.processes import PREFIX
from splitsight.errors import UserError

COMMANDS = ["demo", "cloud", "edge", "oracle", "adversary", "attack", "run", "splits"]
COMMANDS += [f"train {what}" for what in ("target", "evaluator", "prior", "inversion", "defense")]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.mark.parametrize("command", [*COMMANDS, "bench tap", "bench tune", "bench attack", "list"])
def test_every_option_has_help(command: str) -> None:
    from typer.main import get_command

    group = get_command(cli.app)
    for name in command.split():
        group = group.commands[name]
    assert group.help
    for parameter in group.params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name}"


def test_help_is_fast_and_light() -> None:
    code = (
        "import sys\nfrom scenarios import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'grpc', 'pyarrow', 'plotly'} & set(sys.modules)\nassert not heavy, heavy"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--video", "/nowhere/clip.mp4", "--out", "{out}"], "/nowhere/clip.mp4"),
        (["demo", "--split", "L9", "--out", "{out}"], "L8"),
        (["demo", "--target", "vgg", "--out", "{out}"], "resnet18"),
        (["demo", "--prior", "huge", "--out", "{out}"], "huge"),
        (["demo", "--seconds", "0", "--out", "{out}"], "--seconds must be more than 0"),
        (["demo", "--fps", "nan", "--out", "{out}"], "--fps must be more than 0"),
        (["attack", "dmb", "--out", "{out}"], "exactly one of --images"),
        (["attack", "dmb", "--images", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["edge", "--server", "127.0.0.1:1", "--wait", "0"], "127.0.0.1:1"),
        (["oracle", "--host", "0.0.0.0"], "answer anyone on the network"),
        (["train", "prior", "--data", "/nowhere", "--out", "{out}"], "--minutes or --steps"),
        (["train", "evaluator", "--data", "/nowhere", "--out", "{out}"], "--minutes or --steps"),
        (["run", "table-0", "--out", "{out}"], "table-1"),
        (["run", "table-1", "--evaluator", "none", "--out", "{out}"], "--data"),
        (["run", "table-1", "--evaluator", "none", "--data", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["bench", "tune", "preview", "--images", "/nowhere", "--out", "{out}"], "has nothing to tune"),
        (["bench", "tune", "do", "--images", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["bench", "attack", "--method", "dmb-multi", "--images", "/nowhere", "--out", "{out}"], "single images"),
        (["bench", "attack", "--images", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["list", "splits", "--target", "vgg"], "resnet18"),
        (["splits", "--splits", "layer2.0.conv1", "--out", "{out}"], "later layers also read layer1"),
        (["splits", "--network", "3g", "--out", "{out}"], "wifi"),
        (["splits", "--max-leakage", "sim=0.4"], "ssim"),
        (["splits", "--attacks", "bst", "--out", "{out}"], "net-best"),
    ],
)
def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path, arguments: list[str], words: str
) -> None:
    out = tmp_path / "out"
    code, printed, err = run(capsys, *(a.format(out=out) for a in arguments))
    assert code == 2
    assert printed == ""
    assert err.startswith(PREFIX) and err.count("\n") == 1, err
    assert words in err
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("mend this", code=7), 7, "mend this"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), 1, "the disk is full (/full/x): free some space"),
        (OSError("[Errno 28] Error writing bytes: No space left on device"), 1, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), 1, "Permission denied (/srv/x)"),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def fail(options: object) -> None:
        raise error

    import scenarios.demo

    monkeypatch.setattr(scenarios.demo, "run_demo", fail)
    got, _, err = run(capsys, "demo")
    assert got == code
    assert words in err and err.count("\n") == (1 if words else 0)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import scenarios.demo

    def fail(options: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scenarios.demo, "run_demo", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["demo"])


@pytest.mark.parametrize("kind", ["targets", "splits", "attacks", "defenses", "priors", "scenarios"])
def test_lists(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    code, out, _ = run(capsys, "list", kind, "--json")
    assert code == 0
    names = [row["name"] for row in json.loads(out)]
    wanted = {
        "targets": {"resnet18"},
        "splits": {"L4", "L8", "L12", "L16"},
        "attacks": {"dmb", "dmb-multi"},
        "defenses": {"identity"},
        "priors": {"small"},
        "scenarios": {"demo", "table-1", "algorithm-2"},
    }
    assert wanted[kind] <= set(names)
    code, out, _ = run(capsys, "list", kind)
    assert code == 0
    assert all(name in out for name in names)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1:strict", "utf-8"])
@pytest.mark.parametrize("command", ["list attacks", "list splits", "attack --help", "bench tune --help"])
def test_output_degrades_where_the_encoding_lacks_a_character(encoding: str, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scenarios", *command.split()],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding.partition(":")[0])  # which is what it was written in
    assert len(text) > 100


def test_a_name_that_is_not_utf8_is_printed_as_it_is() -> None:
    code = (
        "from scenarios.cli.output import prepare_streams\nprepare_streams()\n"
        "print('latin\\udce9 \u03b1 \ud800')\nimport logging\n"
        "logging.getLogger('splitsight.data').warning('two\\nlines of %s', 'x')"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("\ud800", "\\ud800")], env=environment, capture_output=True
    )
    assert done.returncode == 0 and done.stdout == b"latin\xe9 ? ?\n"
    assert done.stderr.decode() == PREFIX + "two lines of x\n"


def test_a_library_that_needs_utf8_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded()
    def command() -> None:
        "x\udce9".encode()

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 2
    assert "the name x\\xe9 is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "solved_by"),
    [
        ([], "window:live"),
        (["--no-preview"], "window:denoised"),
        (["--no-preview", "--inversion", "starts.safetensors"], "window:live"),
        (["--no-preview", "--attack", "best-multi"], "best-multi:"),
        (["--no-preview", "--solver", "dmb"], "dmb-multi:live"),
    ],
)
def test_windows_are_solved_without_previews_where_there_are_none(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    solved_by: str,
) -> None:
    import adversary.live.run as live

    seen: list[live.LiveOptions] = []
    monkeypatch.setattr(live, "run_live", lambda options, know: seen.append(options))
    code, _, err = run(capsys, "adversary", "--tap", "127.0.0.1:1", "--out", str(tmp_path / "out"), *words)
    assert (code, err) == (0, "") and f"{seen[0].attack}:{seen[0].setting or ''}" == solved_by
