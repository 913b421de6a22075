"""torchvision's wheel from PyPI without its links to CUDA, for machines that do not reach PyTorch's index.

PyPI's ``_C.so`` holds the CPU operators (non-maximum suppression among them) beside the CUDA ones, and is not loaded
where CUDA's libraries are missing, since it names them as needed. None of them is called on a CPU. The wheel brings
``libcudart`` itself; what it wants of PyTorch's CUDA libraries is given by a small library whose functions end the
process with a sentence. ``patchelf``, ``nm`` and a C compiler make that. An image that is meant to be used takes
PyTorch's own CPU build instead.
"""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from pathlib import Path

__all__ = ["without_cuda"]

_ALLOCATOR = "_ZN3c104cuda20CUDACachingAllocator9allocatorE"
"""The one variable among what is wanted."""

_NONE = "libc10_cuda_none.so"
_SAYS = "this build of torchvision has no CUDA"


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _source(library: Path) -> str:
    """C, for whatever of PyTorch's CUDA libraries is wanted; the symbols of libcudart have versions."""
    lines = ["#include <stdio.h>", "#include <stdlib.h>", f"void *{_ALLOCATOR}[2];"]
    for line in _run("nm", "-D", "--undefined-only", library).splitlines():
        symbol = line.split()[-1]
        if "4cuda" in symbol and "@" not in symbol and symbol != _ALLOCATOR:
            lines.append(f'void {symbol}(void) {{ fputs("{_SAYS}\\n", stderr); abort(); }}')
    return "\n".join(lines) + "\n"


def without_cuda(wheel: Path, out: Path) -> Path:
    """Write ``torchvision-VERSION+cpu-….whl`` beside the one that PyTorch's index has.

    Args:
        wheel: PyPI's.
        out: folder.

    Returns:
        What was written.

    Raises:
        subprocess.CalledProcessError: a tool failed.
        FileNotFoundError: it is not here.
    """
    name, version, *tags = wheel.name.split("-")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as packed:
        root = Path(folder)
        packed.extractall(root)
        library, libraries = root / "torchvision" / "_C.so", root / "torchvision.libs"
        source = root / "none.c"
        source.write_text(_source(library))
        _run("cc", "-shared", "-fPIC", "-o", libraries / _NONE, f"-Wl,-soname,{_NONE}", source)
        source.unlink()
        (cudart,) = libraries.glob("libcudart.*")
        _run("patchelf", "--replace-needed", "libcudart.so.13", cudart.name, library)
        _run("patchelf", "--replace-needed", "libc10_cuda.so", _NONE, "--remove-needed", "libtorch_cuda.so", library)
        _run("patchelf", "--set-rpath", "$ORIGIN/../torchvision.libs", library)
        for unused in libraries.glob("libnvjpeg.*"):
            unused.unlink()
        (info,) = root.glob("*.dist-info")
        metadata = info / "METADATA"
        metadata.write_text(metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n"))
        (info / "RECORD").write_text("")
        info.rename(root / f"{name}-{version}+cpu.dist-info")
        written = out / "-".join([name, f"{version}+cpu", *tags])
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as made:
            for file in sorted(root.rglob("*")):
                if file.is_file():
                    # the same bytes each time, so that the wheel has one hash
                    made.writestr(zipfile.ZipInfo(str(file.relative_to(root))), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return written
