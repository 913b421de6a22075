"""What `bench attack` says of its measurement."""

import re

import pytest

from scenarios.speed import head, sentences, table, write_page
from splitsight.summary import Interval, MethodSummary, Reached, SpeedSummary, Summary

REACHED = Reached(
    seconds=4.0,
    model_evaluations=40,
    part_of_seconds=0.02,
    part_of_evaluations=0.025,
    reference_first_seconds=100.0,
    reference_first_evaluations=900,
)
SPEED = SpeedSummary(
    reference="dmb paper",
    subject="best faithful",
    psnr=15.0,
    ssim=0.3,
    seconds=200.0,
    model_evaluations=1600,
    reached_psnr=Reached(seconds=0.1, model_evaluations=0, part_of_seconds=0.0005, part_of_evaluations=0.0),
    reached_ssim=Reached(),
    reached=REACHED,
    goal=0.05,
    met=True,
    batch=1,
    threads=1,
)


def _summary(speed):
    method = MethodSummary(
        n=3,
        psnr=Interval(mean=15.0, low=14.0, high=16.0),
        ssim=Interval(mean=0.3),
        seconds_per_image=200.0,
        iterations=100,
        model_evaluations=1600,
    )
    return Summary(target="tiny", split="S1", methods={"dmb paper": method}, speed=speed)


def test_sentences_state_what_was_reached_and_when():
    psnr, ssim, both, verdict = sentences(SPEED)
    assert "after 0.10 s and 0 evaluations an image: 1/2,000 of its whole time, 0 of its evaluations, with" in psnr
    assert ssim == "best faithful never had dmb paper's final SSIM of 0.300."
    assert "1/50 of its whole time, 1/40 of its evaluations (1/25 of the time until it had that itself)" in both
    assert verdict == "It is within 1/20 of its time and evaluations."


def test_a_cut_run_says_so_and_claims_nothing():
    cut = SPEED.model_copy(update={"met": None, "cut": {"dmb paper": [100, 1500]}, "sittings": 2})
    *_, verdict, stopped = sentences(cut)
    assert verdict.startswith("Iterations were cut: dmb paper (100 of 1500).") and "nothing is extrapolated" in verdict
    assert "2 sittings" in stopped
    assert table(_summary(cut))[0][head(_summary(cut)).index("iterations")] == "100 of 1500 (cut)"


@pytest.mark.parametrize("speed", [SPEED, None])
def test_the_page_needs_no_other_host(tmp_path, speed):
    rows = [
        {"contender": "dmb paper", "index": i, "seconds": s, "model_evaluations": 8 * s, "psnr": 10 + s, "ssim": 0.1}
        for i in range(2)
        for s in (0.0, 1.0, 2.0)
    ]
    file = tmp_path / "curves.html"
    write_page(file, _summary(speed), rows)
    _, body = file.read_text().split("</script></head>")  # the library names hosts in its own text
    assert "15.00 [14.00, 16.00]" in body and not re.search(r'(src|href)="https?:', body)
    assert ("Dotted" in body) == (speed is not None)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.html"]
