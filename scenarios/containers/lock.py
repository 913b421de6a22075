"""``python -m scenarios.containers.lock``: the packages of the images, with a hash of every file that may be taken.

The versions are those of the environment that this runs in, which is the one that the tests ran in, so far as
``pyproject.toml`` allows them. PyTorch is pinned apart, since its CPU builds come from an index of their own and its
CUDA builds bring 3 GB of libraries:

* ``packages.txt``: everything but PyTorch, from PyPI;
* ``torch-cpu.txt``: ``torch`` and ``torchvision`` without CUDA, from PyTorch's index (x86-64 and ARM);
* ``torch-gpu.txt``: the same versions with CUDA, from PyPI (x86-64).

It needs ``uv`` (``pip install uv``), which resolves. Where PyTorch's index cannot be reached, the hashes that are there
stay, if they are for the same versions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from splitsight.errors import UserError
from splitsight.files import write_text

__all__ = ["CPU_INDEX", "HERE", "TORCH", "cpu_builds", "locked", "main"]

HERE = Path(__file__).parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH = {"torch": "2.13.0", "torchvision": "0.28.0"}
"""Of all images; raise both together."""

_PYTHON = "3.11"
_CUDA = re.compile(r"(torch|torchvision|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
_NOTE = "# Made by `python -m scenarios.containers.lock` from pyproject.toml: run that, do not edit this.\n"


def locked(name: str) -> dict[str, str]:
    """Package → version, of a lock file in this folder."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (HERE / name).read_text(encoding="utf-8"), re.MULTILINE))


def cpu_builds(page: str, name: str, version: str) -> list[str]:
    """SHA-256 of a package's Linux CPU builds.

    Args:
        page: of the index, HTML with a link and a hash for each file.
        name: of the package.
        version: without ``+cpu``.

    Raises:
        UserError: there are none.
    """
    build = rf"{name}-{re.escape(version)}(?:%2B|\+)cpu-cp311-cp311-[\w.]*linux[\w.]*\.whl#sha256=([0-9a-f]{{64}})"
    found = sorted(set(re.findall(build, page)))
    if not found:
        raise UserError(f"the index has no CPU build of {name} {version} for Python {_PYTHON}: choose another version")
    return found


def _entries(text: str) -> Iterator[str]:
    """A requirement with its hashes, each."""
    yield from re.findall(r"^[\w.-]+==[^\\\n]*(?:\\\n {4}--hash=[^\\\n]*)*\n", text, re.MULTILINE)


def _resolve(uv: str) -> str:
    """All packages with their hashes, at the versions that are installed here where that is possible."""
    installed = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in distributions()}
    pins = TORCH | {n: v for n, v in installed.items() if not _CUDA.match(f"{n}==") and n != "splitsight"}
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        options = ["--generate-hashes", "--no-annotate", "--no-header", "--python-platform", "linux", "--quiet"]
        source = HERE.parents[1] / "pyproject.toml"
        command = [uv, "pip", "compile", source, *options, "--python-version", _PYTHON, "--constraints", constraints]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"uv finds no set of packages: {' '.join(done.stderr.split())}")
    return done.stdout


def _cpu(index: str) -> str:
    lines = []
    for name, version in TORCH.items():
        try:
            with urllib.request.urlopen(f"{index}/{name}/", timeout=20) as answer:
                hashes = cpu_builds(answer.read().decode(), name, version)
        except OSError as error:
            if locked("torch-cpu.txt").get(name) != f"{version}+cpu":
                raise UserError(
                    f"{index} cannot be reached ({error}), and no hashes of {name} {version} are here"
                ) from None
            print(f"{index} cannot be reached: the hashes of {name} {version} stay as they are")
            text = (HERE / "torch-cpu.txt").read_text(encoding="utf-8")
            lines += [entry for entry in _entries(text) if entry.startswith(f"{name}==")]
        else:
            lines.append(" \\\n    ".join([f"{name}=={version}+cpu", *(f"--hash=sha256:{h}" for h in hashes)]) + "\n")
    return "".join(lines)


def main(index: str = CPU_INDEX) -> None:
    """Write the three files.

    Raises:
        UserError: ``uv`` is missing or finds no solution, or the CPU builds have other versions and no index.
    """
    uv = shutil.which("uv")
    if uv is None:
        raise UserError("uv resolves the versions and is not here: pip install uv")
    entries = list(_entries(_resolve(uv)))
    files = {
        "packages.txt": "".join(entry for entry in entries if not _CUDA.match(entry)),
        "torch-gpu.txt": "".join(entry for entry in entries if _CUDA.match(entry)),
        "torch-cpu.txt": _cpu(index),
    }
    for name, text in files.items():
        write_text(HERE / name, _NOTE + text)
        print(f"{name}: {len(locked(name))} packages")


if __name__ == "__main__":
    main()
