"""How a target is specified: one string that names a network, wherever ``--target`` or ``target:`` takes one.

==============================  ======================================================================================
``resnet18``                    a registered family (``splitsight list targets``)
``torchvision:resnet50``        of a library: torchvision's classifiers, ``timm:NAME``, ``transformers:FOLDER`` (or the
                                id of one that is in the cache)
``yolov2:FOLDER``               a detector in a folder, see :mod:`splitsight.targets.sources.yolov2`
``package.module:build``        a callable of a module that Python finds from here; ``nets/mine.py:build``, of a file
``…@96``                        any but the first kind, on images of 96 × 96 pixels (what ``--input 96`` adds)
==============================  ======================================================================================

:attr:`Specification.name` is what the network is called in rows, sessions and names of caches. It is the same on every
machine: folders are left out, so ``/srv/nets/mine.py:build`` is called ``mine:build``. This module knows no networks;
an adversary without F1 reads names by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from splitsight.errors import UserError

__all__ = ["LIBRARIES", "Specification", "specify", "target_name"]

LIBRARIES = ("timm", "torchvision", "transformers", "yolov2")
"""Prefixes of networks out of other libraries, or of folders in a form of their own."""

_FOLDERS = ("transformers", "yolov2")
_SIZED = re.compile(r"(.+)@([0-9x]+)", re.DOTALL)


@dataclass(frozen=True)
class Specification:
    """A specification, taken apart.

    Attributes:
        source: a library, ``""`` for a registered family, ``"module"`` for a callable.
        what: the name within the source; ``module:callable`` or ``file.py:callable`` as given.
        input_size: side of the images in pixels, if it was given.
    """

    source: str
    what: str
    input_size: int | None = None

    @classmethod
    def parse(cls, text: str) -> Specification:
        """Read a specification.

        Raises:
            UserError: a size that is none, or one for a registered family.
        """
        size = None
        if sized := _SIZED.fullmatch(text):
            text, size = sized[1], _side(sized[2])
        prefix, colon, rest = text.partition(":")
        if not colon:
            if size is not None:
                raise UserError(f"the target '{text}' has an input size of its own: leave '{size}' (--input) out")
            return cls("", text)
        if prefix in LIBRARIES:
            return cls(prefix, rest, size)
        return cls("module", text, size)

    @property
    def name(self) -> str:
        """What the network is called; a specification of the same network on another machine may differ, not this."""
        if not self.source:
            return self.what
        size = "" if self.input_size is None else f"@{self.input_size}"
        if self.source == "module":
            module, _, call = self.what.rpartition(":")
            stem = PurePath(module.replace("\\", "/")).name.removesuffix(".py") if module.endswith(".py") else module
            return f"{stem}:{call}{size}"
        what = self.what
        if self.source in _FOLDERS:
            what = PurePath(what.replace("\\", "/")).name or what
        return f"{self.source}:{what}{size}"


def _side(text: str) -> int:
    """Pixels of ``96``, ``96x96`` or ``3x96x96``."""
    numbers = [int(part) for part in text.split("x")] if re.fullmatch(r"\d+(x\d+){0,2}", text) else []
    if len(numbers) == 3 and numbers[0] == 3:
        numbers = numbers[1:]
    if not numbers or len(numbers) > 2 or len(set(numbers)) > 1 or numbers[0] < 1:
        raise UserError(
            f"the input size '{text}' is none that can be fed: give the side of square RGB images in pixels, such as "
            "224 or 3x224x224"
        )
    return numbers[0]


def specify(target: str, size: str | None) -> str:
    """A specification with the input size that was given beside it.

    Args:
        target: a specification.
        size: ``96`` or ``3x96x96``; ``None`` leaves the specification as it is.

    Raises:
        UserError: no such size, another one is in the specification, or it names a family with a size of its own.
    """
    if size is None:
        return target
    side, own = _side(size), Specification.parse(target).input_size
    if own is not None and own != side:
        raise UserError(f"--input {size} and the target {target} differ: give one of the two sizes")
    sized = target if own is not None else f"{target}@{side}"
    Specification.parse(sized)
    return sized


def target_name(target: str) -> str:
    """:attr:`Specification.name` of a specification; of a name, itself."""
    return Specification.parse(target).name
