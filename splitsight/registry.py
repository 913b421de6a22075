"""Registries: name → object, filled by decorator or by an entry point of another package.

A package adds, say, a target without a fork by declaring in its ``pyproject.toml``::

    [project.entry-points."splitsight.targets"]
    mynet = "mypackage.mynet:MyNet"

What is a file or a folder (a scenario, a prior) is declared by its path, or by a function that returns it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar, cast

from splitsight.errors import UserError, unknown_name

__all__ = ["PathRegistry", "Registry"]

S = TypeVar("S")
T = TypeVar("T")


def _declared(kind: str) -> Iterator[EntryPoint]:
    return iter(entry_points(group=f"splitsight.{kind}s"))


def _load(kind: str, point: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        UserError: it cannot be imported, or calls itself something else.
    """
    try:
        found = point.load()
    except Exception as error:  # whatever the other package raises when it is imported
        raise _unusable(kind, point, f"cannot be loaded ({type(error).__name__}: {error})") from error
    called = getattr(found, "name", point.name)
    if isinstance(called, str) and called != point.name:
        raise _unusable(kind, point, f"calls itself '{called}'")
    return found


def _unusable(kind: str, point: EntryPoint, why: str) -> UserError:
    return UserError(
        f"the {kind} '{point.name}' of another package ({point.value}) {' '.join(why.split())}: "
        "mend or uninstall that package"
    )


class Registry(Generic[T]):
    """Named objects of one kind.

    Args:
        kind: singular word for messages (``"target"``); the entry-point group is ``splitsight.<kind>s``.
        package: package whose modules register themselves when imported (loaded on first look-up).
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._items: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[S], S]:
        """Decorator that files its object under ``name``; a name can be taken once."""

        def add(item: S) -> S:
            if name in self._items and self._items[name] is not item:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            # a class keeps its own type, so that checkers know its constructor; that it is a T cannot be said as well
            self._items[name] = cast("T", item)
            return item

        return add

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            if self._package is not None:
                root = import_module(self._package)
                for module in iter_modules(root.__path__):
                    if not module.name.startswith("_"):
                        import_module(f"{self._package}.{module.name}")
            for point in _declared(self.kind):
                found = _load(self.kind, point)
                if self._items.setdefault(point.name, found) is not found:
                    raise _unusable(self.kind, point, "has a name that is taken")
        except BaseException:
            self._loaded = False  # the next look-up says the same
            raise

    def get(self, name: str) -> T:
        """The object filed under ``name``.

        Raises:
            UserError: no such name; the message lists those that exist.
        """
        self._load()
        try:
            return self._items[name]
        except KeyError:
            raise unknown_name(self.kind, name, list(self._items)) from None

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._items)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        self._load()
        return iter(sorted(self._items.items()))


class PathRegistry:
    """Files or folders of one kind by name: this package's, and those that entry points name.

    Args:
        kind: as for :class:`Registry`.
        own: finds this package's.
    """

    def __init__(self, kind: str, own: Callable[[], Mapping[str, Path]]) -> None:
        self.kind = kind
        self._own = own

    def sources(self) -> dict[str, Path | EntryPoint]:
        """By name, sorted: this package's paths, and the entry points of others, which are not loaded for this.

        Raises:
            UserError: two of the same name.
        """
        found: dict[str, Path | EntryPoint] = dict(self._own())
        for point in _declared(self.kind):
            if point.name in found:
                raise _unusable(self.kind, point, "has a name that is taken")
            found[point.name] = point
        return dict(sorted(found.items()))

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self.sources())

    def get(self, name: str) -> Path:
        """The path filed under ``name``.

        Raises:
            UserError: no such name; or what an entry point names is no path that exists, and no function that returns
                one.
        """
        sources = self.sources()
        if name not in sources:
            raise unknown_name(self.kind, name, list(sources))
        source = sources[name]
        if isinstance(source, Path):
            return source
        found = _load(self.kind, source)
        if callable(found):
            try:
                found = found()
            except UserError:
                raise
            except Exception as error:  # whatever the other package's function raises
                raise _unusable(self.kind, source, f"cannot be found ({type(error).__name__}: {error})") from error
        if not isinstance(found, str | os.PathLike) or not Path(found).exists():
            raise _unusable(self.kind, source, f"is no path that exists, but {found!r}")
        return Path(found)
