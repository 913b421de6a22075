"""Registries: name → object, filled by decorator or by an entry point of another package.

A package adds, say, a target without a fork by declaring in its ``pyproject.toml``::

    [project.entry-points."splitsight.targets"]
    mynet = "mypackage.mynet:MyNet"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar, cast

from splitsight.errors import unknown_name

__all__ = ["Registry"]

S = TypeVar("S")
T = TypeVar("T")


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
        if self._package is not None:
            root = import_module(self._package)
            for module in iter_modules(root.__path__):
                if not module.name.startswith("_"):
                    import_module(f"{self._package}.{module.name}")
        for point in entry_points(group=f"splitsight.{self.kind}s"):
            self._items.setdefault(point.name, point.load())

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
