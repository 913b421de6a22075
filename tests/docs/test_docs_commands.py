"""Every command that README and documentation show is one that the command line takes; links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scenarios.cli import app
from scenarios.docs_commands.found import ROOT, Command, commands, pages, parsed, relative_links
from scenarios.docs_commands.plan import implied_cloud, planned

ALL = commands()
OURS = [c for c in ALL if c.words[0] == "splitsight" and "METHOD" not in c.words]
FAST = [c for c in OURS if c.words[1] == "list" and "--target" not in c.words]


def test_commands_are_found_in_every_kind_of_block(tmp_path):
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    (tmp_path / "docs" / "reference" / "commands.md").write_text("    splitsight made-from-code\n")
    (tmp_path / "docs" / "page.md").write_text(
        "```sh\nsplitsight b\n```\n\n```python\nsplitsight no\n```\n\n- item\n\n      pip install c\n"
    )
    (tmp_path / "README.md").write_text(
        "x `splitsight inline`\n\n    A=1 splitsight a --x 'y z' \\\n        --w   # why\n    splitsight/  a tree\n"
    )
    assert [(c.page, c.line, c.words, c.settings) for c in commands(tmp_path)] == [
        ("README.md", 3, ("splitsight", "a", "--x", "y z", "--w"), ("A=1",)),
        ("docs/page.md", 2, ("splitsight", "b"), ()),
        ("docs/page.md", 11, ("pip", "install", "c"), ()),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nonsense", "no command"),
        ("bench nonsense", "no command"),
        ("demo --sceonds 3", "--sceonds"),
        ("demo --seconds three", "--seconds"),
    ],
)
def test_a_command_that_is_none_does_not_parse(arguments, says):
    assert says in (parsed(shlex.split(arguments)) or "")


def test_what_dots_stand_for_may_be_missing():
    assert parsed(["attack", "do", "…", "--limit", "3"]) is None
    assert parsed(["attack", "do", "…", "--limti", "3"])


@pytest.mark.parametrize("command", OURS, ids=lambda c: f"{c.page}:{c.line}")
def test_a_documented_command_parses_and_so_does_what_is_run_of_it(command):
    assert parsed(list(command.words[1:])) is None
    plan = planned(command, [c for c in ALL if c.page == command.page and c.line < command.line])
    assert bool(plan.words) != bool(plan.because)
    if plan.words:
        assert parsed(list(plan.words[1:])) is None and "…" not in plan.words
    if command.words[1] in ("edge", "adversary"):
        assert parsed(implied_cloud(command.words)[1:]) is None


@pytest.mark.parametrize("command", FAST, ids=str)
def test_a_fast_command_runs(command, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path))
    done = CliRunner().invoke(app, list(command.words[1:]))
    assert done.exit_code == 0 and done.stdout.strip()


def test_certificates_are_made_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [c for c in OURS if c.words[1] == "certs"]
    assert made
    for command in made:
        options = list(command.words[2:])
        folder = Path(options[options.index("--out") + 1])
        if not folder.exists():
            assert CliRunner().invoke(app, ["certs", *options]).exit_code == 0
        assert {"ca.pem", "server.pem", "client.pem", "edge.token", "tap.token"} <= {f.name for f in folder.iterdir()}
        assert all(file.stat().st_mode & 0o077 == 0 for file in [*folder.glob("*.key"), *folder.glob("*.token")])


def test_tiny_sizes_take_the_place_of_the_pages():
    def words(text):
        return " ".join(planned(Command("p", 1, tuple(shlex.split(text))), []).words)

    assert words("splitsight demo --seconds 60").split()[:4] == ["splitsight", "demo", "--seconds", "6"]
    assert "--minutes 0.05" in words("splitsight train inversion --minutes 30 --data d")
    assert planned(Command("p", 1, ("docker", "compose", "up")), []).because
    before = [Command("p", 1, ("splitsight", "bench", "tune", "dmb", "--trials", "16", "--out", "o"))]
    continued = planned(Command("p", 2, ("splitsight", "bench", "tune", "dmb", "…", "--objective", "match")), before)
    assert list(continued.words)[:4] == ["splitsight", "bench", "tune", "dmb"]
    assert "--out" in continued.words and continued.words.count("dmb") == 1


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in relative_links(page):
        path, _, heading = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), link
        if heading:
            assert heading in _headings(to.read_text(encoding="utf-8")), link


def _headings(text):
    """As GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_reached_from_the_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            found = [(page.parent / link.partition("#")[0]).resolve() for link in relative_links(page)]
            todo += [to for to in found if to.suffix == ".md" and to.is_file()]
    assert {page for page in pages() if page not in seen} == set()


def test_the_readme_is_one_screen():
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 6000 and b"download.pytorch.org/whl/cpu" in text
