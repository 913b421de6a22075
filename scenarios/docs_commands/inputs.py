"""Small inputs under the names that the pages use: pictures, shards, clips, a network of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scenarios.docs_commands.found import ROOT, examples, pages
from splitsight.wire.certs import make_certificates

__all__ = ["install", "make_inputs"]

_FOLDERS = ("photos", "photos-of-others", "DIR", "clips-of-images")
_TABLES = ("photos.parquet", "held-out.parquet", "others.parquet", "validation.parquet")
_CLASSES = 10
_MODULE = '''"""A network for the page on choosing a split."""

from torch import nn


def build():
    """Three layers."""
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
    return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
'''


def _pictures(number: int) -> list[bytes]:
    """Smooth random pictures as PNG, 96 × 80."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, 5, 6, 3), np.uint8)
    images = [cv2.resize(c, (96, 80), interpolation=cv2.INTER_CUBIC) for c in coarse]
    return [cv2.imencode(".png", image)[1].tobytes() for image in images]


def _clip(path: Path, seconds: int = 4) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 80))
    still = np.random.default_rng(1).integers(0, 256, (5, 6, 3), np.uint8)
    still = np.asarray(cv2.resize(still, (96, 80), interpolation=cv2.INTER_CUBIC))
    for k in range(10 * seconds):
        writer.write(np.roll(still, 2 * k, axis=1))
    writer.release()


def _own_network(folder: Path) -> None:
    """``nets.py`` as the page has it, ``mymodule.py``, and weights of both."""
    import torch
    from safetensors.torch import save_file

    text = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    (folder / "nets.py").write_text("\n\n".join(blocks), encoding="utf-8")
    (folder / "mymodule.py").write_text(_MODULE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        import mymodule  # type: ignore[import-not-found]
        import nets  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(folder))
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in nets.ResNet20().state_dict().items()}}, folder / "resnet20.th"
    )
    save_file(mymodule.build().state_dict(), str(folder / "mine.safetensors"))


def _detector(folder: Path) -> None:
    """A small random detector, in the form that ``yolov2:FOLDER`` reads."""
    from safetensors.torch import save_file

    from splitsight.targets.yolo_small import ResNet50Yolo

    folder.mkdir()
    config = {"labels": ["cat", "dog"], "anchors": [[0.3, 0.4]], "input_size": 64, "width": 4, "hidden": 8}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(ResNet50Yolo(5 + 2, width=4, hidden=8).state_dict(), folder / "model.safetensors")


def make_inputs(folder: Path) -> None:
    """Everything that commands read, in a folder that exists."""
    pictures = _pictures(160)
    for name in _FOLDERS:
        (folder / name).mkdir()
        for i, data in enumerate(pictures[:48]):
            (folder / name / f"{i:03d}.png").write_bytes(data)
    rows = {"image": [{"bytes": data, "path": None} for data in pictures], "label": [i % _CLASSES for i in range(160)]}
    for name in _TABLES:
        pq.write_table(pa.table(rows), folder / name)
    for name in ("shards", "SHARDS"):
        (folder / name).mkdir()
        for part in range(2):
            pq.write_table(pa.table(rows), folder / name / f"train-{part}.parquet")
        classes = "".join(f"{i}\tn{i}\tclass {i}\n" for i in range(_CLASSES))
        (folder / name / "classes.tsv").write_text(classes, encoding="utf-8")
    (folder / "clips").mkdir()
    for name in ("clip.mp4", "clips/one.mp4", "clips/two.mp4"):
        _clip(folder / name)
    _own_network(folder)
    _detector(folder / "detector")
    _packages(folder)
    made = folder / "certificates"
    make_certificates(made, ["cloud.example"])
    for name in ("operator.token", "server.pem", "server.key"):
        shutil.copy(made / name, folder / name)


def _packages(folder: Path) -> None:
    """``coarse/`` of the page on testing a defence, and ``outside/`` of the pages on extending."""
    extend = ROOT / "docs" / "extend"
    overview = (extend / "README.md").read_text(encoding="utf-8")
    files = {
        "outside/pyproject.toml": overview.partition("```toml\n")[2].partition("```")[0],
        "outside/outside/__init__.py": "",
    }
    for page in pages():
        inside = "outside/" if page.parent == extend else ""
        files |= {inside + name: text for name, text in examples(page).items()}
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def install(package: Path, site: Path) -> None:
    """Install a package into a folder of its own, without an index.

    Raises:
        subprocess.CalledProcessError: it cannot be.
    """
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), "--upgrade", str(package)]
    subprocess.run(command, check=True, capture_output=True, text=True)
