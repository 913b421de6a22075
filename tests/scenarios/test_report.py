"""Join, pictures and report, on a run's folder made up here."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from scenarios.demo import prepare_folder
from scenarios.join import Join, Lines, quick_psnr, read_png
from scenarios.report import RunInfo, panels_of, write_report
from scenarios.rereport import ReportOptions, report_run
from splitsight.data import write_png
from splitsight.errors import UserError
from splitsight.network import NetworkProfile

INFO = RunInfo(target="resnet18", split="L8", video="made up", solver="pnp", fps=2.0, options={"a": "<b>"}, classes=200)
INFO = replace(INFO, points=("L4", "L8", "L12", "L16"))


def png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    write_png(path, image)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten frames; the last has no preview, only the first eight have a window, frame 3 was never answered."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    truth = cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)
    edge, live = [], []
    for i in range(10):
        png(tmp_path / "truth" / f"{i:06d}.png", truth)
        if i != 3:
            best = {"index": 5, "name": "ox & cart", "probability": 0.5}
            said = {"says": "ox & cart 50 %", "best": best, "answer": {"top": [best]}}
            timing = {"capture_time_us": 10**6 + 500_000 * i, "rtt_ms": 5.0 + i}
            edge.append({"sequence": i, **timing, "bytes": 32768, **said})
        for tier, noise, last in (("preview", 20, 9), ("window", 5, 8)):
            if i < last:
                noisy = truth.astype(int) + rng.normal(0, noise, truth.shape).astype(int)
                png(tmp_path / tier / f"{i:06d}.png", noisy.clip(0, 255).astype(np.uint8))
        if i < 9:
            live.append({"event": "preview", "sequence": i, "time_us": 1, "lag_ms": 30.0})
    for w in range(2):
        live.append(
            {
                "event": "window",
                "window": w,
                "sequences": list(range(4 * w, 4 * w + 4)),
                "lag_ms": 1500.0 + 1000 * w,
                "seconds": 1.2,
                "on_time": w == 0,
                "iterations": 60,
                "model_evaluations": 8,
                "loss": 0.1,
            }
        )
    live.append({"event": "end", "skipped": 0})
    for name, events in (("edge", edge), ("live", live)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return tmp_path


def test_lines_wait_for_the_newline(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = Lines(path)
    assert list(lines.new()) == []
    path.write_text('{"a": 1}\nnot json\n[1]\n{"a": ')
    assert list(lines.new()) == [{"a": 1}]
    with path.open("a") as file:
        file.write("2}\n")
    assert list(lines.new()) == [{"a": 2}]
    assert list(lines.new()) == []


def test_join(run: Path) -> None:
    join = Join(run)
    assert join.poll()
    assert not join.poll()
    rows = join.rows()
    assert [r.sequence for r in rows] == list(range(10))
    assert [r.answered for r in rows] == [i != 3 for i in range(10)]
    assert (rows[0].prediction, rows[0].probability, rows[0].says) == ("ox & cart", 0.5, "ox & cart 50 %")
    assert [label["name"] for label in rows[0].top] == ["ox & cart"] and rows[3].says == ""
    assert [r.best_tier() for r in rows] == ["window"] * 8 + ["preview", None]
    assert [r.window for r in rows] == [0] * 4 + [1] * 4 + [-1, -1]
    assert rows[0].on_time and not rows[4].on_time
    assert rows[0].psnr["window"] > rows[0].psnr["preview"] + 5
    assert join.captured() == 10


def test_join_takes_images_that_come_later(run: Path) -> None:
    preview = run / "preview" / "000000.png"
    data = preview.read_bytes()
    preview.unlink()
    join = Join(run)
    join.poll()
    assert "preview" not in join.frames[0].psnr
    preview.write_bytes(data)
    join.poll()
    assert join.frames[0].psnr["preview"] > 10


def test_quick_psnr_matches_the_metric() -> None:
    import torch

    from splitsight.metrics import image_quality

    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255 for x in (a, b)]
    assert quick_psnr(a, b) == pytest.approx(float(image_quality(*tensors)["psnr"][0]), abs=1e-3)


def test_report(run: Path) -> None:
    join = Join(run)
    join.poll()
    summary = write_report(run, join, INFO)
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["schema"] == "splitsight.summary/1"
    assert set(summary) >= {"target", "split", "methods", "serving", "live", "environment"}
    assert summary["serving"] == {"frames": 9, "lost": 1, "fps": pytest.approx(8 / 4.5, abs=1e-3), "p50_ms": 10.0} | {
        "p99_ms": summary["serving"]["p99_ms"]
    }
    assert summary["live"]["windows"] == 2 and summary["live"]["windows_on_time"] == 1
    assert summary["live"]["lag_ms"]["p50"] == 2000
    window, preview = summary["methods"]["window"], summary["methods"]["preview"]
    assert (window["n"], preview["n"]) == (8, 9)
    assert window["seconds_per_image"] == pytest.approx(0.3)
    assert (window["iterations"], window["model_evaluations"]) == (60, 2)
    for name in ("psnr", "psnr_eq14", "ssim"):
        assert window[name]["low"] <= window[name]["mean"] <= window[name]["high"]
        assert window[name]["mean"] > preview[name]["mean"]
    assert summary["live"]["tiers"]["window"]["psnr"] == window["psnr"]

    table = pq.read_table(run / "rows.parquet").to_pylist()
    assert len(table) == 10
    assert table[3]["prediction"] is None and table[9]["preview_psnr"] is None and table[8]["window"] is None
    assert table[0]["window_psnr_eq14"] > 0 and table[0]["bytes"] == 32768 and table[0]["on_time"] is True

    video = cv2.VideoCapture(str(run / "demo.mp4"))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == 10
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(2)
    assert read_png(run / "grid.png") is not None

    page = (run / "index.html").read_text()
    assert page.count('{"when": ') == 10 and "frame 9, 4.5 s" in page  # every frame can be played
    for words in (
        "white-box",
        "splitsight demo --split L12",
        "demo.mp4",
        "grid.png",
        "(of 200 classes)",
        "knows 200 things",
    ):
        assert words in page, words
    without_script = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)=["']https?:""", without_script)
    assert "ox &amp; cart" in page and "&lt;b&gt;" in page
    assert "found first</b>" not in page and "match" not in summary["methods"]["window"]
    assert not list(run.glob(".*partial*")) and not list(run.glob("*.partial"))


def test_a_run_without_previews_has_no_panel_for_them(run: Path) -> None:
    join = Join(run)
    join.poll()
    titles = [[p.title for p in panels_of(join, join.row(0), replace(INFO, previews=p))] for p in (True, False)]
    assert len(titles[0]) == 3 and titles[1] == [titles[0][0], titles[0][2]]


def test_report_with_a_gallery(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The noisier tier finds the right frame less often; nothing is matched where a tier has no image."""
    from splitsight import targets
    from splitsight.metrics.gallery import Gallery

    folder, rng = tmp_path_factory.mktemp("gallery"), np.random.default_rng(5)
    for i in range(30):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        png(folder / f"{i}.png", cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC))
    png(run / "preview" / "000000.png", cv2.imread(str(folder / "3.png"))[..., ::-1].copy())
    gallery = Gallery.draw(folder, targets.load("resnet18"), size=30, features="pixels", seed=0, spare=True)
    join = Join(run)
    join.poll()
    summary = write_report(run, join, INFO, gallery=gallery)
    for section in (summary["methods"], summary["live"]["tiers"]):
        assert {(m["match"]["gallery"], m["match"]["features"]) for m in section.values()} == {(30, "pixels-16x16")}
        assert section["window"]["match"]["top1"]["mean"] == 1
        assert section["preview"]["match"]["top1"]["mean"] == pytest.approx(8 / 9)
    rows = pq.read_table(run / "rows.parquet").to_pylist()
    assert [r["window_rank"] for r in rows] == [1] * 8 + [None] * 2
    assert rows[0]["preview_rank"] > 1 and rows[9]["preview_rank"] is None
    page = (run / "index.html").read_text()
    assert "29 other images" in page and "found first (pixels-16x16)" in page and "100 % found first" in page


def test_report_with_an_evaluator(run: Path) -> None:
    """Both tiers of each frame are compared with the original by an independent classifier."""
    from splitsight import evaluators

    join = Join(run)
    join.poll()
    summary = write_report(run, join, INFO, evaluators=[evaluators.load()])
    for section in (summary["methods"], summary["live"]["tiers"]):
        assert 0 <= section["window"]["recognised:mbconv"]["mean"] <= 1
    assert "matched_top1:mbconv" not in summary["methods"] and "evaluator:mbconv" in summary["environment"]["weights"]
    column = pq.read_table(run / "rows.parquet")["window_recognised:mbconv"].to_pylist()
    assert set(column[:8]) <= {0.0, 1.0} and column[8:] == [None, None]
    assert "recognised (mbconv)" in (run / "index.html").read_text()


def test_captions_say_what_a_person_asks_before_decibels(run: Path) -> None:
    from splitsight import evaluators

    join = Join(run)
    join.poll()
    write_report(run, join, INFO, evaluators=[evaluators.load()])
    original, preview, window = panels_of(join, join.row(0), INFO)
    assert original.detail == "cloud: ox & cart 50 % (of 200 classes)"
    assert (preview.title, window.title) == ("preview, +30 ms", "window, +1.5 s")
    assert window.detail is not None and re.fullmatch(r"(not )?recognised · [\d.]+ dB", window.detail)
    assert panels_of(join, join.row(4), INFO)[-1].title == "window, +2.5 s (late)"
    join.row(4).iterations = join.row(4).model_evaluations = 0
    assert panels_of(join, join.row(4), INFO)[-1].title == "window, no step, +2.5 s (late)"
    assert replace(INFO, threat="black-box").title == "resnet18 at L8 · black-box · pnp"


def test_report_of_parts_started_by_hand(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The adversary's folder, and the edge's two places elsewhere; the recording says what was attacked."""
    import torch

    from splitsight import targets
    from splitsight.pipeline import EdgePipeline
    from splitsight.recording import RecordingWriter, Session
    from splitsight.wire import tensors
    from splitsight.wire.v1 import split_inference_pb2, tap_pb2

    elsewhere = tmp_path_factory.mktemp("edge")
    (run / "truth").rename(elsewhere / "truth")
    edge = EdgePipeline(targets.load("resnet18"), "L8")
    with pytest.raises(UserError, match="holds no run: give the folder"):
        report_run(ReportOptions(run))
    with RecordingWriter(run / "recording", Session("s", edge.description())) as writer:
        (features,) = edge(torch.zeros(1, 3, 64, 64))
        tensor = tensors.encode(features[0].numpy(), tensors.CodecSpec(), edge.specs[0])
        frame = split_inference_pb2.Frame(sequence=0, features=[tensor])
        writer.append(tap_pb2.TappedFrame(session_id="s", frame=frame.SerializeToString()))
    with pytest.raises(UserError, match=r"holds no originals.*--truth"):
        report_run(ReportOptions(run))
    (run / "edge.jsonl").rename(elsewhere / "answers.jsonl")
    with pytest.raises(UserError, match="--edge-report"):
        report_run(ReportOptions(run, truth=elsewhere / "truth"))
    setup = {"event": "setup", "attack": "dmb-multi:live", "threat": "white-box", "frames": 4, "stride_s": 0.5}
    lines = (run / "live.jsonl").read_text()
    (run / "live.jsonl").write_text(json.dumps(setup) + "\n" + lines)
    options = ReportOptions(run, truth=elsewhere / "truth", edge=elsewhere / "answers.jsonl", gallery_size=20)
    assert report_run(options) == run / "index.html"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["methods"]["window"]["match"]["gallery"] == 20
    assert "recognised:mbconv" in summary["methods"]["window"]
    assert summary["environment"]["run"]["solver"] == "dmb-multi:live" and summary["environment"]["run"]["fps"] == 2
    assert "resnet18 at L8 · white-box · dmb-multi:live" in (run / "index.html").read_text()
    assert read_png(run / "grid.png") is not None and (run / "demo.mp4").is_file()


def test_report_of_an_empty_run(tmp_path: Path) -> None:
    join = Join(tmp_path)
    join.poll()
    summary = write_report(tmp_path, join, INFO)
    assert summary["methods"] == {}
    assert summary["serving"]["frames"] == 0
    assert (tmp_path / "index.html").is_file() and not (tmp_path / "demo.mp4").exists()


def test_an_emulated_network_is_named(tmp_path: Path) -> None:
    profile = NetworkProfile(name="barn & field", uplink_mbps=2, downlink_mbps=float("inf"), latency_ms=9)
    summary = write_report(tmp_path, Join(tmp_path), replace(INFO, network=profile))
    assert "<b>barn &amp; field</b>: 2 Mbit/s up, unlimited down, 9 ms one way" in (tmp_path / "index.html").read_text()
    assert summary["environment"]["run"]["network"]["uplink_mbps"] == 2
    stored = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["environment"]["run"]["network"]["downlink_mbps"] is None


def test_prepare_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    prepare_folder(out, overwrite=False)
    (out / "truth").mkdir()
    (out / "summary.json").write_text("{}")
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"not empty.*--overwrite"):
        prepare_folder(out, overwrite=False)
    prepare_folder(out, overwrite=True)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is a file"):
        prepare_folder(out / "mine.txt", overwrite=False)
    with pytest.raises(UserError, match="cannot be written"):
        prepare_folder(out / "mine.txt" / "deeper", overwrite=False)
