"""What is attacked, chosen on the page, with the package's own networks: looked for in the processes' own state."""

import json

import pytest
from browsing import CHROMIUM, Demo

pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'splitsight[test]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    started = Demo(tmp_path_factory.mktemp("choices") / "run", "--gallery-size", "20", "--fps", "1")
    try:
        started.streaming(1)
        yield started
    finally:
        started.close()


def _session(demo, part):
    folder = demo.out if part == 1 else demo.out / f"part-{part:02d}"
    setup = next(e for e in map(json.loads, (folder / "live.jsonl").read_text().splitlines()) if e["event"] == "setup")
    return json.loads((folder / "recording" / "session.json").read_text()), setup


def test_one_frame_at_each_split_point(tab, demo):
    tab.press("Reconstruct the newest frame at each split point")
    tab.page.get_by_text("is being reconstructed at each split point").wait_for()
    slider = tab.page.locator("#sweep-range")
    tab.page.wait_for_function("document.querySelector('#sweep-range').max === '3'")
    demo.until(lambda s: not s["sweep"])
    shown = tab.page.locator(".sweep figcaption").nth(1)
    pictures, seen = set(), []
    slider.focus()
    tab.page.keyboard.press("Home")
    for _ in range(4):
        tab.page.wait_for_function(
            "document.querySelector('.sweep').innerText.includes("
            "'at ' + document.querySelector('#sweep-name').innerText + ' (preview)')"
        )
        seen.append(tab.page.locator("#sweep-name").inner_text())
        assert f"what leaves at {seen[-1]} (preview)" in shown.inner_text() and "PSNR" in shown.inner_text()
        pictures.add(demo.get(f"/live/sweep-at-{seen[-1]}.jpg"))
        tab.page.keyboard.press("ArrowRight")
    assert seen == ["L4", "L8", "L12", "L16"] and len(pictures) == 4
    tab.drawn("original")


def test_light_and_dark(tab):
    def background():
        return tab.page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    tab.press("Light or dark")
    tab.page.wait_for_function("document.body.classList.contains('body--dark')")
    dark = background()
    tab.press("Light or dark")
    tab.page.wait_for_function("!document.body.classList.contains('body--dark')")
    assert light == background() != dark


def test_another_split_point(tab, demo):
    before = demo.status()
    tab.choose("Split point", "L4")
    tab.press("Use these")
    now = demo.streaming(before["part"] + 1)
    session, setup = _session(demo, now["part"])
    assert now["split"] == session["split"] == setup["split"] == "L4"
    assert now["processes"]["cloud"]["pid"] != before["processes"]["cloud"]["pid"]
    tab.page.wait_for_function("document.querySelector('.what').innerText.includes('split at L4')")


def test_the_black_box_threat_model(tab, demo):
    before = demo.status()
    tab.choose("Split point", "L8")
    tab.choose("Threat model", "black-box")
    tab.press("Use these")
    now = demo.streaming(before["part"] + 1)
    session, setup = _session(demo, now["part"])
    assert (now["threat"], setup["threat"], session["split"]) == ("black-box", "black-box", "L8")
    assert "target" not in setup["weights"] and "network" in setup["weights"]  # it has nothing of F1
    assert demo.until(lambda s: s["windows"]["done"])["threat"] == "black-box"


def test_another_target(tab, demo):
    before = demo.status()
    tab.choose("Target", "resnet50-small")
    tab.choose("Threat model", "white-box")
    tab.press("Use these")
    now = demo.streaming(before["part"] + 1)
    session, setup = _session(demo, now["part"])
    assert now["target"] == session["target"] == setup["target"] == "resnet50-small"
    assert now["split"] == session["split"]
    assert demo.until(lambda s: s["windows"]["done"])["threat"] == "white-box"
