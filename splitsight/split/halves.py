"""The two halves of a model that was cut, and which of its weights a half reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from splitsight.errors import UserError
from splitsight.split.program import Batches

__all__ = ["Accepted", "First", "Second", "half_state"]

# BatchNorm counts its batches there in training and never reads it in eval mode
_UNREAD = "num_batches_tracked"


@dataclass(frozen=True)
class Accepted:
    """Tensors for which a traced half computes what the model computes.

    Attributes:
        shapes: without batch dimension.
        batches: batch sizes.
        dtypes: types; ``None`` for any floating-point type.
    """

    shapes: tuple[tuple[int, ...], ...]
    batches: Batches
    dtypes: tuple[torch.dtype, ...] | None = None

    def check(self, what: str, values: Sequence[Any]) -> None:
        """Refuse other tensors.

        Raises:
            UserError: names both, and what to do.
        """
        if len(values) != len(self.shapes) or not all(isinstance(v, Tensor) for v in values):
            kinds = ", ".join(type(v).__name__ for v in values) or "nothing"
            raise UserError(
                f"this half takes {len(self.shapes)} {what} tensor{'s' * (len(self.shapes) != 1)}, not {kinds}"
            )
        for value, shape in zip(values, self.shapes, strict=True):
            if value.ndim == 0 or tuple(value.shape[1:]) != shape:
                raise UserError(
                    f"this half was traced for {what}s of size {_size(shape)} and was given {_size(value.shape[1:])} "
                    f"(shape {tuple(value.shape)}): give that size, or trace the model again with an example of the "
                    "other size"
                )
            if len(value) != len(values[0]):
                raise UserError(
                    f"all {what}s need the same batch size, but these have {len(values[0])} and {len(value)}"
                )
        if len(values[0]) not in self.batches:
            raise UserError(
                f"this half computes what the model computes for batches of {self.batches}, "
                f"not of {len(values[0])}: give another number at a time"
            )
        for i, value in enumerate(values):
            if self.dtypes is None and not value.is_floating_point():
                raise UserError(f"this half takes floating-point {what}s, not {_type(value.dtype)}")
            if self.dtypes is not None and value.dtype != self.dtypes[i]:
                raise UserError(
                    f"this half was traced for {what}s of type {_type(self.dtypes[i])} and was given "
                    f"{_type(value.dtype)}: convert them, or trace the model again with an example of that type"
                )


class _Half(nn.Module):
    """A traced graph with what it may be given.

    Args:
        graph: computes the half.
        accepted: what it may be given.
        device: where it was traced.
    """

    def __init__(self, graph: fx.GraphModule, accepted: Accepted, device: torch.device) -> None:
        super().__init__()
        self.graph = graph
        self.accepted = accepted
        self._device = device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Half:
        """As in ``nn.Module``; the graph creates its constants on the new device, too."""
        super()._apply(fn, recurse)
        before, after = self._device, fn(torch.empty(0, device=self._device)).device
        if after != before:

            def moved(value: Any) -> Any:
                return after if isinstance(value, torch.device) and value.type == before.type else value

            for n in self.graph.graph.nodes:
                n.args = map_aggregate(n.args, moved)
                n.kwargs = map_aggregate(n.kwargs, moved)
            self.graph.recompile()
            self._device = after
        return self


class First(_Half):
    """F1: the model's inputs → tuple of the tensors that cross."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs as the model takes them, ``(B, …)`` each → tensors ``(B, …)``.

        Raises:
            UserError: inputs of another size or type than the example that the model was traced with.
        """
        self.accepted.check("input", inputs)
        return tuple(self.graph(*inputs))


class Second(_Half):
    """F2: the tensors that crossed → the model's output, in the model's own structure.

    Args:
        graph: computes the outputs.
        accepted: what it may be given.
        device: where it was traced.
        rebuild: puts what ``graph`` returns into the model's output structure.
        clone: copy the features first, for graphs that hold in-place operators.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        accepted: Accepted,
        device: torch.device,
        rebuild: Callable[[Any], Any],
        *,
        clone: bool = False,
    ) -> None:
        super().__init__(graph, accepted, device)
        self._rebuild = rebuild
        self._clone = clone

    def forward(self, *features: Tensor | Sequence[Tensor]) -> Any:
        """The tuple that F1 returned (or its tensors as arguments) → the model's output.

        Raises:
            UserError: features of another size than F1 gives.
        """
        values: list[Any] = list(features)
        if len(features) == 1 and isinstance(features[0], list | tuple):
            values = list(features[0])
        self.accepted.check("feature", values)
        return self._rebuild(self.graph(*(v.clone() for v in values) if self._clone else values))


def half_state(model: nn.Module, half: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a model that a half of it reads, under the model's names.

    A traced half holds what its graph reads; a half made of the model's modules holds theirs. The same cut gives
    the same names and values either way. A tensor is known by its memory: half and model must share it.

    Args:
        model: the whole model; names are those of its state dict and of its buffers outside of it.
        half: F1 or F2.

    Returns:
        In the model's order, the first name for tensors with several; then tensors of the half that the model
        does not hold (constants of the graph, preprocessing), under their names in the half. Counters of
        BatchNorm (``num_batches_tracked``) are left out, as nothing reads them in eval mode.
    """
    named: dict[tuple[Any, ...], str] = {}
    for name, tensor in _named(model):
        named.setdefault(_memory(tensor), name)
    prefixes = [f"{path}.graph.".lstrip(".") for path, m in half.named_modules() if isinstance(m, _Half)]
    found: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in _named(half):
        known = named.get(_memory(tensor)) if tensor.numel() else None
        if known is not None:
            found[known] = tensor
        else:
            for prefix in prefixes:
                if name.startswith(prefix):
                    name = prefix.removesuffix("graph.") + name.removeprefix(prefix)
            own[name] = tensor
    return {name: found[name] for name in named.values() if name in found} | own


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers in the order of a state dict, all names of each."""
    for path, m in module.named_modules(remove_duplicate=False):
        for values in (m._parameters, m._buffers):
            for key, value in values.items():
                if value is not None and key != _UNREAD:
                    yield (f"{path}.{key}" if path else key), value


def _memory(x: Tensor) -> tuple[Any, ...]:
    return x.device, x.data_ptr(), tuple(x.shape), x.stride(), x.dtype


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "1"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
