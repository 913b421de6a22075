"""A process that loads a role's libraries before it is told its command line."""

from pathlib import Path

import psutil
import pytest

from scenarios.processes import Supervisor
from scenarios.warm import Warm

ROLE = "certs"
"""A command that loads little and ends by itself."""


def command(folder: Path) -> list[str]:
    return ["-m", "scenarios", ROLE, "--out", str(folder)]


def test_a_child_is_made_of_it_and_has_a_log_of_its_own(tmp_path: Path) -> None:
    with Warm(ROLE, {"SOME": "1"}) as warm, Supervisor(tmp_path / "logs", warm) as children:
        waiting = warm._process
        assert waiting is not None
        child = children.start("one", "first", command(tmp_path / "made"), environment={"SOME": "1"})
        assert child.process is waiting and child.process.wait(60) == 0
        assert (tmp_path / "made" / "ca.pem").is_file()
        # what goes wrong is in the second one's log, and the second one is an ordinary child
        child = children.start("two", "second", command(tmp_path / "made"), environment={"SOME": "1"})
        assert child.process is not waiting and child.process.wait(60) == 2
        assert str(child.failure()).startswith("second: ")


def test_words_go_to_the_log_of_the_child(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Warm(ROLE, {}) as warm, Supervisor(tmp_path / "logs", warm) as children:
        child = children.start("one", "first", command(tmp_path / "file"))
        assert child.process.wait(60) == 1
        assert str(child.failure()).startswith("first: ")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["-m", "scenarios", "cloud"], {}), (["-c", "pass"], {}), (["-m", "scenarios", ROLE], {"OTHER": "1"})],
)
def test_another_command_is_not_made_of_it(tmp_path: Path, arguments: list[str], environment: dict[str, str]) -> None:
    with Warm(ROLE, {}) as warm:
        assert warm.take(arguments, environment, tmp_path / "log") is None
        assert warm._process is not None


def test_one_that_died_is_replaced(tmp_path: Path) -> None:
    with Warm(ROLE, {}) as warm, Supervisor(tmp_path / "logs", warm) as children:
        waiting = warm._process
        assert waiting is not None
        waiting.kill()
        waiting.wait()
        assert children.start("one", "first", command(tmp_path / "made")).process.wait(60) == 0


def test_one_that_is_not_taken_ends() -> None:
    with Warm(ROLE, {}) as warm:
        waiting = warm._process
        assert waiting is not None
    assert waiting.returncode is not None and not psutil.pid_exists(waiting.pid)


def test_one_that_hears_nothing_ends_by_itself() -> None:
    with Warm(ROLE, {}) as warm:
        waiting = warm._process
        assert waiting is not None and waiting.stdin is not None
        waiting.stdin.close()
        assert waiting.wait(60) == 0
