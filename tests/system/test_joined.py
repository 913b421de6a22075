"""The live page on an edge, a cloud server and an adversary that were started one by one, as by hand."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import closing

import pytest
from browsing import CHROMIUM, PATIENCE, Served, watched

from splitsight.summary import read_summary
from splitsight.wire.channels import Address
from splitsight.wire.credentials import ClientCredentials
from splitsight.wire.operator import OperatorClient
from splitsight.wire.ports import free_port

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'splitsight[test]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

TOKEN = "0123456789abcdef"


class Hands:
    """Four terminals."""

    def __init__(self, folder, models):
        self.folder, self.models = folder, models
        self.token = folder / "operator.token"
        self.token.write_text(TOKEN)
        self.ports = {name: free_port() for name in ("cloud", "tap", "edge", "adversary")}
        self.running = {}

    def at(self, name):
        return f"127.0.0.1:{self.ports[name]}"

    def start(self, role):
        operator = ["--operator-port", self.ports.get(role, 0), "--operator-token-file", self.token]
        kept = self.folder / "kept"
        command = {
            "cloud": ["--port", self.ports["cloud"], "--tap-port", self.ports["tap"]],
            "adversary": ["--tap", self.at("tap"), "--out", self.folder / "tapped", "--patience", 300],
            "edge": ["--server", self.at("cloud"), "--wait", 300, "--give-up", 300, "--loop"],
        }[role]
        command += [] if role == "cloud" else operator
        command += ["--report", kept / "edge.jsonl", "--truth", kept / "truth"] if role == "edge" else []
        command += self.models if role == "adversary" else []
        log = (self.folder / f"{role}.log").open("a")
        self.running[role] = subprocess.Popen(
            [sys.executable, "-m", "scenarios", role, *map(str, command)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def operator(self, role):
        return OperatorClient(Address("127.0.0.1", self.ports[role]), ClientCredentials(TOKEN), timeout=30)

    def close(self):
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.fixture(scope="module")
def hands(models, tmp_path_factory):
    made = Hands(tmp_path_factory.mktemp("hands"), models)
    try:
        for role in ("cloud", "adversary", "edge"):
            made.start(role)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def joined(hands):
    places = ["--frames", hands.folder / "kept", "--tapped", hands.folder / "tapped", "--out", hands.folder / "reports"]
    ports = [word for role in ("cloud", "edge", "adversary") for word in (f"--{role}", hands.at(role))]
    made = Served("page", *places, *ports, "--operator-token-file", hands.token)
    try:
        made.until(lambda s: s["part"] == 1 and s.get("windows", {}).get("done"))
        yield made
    finally:
        made.close()


@pytest.fixture
def tab(browser, joined):
    with watched(browser, joined) as made:
        yield made


def test_the_stream_of_others_is_shown(tab, joined):
    for name in ("original", "features", "reconstruction"):
        tab.drawn(name)
    status = joined.status()
    assert {role: how["state"] for role, how in status["processes"].items()} == dict.fromkeys(
        ("cloud", "adversary", "edge"), "running"
    )
    assert tab.page.locator(".what").first.inner_text().startswith("resnet18 split at L8 · white-box · attack window")
    assert tab.page.evaluate("[document.documentElement.scrollWidth <= innerWidth]") == [True]


def test_what_a_running_process_can_change_is_changed(tab, hands):
    with closing(hands.operator("edge")) as edge, closing(hands.operator("adversary")) as adversary:
        tab.press("Pause")
        tab.page.get_by_role("button", name="Go on", exact=True).wait_for()
        paused = edge.status()
        assert paused.paused
        tab.page.wait_for_function("!document.querySelector('button.disabled')?.innerText.includes('Single')")
        tab.press("Single frame")
        _until(tab, lambda: edge.status().frames == paused.frames + 1)
        tab.choose("Speed", "2 ×")
        _until(tab, lambda: edge.status().speed == 2)
        tab.press("Go on")
        _until(tab, lambda: not edge.status().paused)
        tab.choose("Attack", "window:denoised")
        _until(tab, lambda: adversary.status().attack == "window:denoised" and not adversary.status().busy)


def test_what_takes_new_processes_is_disabled_and_says_why(tab):
    tab.page.get_by_text("Target, split point, threat model and defence were started elsewhere").wait_for()
    disabled = tab.page.locator(".q-field--disabled .q-field__label").all_inner_texts()
    assert {"Target", "Split point", "Threat model", "Defence"} <= set(disabled)
    assert tab.page.get_by_role("button", name="Use these", exact=True).is_disabled()
    for name in ("Start again", "Stop, and write the report"):
        assert tab.page.get_by_role("button", name=name, exact=True).count() == 0


def test_a_role_that_is_lost_is_shown_and_comes_back(tab, joined, hands):
    hands.running["cloud"].kill()
    hands.running["cloud"].wait(10)
    joined.until(lambda s: s["processes"]["cloud"]["state"] == "silent")
    tab.page.get_by_text("Cloud server has not answered for").wait_for()
    joined.until(lambda s: s["processes"]["edge"]["state"] == "waiting")
    frames = joined.status()["frames"]
    hands.start("cloud")
    joined.until(lambda s: s["processes"]["cloud"]["state"] == "running" and s["frames"] > frames + 2)
    tab.page.get_by_text("Cloud server runs").wait_for()


def test_the_end_of_the_stream_leaves_a_report(tab, joined, hands):
    hands.running["edge"].send_signal(signal.SIGINT)
    hands.running["adversary"].wait(PATIENCE)
    (name,) = joined.until(lambda s: s["reports"])["reports"]
    tab.page.get_by_role("link", name=name).wait_for()
    with urllib.request.urlopen(f"{joined.address}/reports/{name}/index.html") as answer:
        assert b"resnet18 at L8" in answer.read()
    folder = hands.folder / "reports" / name
    summary = read_summary(folder / "summary.json")
    answers = (hands.folder / "kept" / "edge.jsonl").read_text().splitlines()
    assert summary.serving.frames == len(answers) and summary.live.tiers["window"].n > 0
    assert len(list((folder / "truth").iterdir())) >= len(answers)
    assert joined.status()["phase"] == "the stream has ended; waiting for another"


def test_its_own_end_leaves_the_others_alone(joined, hands):
    joined.process.send_signal(signal.SIGINT)
    printed, said = joined.process.communicate(timeout=PATIENCE)
    assert joined.process.returncode == 0, said
    assert [json.loads(line)["event"] for line in printed.splitlines()] == ["ready", "report"]
    assert hands.running["cloud"].poll() is None


def _until(tab, holds, tries=600):
    for _ in range(tries):
        if holds():
            return
        tab.page.wait_for_timeout(100)
    raise AssertionError("not within a minute")
