"""``package.module:callable`` and ``file.py:callable``: a network of the user's own code.

The callable takes nothing, or ``weights`` (a path or ``None``), and returns an ``nn.Module`` or a
:class:`~splitsight.targets.Target`. A module is a classifier whose classes are called by their numbers, and it gets
images in [0, 1] as they are. A Target says its preprocessing, labels, task and split points itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from splitsight.errors import UserError
from splitsight.targets import Target, load_state
from splitsight.targets.sources import check_run, classifier_of, classify, seeded

__all__ = ["build"]


def build(what: str, weights: Path | None, input_size: int | None) -> Target:
    """Load the callable, call it, and make a target of what it returns.

    Args:
        what: ``module:callable`` or ``file.py:callable``.
        weights: state dict for it; ``None`` leaves the weights that the callable gave it.
        input_size: side of the images; may be ``None`` where a Target is returned.

    Raises:
        UserError: there is no such module or callable, it fails, returns something else, or the weights or the size do
            not fit.
    """
    module, _, call = what.rpartition(":")
    found: Any = seeded(lambda: _imported(module))
    for part in call.split("."):
        if not hasattr(found, part):
            raise UserError(f"{module} has no '{call}': give a callable that returns an nn.Module or a Target")
        found = getattr(found, part)
    made, loaded = _called(found, what, weights)
    if isinstance(made, Target):
        if weights is not None and not loaded:
            raise UserError(
                f"{what} returns a Target, which loads its weights itself: give the callable a parameter 'weights', or "
                "leave --weights out"
            )
        if input_size not in (None, made.input_size):
            raise UserError(f"{what} takes images of {made.input_size} pixels, not {input_size}: leave --input out")
        return made
    if not isinstance(made, nn.Module):
        raise UserError(f"{what} gives a {type(made).__name__}: let it return an nn.Module or a Target")
    if input_size is None:
        raise UserError(
            f"the size of the images that {what} takes is not known: give it with --input, such as --input 224, or let "
            "the callable return a Target"
        )
    if weights is not None and not loaded:
        load_state(made, weights, name=what, classifier=classifier_of(made))
    if next(made.parameters(), None) is None:
        raise UserError(f"{what} has no parameters: there is nothing to split")
    preprocess = nn.Identity()
    task = classify(check_run(made, preprocess, input_size, what), [], what)
    return Target(what, made, preprocess, task, input_size)


def _imported(module: str) -> ModuleType:
    file = Path(module)
    if module.endswith(".py"):
        if not file.is_file():
            raise UserError(f"no such file: {module}: give FILE.py:CALLABLE")
        # under a name that hides no other module; dataclasses and the like look their module up by it
        spec = importlib.util.spec_from_file_location(f"splitsight_target_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise UserError(f"{module} is no Python module: give FILE.py:CALLABLE")
        _look_in(file.resolve().parent)
        loaded = importlib.util.module_from_spec(spec)
    else:
        spec = loaded = None
        _look_in(Path.cwd())
    try:
        if spec is None or spec.loader is None or loaded is None:
            return importlib.import_module(module)
        sys.modules[loaded.__name__] = loaded
        spec.loader.exec_module(loaded)
        return loaded
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"no module '{module}' here: give one that can be imported from this folder, or FILE.py:CALLABLE"
            ) from error
        raise UserError(f"{module} needs the module '{error.name}': install it") from error
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{module} cannot be imported ({type(error).__name__}: {_line(error)}): mend it") from error


def _look_in(folder: Path) -> None:
    """Behind everything else, so that nothing there can take the place of an installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _called(found: Any, what: str, weights: Path | None) -> tuple[Any, bool]:
    """What the callable returns, and whether it was given the weights."""
    if isinstance(found, nn.Module | Target):
        return found, False
    if not callable(found):
        raise UserError(f"{what} is a {type(found).__name__}, which cannot be called: name a function or a class")
    try:
        takes = inspect.signature(found).parameters
    except (TypeError, ValueError):  # of some built-in callables
        takes = {}
    given = {"weights": weights} if "weights" in takes else {}
    missing = [
        n for n, p in takes.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if missing := [name for name in missing if name not in given]:
        raise UserError(f"{what} needs '{missing[0]}': name a callable that takes nothing, or 'weights' alone")
    try:
        return seeded(lambda: found(**given)), bool(given)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{what} fails ({type(error).__name__}: {_line(error)}): mend it") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
