"""The page of results follows from the committed rows."""

from pathlib import Path

import pyarrow.parquet as pq

from scenarios.results_page import PAGE, README, RESULTS, page, with_table

ROOT = Path(__file__).resolve().parents[2]


def test_page_and_readme_are_up_to_date():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `python -m scenarios.results_page`"
    readme = (ROOT / README).read_text(encoding="utf-8")
    assert readme == with_table(readme), "run `python -m scenarios.results_page`"
    assert len(readme.encode()) <= 6000


def test_a_figure_is_the_mean_of_its_rows():
    rows = pq.read_table(RESULTS / "table-1.parquet").to_pylist()
    own = [row for row in rows if row["label"] == "best faithful" and row["split"] == "L8"]
    assert len(own) == 64
    mean = {name: sum(row[name] for row in own) / len(own) for name in ("psnr", "psnr_eq14", "ssim", "recognised")}
    first = sum(row["match_rank"] == 1 for row in own) / len(own)
    section = page().split("`splitsight run table-1`")[1].split("\n## ")[0]
    line = next(line for line in section.splitlines() if line.startswith("| best faithful |"))
    heading = next(line for line in section.splitlines() if "found first" in line).split("|")
    cell = line.split("|")[next(i for i, name in enumerate(heading) if name.strip() == "L8")].strip()
    quality = f"{mean['psnr']:.2f} / {mean['ssim']:.3f} ({mean['psnr_eq14']:.1f})"
    assert cell == f"{quality} · {100 * mean['recognised']:.1f} % · {100 * first:.1f} %"


def test_the_papers_figures_stand_beside_ours_marked_as_its_own():
    section = page().split("`splitsight run table-1`")[1].split("\n## ")[0]
    (line,) = (line for line in section.splitlines() if line.startswith("| *DMB, the paper's* |"))
    assert "psnr_eq14 41, ssim 0.97" in line and "psnr_eq14 29.1, ssim 0.86" in line


def test_every_file_of_rows_has_its_section():
    text = page()
    for path in RESULTS.glob("*.parquet"):
        assert (f"scenarios/results/{path.name}" in text) != path.stem.startswith("bench-")
    for path in (RESULTS / "defend").glob("*.parquet"):
        assert f"scenarios/results/defend/{path.name}" in text


def test_figures_of_privacy_and_of_still_scenes_are_those_of_their_rows():
    text = page()
    for row in pq.read_table(RESULTS / "defend" / "privacy-L8.parquet").to_pylist():
        assert row["shown_worst"] < row["epsilon"] and row["shown_real"] < row["epsilon"] and row["p"] > 1e-3
        assert f"| {row['law']} | {row['epsilon']:g} | {row['scale_over_clip']:.3f} |" in text
        assert row["closed_form"] is None or abs(row["closed_form"] - row["stream_epsilon"]) < 1e-6
    rows = pq.read_table(RESULTS / "defend" / "averaging-L8.parquet").to_pylist()
    own = [row["psnr"] for row in rows if (row["defense"], row["frames"]) == ("noise:ratio=1", 64)]
    assert f"{sum(own) / len(own):.2f} (" in text.split("## A scene that stands still, resnet18 at L8")[1]
