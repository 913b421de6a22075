"""The live page in a browser, before real processes: what a control does is looked for in the processes' own state."""

import io
import json
import os
import re
import signal
import time
import urllib.error
import zipfile

import psutil
import pytest
from browsing import CHROMIUM, PATIENCE, Demo, Tab

from splitsight.summary import read_summary

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'splitsight[test]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def demo(models, tmp_path_factory):
    started = Demo(tmp_path_factory.mktemp("page") / "run", "--seed", "1", *models)
    try:
        started.streaming(1)
        yield started
    finally:
        started.close()


def test_the_stream_is_shown_side_by_side(tab, demo):
    for name in ("original", "features", "reconstruction"):
        tab.drawn(name)
    tab.page.wait_for_function("document.querySelector('.panels').innerText.includes('ecognised')")
    words = tab.page.locator(".panels").inner_text()
    assert "Original, frame" in words and "What left the device, 32.0 KiB" in words
    assert "Reconstruction refined (window:live), after" in words and "ecognised" in words and "PSNR" in words
    tab.page.get_by_label("the newest frame, reconstructed at once").check()
    tab.page.wait_for_function("document.querySelector('.panels').innerText.includes('at once (preview)')")
    said = tab.page.locator(".what").first.inner_text()
    assert said == "resnet18 split at L8 · white-box · attack window:live · no defence"
    before = tab.page.locator(".panels").inner_text()
    tab.page.wait_for_function("before => document.querySelector('.panels').innerText !== before", arg=before)
    # something is plotted
    tab.page.wait_for_function("document.querySelector('.plots').innerText.includes('round trip, ms:')")


def test_pause_single_frame_and_speed_by_the_keyboard(tab, demo):
    tab.page.get_by_role("button", name="Pause", exact=True).focus()
    tab.page.keyboard.press("Enter")
    sent = demo.until(lambda s: s["paused"])["sent"]
    time.sleep(1.2)
    assert demo.status()["sent"] <= sent + 1
    sent = demo.status()["sent"]
    tab.page.wait_for_function("!document.querySelector('button.disabled')")
    tab.press("Single frame")
    demo.until(lambda s: s["sent"] == sent + 1)
    tab.press("Go on")
    demo.until(lambda s: not s["paused"] and s["sent"] > sent + 1)
    tab.choose("Speed", "4 ×")
    fast = demo.until(lambda s: s["speed"] == 4)
    time.sleep(2)
    now = demo.status()
    assert (now["sent"] - fast["sent"]) / (now["seconds"] - fast["seconds"]) > 3  # of two a second at speed 1
    tab.choose("Speed", "1 ×")
    demo.until(lambda s: s["speed"] == 1)


def test_attack_and_prompt_change_while_the_stream_runs(tab, demo):
    before = demo.status()
    tab.page.get_by_label("Prompt: what may be in the picture").fill("a goldfish")
    tab.press("Use the prompt")
    demo.until(lambda s: s["prompt"] == "a goldfish" and not s["busy"])
    tab.choose("Attack", "window:denoised")
    now = demo.until(lambda s: s["attack"] == "window:denoised" and not s["busy"])
    assert now["attack_problem"] == "" and now["part"] == before["part"]
    assert now["processes"]["adversary"]["pid"] == before["processes"]["adversary"]["pid"]
    # its own record says so, too
    lines = [json.loads(line) for line in (demo.out / "live.jsonl").read_text().splitlines()]
    changes = [(e["attack"], e["prompt"]) for e in lines if e["event"] == "attack"]
    assert changes == [("window:live", "a goldfish"), ("window:denoised", "a goldfish")]
    tab.page.wait_for_function("document.querySelector('.what').innerText.includes('attack window:denoised')")


def test_a_recording_is_replayed_and_the_clip_comes_back(tab, demo):
    tab.page.wait_for_timeout(1000)
    tab.choose("Play", "recording run: resnet18 at L8, identity")
    assert demo.until(lambda s: s["source"].endswith("/run/recording"))["part"] == 1
    tab.choose("Play", "the clip")
    demo.until(lambda s: s["source"] == "")


def test_two_tabs_and_one_that_comes_back(browser, tab, demo):
    second = Tab(browser, demo, 390)
    second.press("Pause")
    demo.until(lambda s: s["paused"])
    tab.page.get_by_role("button", name="Go on", exact=True).wait_for()
    second.page.close()
    third = Tab(browser, demo, 390)
    third.press("Go on")
    demo.until(lambda s: not s["paused"])
    tab.page.get_by_role("button", name="Pause", exact=True).wait_for()
    for made in (tab, third):
        width, room = made.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= room
    assert second.complaints == third.complaints == []
    third.page.close()


def test_what_cannot_be_leaves_the_stream_as_it_is(tab, demo):
    before = demo.status()
    tab.choose("Threat model", "black-box")
    tab.press("Use these")
    tab.page.get_by_text(
        re.compile("network for .*splitsight train inversion|train a network|there is none")
    ).wait_for()
    now = demo.until(lambda s: s["phase"] == "streaming" and s["frames"] > before["frames"])
    assert (now["part"], now["threat"]) == (before["part"], "white-box")


def test_another_defence_takes_new_processes_and_the_page_stays(tab, demo):
    before = demo.status()
    tab.choose("Defence", "Gaussian noise")
    tab.choose("Strength", "0.5 of")
    tab.press("Use these")
    now = demo.streaming(before["part"] + 1)
    assert now["defense"] == "gaussian:ratio=0.5"
    for role in ("adversary", "edge"):
        assert now["processes"][role]["pid"] != before["processes"][role]["pid"]
    # the server need not know of noise
    assert now["processes"]["cloud"]["pid"] == before["processes"]["cloud"]["pid"]
    session = json.loads((demo.out / "part-02" / "recording" / "session.json").read_text())
    assert session["defense"] == "gaussian:ratio=0.5"
    tab.page.wait_for_function("document.querySelector('.what').innerText.includes('defence gaussian:ratio=0.5')")


def test_a_hung_adversary_is_shown_and_comes_back(tab, demo):
    pid = demo.status()["processes"]["adversary"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        demo.until(lambda s: s["processes"]["adversary"]["state"] == "silent")
        tab.page.get_by_text("Adversary has not answered for").wait_for()
    finally:
        os.kill(pid, signal.SIGCONT)
    demo.until(lambda s: s["processes"]["adversary"]["state"] == "running")
    tab.page.get_by_text("Adversary runs").wait_for()


def test_a_lost_server_is_started_again_and_no_frame_is_lost(tab, demo):
    before = demo.status()
    os.kill(before["processes"]["cloud"]["pid"], signal.SIGKILL)
    tab.page.get_by_text("was ended by SIGKILL").wait_for()
    now = demo.until(lambda s: s["processes"]["cloud"].get("pid") not in (None, before["processes"]["cloud"]["pid"]))
    now = demo.until(lambda s: not s["problem"] and s["frames"] > before["frames"] + 2)
    assert now["part"] == before["part"]
    folder = demo.out / f"part-{now['part']:02d}"
    answers = [json.loads(line)["sequence"] for line in (folder / "edge.jsonl").read_text().splitlines()]
    assert answers == list(range(len(answers)))
    windows = now["windows"]["done"]
    demo.until(lambda s: s["windows"]["done"] > windows)


def test_a_lost_adversary_is_replaced(tab, demo):
    before = demo.status()
    os.kill(before["processes"]["adversary"]["pid"], signal.SIGKILL)
    tab.page.get_by_text("was ended by SIGKILL").wait_for()
    now = demo.streaming(before["part"] + 1)
    demo.until(lambda s: s["windows"]["done"] > 0 and not s["problem"])
    assert now["defense"] == before["defense"]


def test_export_while_it_runs(demo):
    part = demo.status()["part"]
    demo.until(lambda s: s["windows"]["done"] > 0)
    assert demo.get("/export/clip.mp4?seconds=2")[4:8] == b"ftyp"
    with zipfile.ZipFile(io.BytesIO(demo.get("/export/report.zip"))) as archive:
        names = archive.namelist()
    assert {"run/index.html", "run/demo.mp4", *(f"run/part-{n:02d}/index.html" for n in range(2, part + 1))} <= set(
        names
    )
    with pytest.raises(urllib.error.HTTPError, match="422"):
        demo.get("/export/clip.mp4?seconds=9999")


def test_the_page_ends_the_run(tab, demo):
    parts = range(2, demo.status()["part"] + 1)
    children = psutil.Process(demo.process.pid).children(recursive=True)
    tab.press("Stop, and write the report")
    tab.press("Stop")
    printed, said = demo.process.communicate(timeout=PATIENCE)
    assert (demo.process.returncode, printed.strip()) == (0, str(demo.out / "index.html")), said
    assert not psutil.wait_procs(children, timeout=10)[1]
    for folder in (demo.out, *(demo.out / f"part-{n:02d}" for n in parts)):
        assert (folder / "index.html").is_file() and read_summary(folder / "summary.json").serving.lost == 0
    assert said.splitlines()[0] == f"the page: {demo.address}/"
    tab.page.get_by_text("The page has lost its server").wait_for()
    tab.page.close()
    tab.complaints.clear()  # a server that is gone is something to complain of
