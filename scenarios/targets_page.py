"""The table of ``docs/targets.md``: each target at each split, ``python -m scenarios.targets_page [--measure]``.

``--measure`` cuts every network, checks on two random images that F2 after F1 is the whole network, and files what it
found in ``scenarios/results/targets.json``; without it the table is made from that file and from the committed rows of
attacks. Networks of which no trained weights can be had here are measured with random ones, which changes neither
shapes nor whether two halves are the whole; none of them is attacked.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from scenarios.results_page import RESULTS
from scenarios.run.spec import load_scenario, read_scenario
from splitsight.errors import UserError
from splitsight.files import write_json, write_text
from splitsight.targets import OUTPUT, TARGETS, Target, load

__all__ = ["MEASURED", "PAGE", "measure", "with_table"]

PAGE = Path("docs/targets.md")
"""From the root of the repository."""

MEASURED = RESULTS / "targets.json"
"""What ``--measure`` found."""

RANDOM = ("torchvision:resnet50", "torchvision:vit_b_16")
"""Networks of libraries that are measured with random weights, beside a detector and CLIP that are made for it."""

_BEGIN, _END = "<!-- targets -->\n", "<!-- end of targets -->"
_ATTACKS = ("table-1", "table-1-resnet50", "table-1-vit", "table-1-yolo", "table-1-clip", "efficientnet-lite0")
"""Scenarios whose rows are looked into, the first that has attacked a point counts."""
_METHODS = ("do tuned", "best faithful")


@torch.no_grad()
def measure(target: Target, weights: str) -> Iterator[dict[str, Any]]:
    """A row a split point, shallow first, and one for the output.

    Args:
        target: that is cut.
        weights: what its weights are, in a word.
    """
    x = torch.rand(2, 3, target.input_size, target.input_size, generator=torch.Generator().manual_seed(0))
    whole = target.model(target.preprocess(x))
    for point in [*target.points(), OUTPUT]:
        cut = target.cut(point)
        difference = (cut.tail(cut.head(x)) - whole).abs().max()
        yield {
            "target": target.name,
            "weights": weights,
            "task": target.task.name,
            "input": target.input_size,
            "split": point,
            "features": [spec.show for spec in cut.specs],
            "layout": [spec.layout for spec in cut.specs],
            "bytes": sum(spec.bytes for spec in cut.specs),
            "difference": float(difference),
            "largest": float(whole.abs().max()),
        }


def _measured() -> Iterator[dict[str, Any]]:
    for name in TARGETS.names():
        try:
            yield from measure(load(name), "trained")
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    for name in RANDOM:
        yield from measure(_moved(load(name, Path("random"))), "random")
    with tempfile.TemporaryDirectory() as folder:
        detector, clip = _detector(Path(folder) / "resnet50-416"), _clip(Path(folder) / "clip-vit-base-patch32")
        yield from measure(_moved(load(f"yolov2:{detector}", Path("random"))), "random")
        yield from measure(_moved(load(f"transformers:{clip}")), "random")


@torch.no_grad()
def _moved(target: Target) -> Target:
    """With every weight moved at random: layers that begin as zero or as the identity would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for weight in target.model.parameters():
        weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return target


def _detector(folder: Path) -> Path:
    """COCO's 80 classes and the anchors of YOLOv2 (of 13 cells) on ResNet-50."""
    folder.mkdir()
    cells = ((0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778), (9.77052, 9.16828))
    anchors = [[width / 13, height / 13] for width, height in cells]
    write_json(
        folder / "config.json", {"labels": [f"class {i}" for i in range(80)], "anchors": anchors, "input_size": 416}
    )
    return folder


def _clip(folder: Path) -> Path:
    """CLIP ViT-B/32, which is the library's default configuration."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return folder


def _attacked() -> dict[tuple[str, str], str]:
    """By target and split, what attacks obtained."""
    found: dict[tuple[str, str], str] = {}
    for name in _ATTACKS:
        if not (file := RESULTS / f"{name}.parquet").is_file():
            continue
        scenario = load_scenario(read_scenario(name)[0], name=name)
        rows = pq.read_table(file).to_pylist()
        for split in dict.fromkeys(row["split"] for row in rows):
            texts = []
            for label in _METHODS:
                own = [r for r in rows if (r["split"], r["label"]) == (split, label) and r["psnr"] is not None]
                if own:
                    psnr, ssim = (sum(r[metric] for r in own) / len(own) for metric in ("psnr", "ssim"))
                    texts.append(f"{label.split()[0]} {psnr:.1f} / {ssim:.2f}")
            found.setdefault((scenario.target, split), " · ".join(texts))
    return found


def _table() -> Iterator[str]:
    attacked = _attacked()
    yield "| target | split | features | layout | KiB a frame | F2∘F1 off by at most | attacked: PSNR / SSIM |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in json.loads(MEASURED.read_text(encoding="utf-8")):
        name = row["target"] + (" *(random weights)*" if row["weights"] == "random" else "")
        off = "0" if row["difference"] == 0 else f"{row['difference']:.0e} of {row['largest']:.2g}"
        cells = [
            name,
            row["split"],
            " + ".join(row["features"]),
            " + ".join(row["layout"]),
            f"{row['bytes'] / 1024:.1f}",
        ]
        yield f"| {' | '.join([*cells, off, attacked.get((row['target'], row['split']), '')])} |"


def with_table(text: str) -> str:
    """The page with its table made anew."""
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + "\n" + "\n".join(_table()) + "\n\n" + _END + rest.split(_END)[1]


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        write_json(MEASURED, list(_measured()))
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
