"""A model as a graph of operators, and what each of them gave when it ran at two batch sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from splitsight.split.model import generators_state

__all__ = [
    "BATCHES",
    "Batches",
    "NotTraceable",
    "Program",
    "RandomOutput",
    "Rebuild",
    "Recorder",
    "as_is",
    "copies",
    "operator_name",
]

# Two batch sizes: what differs between runs at these sizes depends on the batch, the rest is constant.
BATCHES = (2, 3)

_BATCH = re.compile(r"L\['\w+'\](?:\[\d+\])*\.size\(\)\[0\]")


class NotTraceable(Exception):
    """A way of tracing does not suit the model."""


class Rebuild:
    """From the leaves of a model's output to its structure; can be pickled.

    Args:
        output: any output of the model.
    """

    def __init__(self, output: Any) -> None:
        self._spec = pytree.tree_flatten(output)[1]

    def __call__(self, leaves: Any) -> Any:
        """Leaves in order → the structure."""
        return pytree.tree_unflatten(list(leaves), self._spec)


def as_is(output: Any) -> Any:
    """The output of a graph that keeps the model's structure."""
    return output


@dataclass(frozen=True)
class Batches:
    """Batch sizes for which a traced graph is the model; it takes one branch wherever the model asks for the size.

    Attributes:
        least: smallest.
        most: largest; ``None`` for any.
        guards: further conditions, as Python expressions over ``b``.
    """

    least: int = 1
    most: int | None = None
    guards: tuple[str, ...] = ()

    def __contains__(self, b: int) -> bool:
        """The graph computes what the model computes for b images."""
        if b < self.least or (self.most is not None and b > self.most):
            return False
        return all(eval(g, {"__builtins__": {}, "math": math}, {"b": b}) for g in self.guards)

    def __str__(self) -> str:
        sizes = f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"
        return " with ".join([sizes, *(re.sub(r"\bb\b", "batch", g) for g in self.guards)])

    @classmethod
    def of(cls, program: torch.export.ExportedProgram) -> Batches:
        """What an exported program with a free batch size assumes about it."""
        # torch.export treats sizes 0 and 1 apart whatever the model does, so the lower bound says nothing
        most = [int(r.upper) for r in program.range_constraints.values() if r.upper.is_Integer]
        guards = [_BATCH.sub("b", code) for code in getattr(program, "_guards_code", [])]
        return cls(1, min(most, default=None), tuple(g for g in guards if "L[" not in g and g != "b == b"))


@dataclass
class Program:
    """A traced model.

    Attributes:
        module: the graph and the weights.
        rebuild: from what the graph's output node holds to the model's output.
        functional: no operator of the graph writes into its arguments.
        batches: for which the graph is the model.
        examples: inputs at the two batch sizes, and what the model gave (leaves).
        shapes: of every tensor, at both sizes.
        dtypes: of every tensor.
        scalars: sizes and other plain values, at both.
        flops: of every node, an image.
        inputs_again: values that are an input, unchanged.
    """

    module: fx.GraphModule
    rebuild: Callable[[Any], Any]
    functional: bool
    batches: Batches = field(default_factory=Batches)
    examples: list[tuple[tuple[Tensor, ...], list[Any]]] = field(default_factory=list)
    shapes: dict[fx.Node, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    dtypes: dict[fx.Node, torch.dtype] = field(default_factory=dict)
    scalars: dict[fx.Node, tuple[Any, Any]] = field(default_factory=dict)
    flops: dict[fx.Node, int] = field(default_factory=dict)
    inputs_again: set[fx.Node] = field(default_factory=set)

    def run(self, *inputs: Tensor) -> Any:
        """The model's output, by the graph."""
        return self.rebuild(fx.Interpreter(self.module).run(*inputs, enable_io_processing=False))

    def record(self, batches: Sequence[tuple[Tensor, ...]], *, draws: bool) -> list[list[Any]]:
        """Run the graph at both batch sizes and keep what is needed of its values; returns the outputs' leaves.

        Args:
            batches: inputs at the two batch sizes.
            draws: the model draws random numbers.

        Raises:
            NotTraceable: the output depends on random numbers.
        """
        recorders = [Recorder(self.module, draws=draws) for _ in BATCHES]
        recorders[0].run_counted(*copies(batches[0]))
        recorders[1].run(*copies(batches[1]), enable_io_processing=False)
        first, second = (r.values for r in recorders)
        nodes = list(self.module.graph.nodes)
        random = _ancestors(nodes[-1]) & recorders[0].random
        if random:
            raise RandomOutput
        # only shapes and numbers are kept, so that the intermediate results can be freed
        tensors = [n for n in nodes if isinstance(first.get(n), Tensor)]
        self.shapes = {n: (tuple(first[n].shape), tuple(second[n].shape)) for n in tensors}
        self.dtypes = {n: first[n].dtype for n in tensors}
        self.scalars = {n: (first[n], second[n]) for n in nodes if n in first and _is_plain(first[n])}
        self.flops = {n: f // BATCHES[0] for n, f in recorders[0].flops.items()}
        given = {_place(first[n]) for n in tensors if n.op == "placeholder"}
        self.inputs_again = {n for n in tensors if n.op != "placeholder" and _place(first[n]) in given}
        return [pytree.tree_leaves(self.rebuild(r.values[nodes[-1]])) for r in recorders]


class RandomOutput(Exception):
    """The output depends on random numbers."""


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every value and the floating-point operations of every node.

    Args:
        module: the graph.
        draws: look which nodes draw random numbers.
    """

    def __init__(self, module: fx.GraphModule, *, draws: bool = False) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.flops: dict[fx.Node, int] = {}
        self.random: set[fx.Node] = set()
        self._draws = draws
        self._counter: FlopCounterMode | None = None

    def run_counted(self, *inputs: Tensor) -> None:
        """Run, and count."""
        with FlopCounterMode(display=False) as self._counter:
            self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        """Run one operator."""
        before = self._counter.get_total_flops() if self._counter else 0
        state = generators_state() if self._draws else None
        value = self.values[n] = super().run_node(n)
        if self._counter:
            self.flops[n] = self._counter.get_total_flops() - before
        if self._draws and generators_state() != state:
            self.random.add(n)
        return value


def copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Clones, because a model may write into its input."""
    return tuple(x.clone() for x in inputs)


def operator_name(n: fx.Node) -> str:
    """What a node does, without the underscores of in-place and private operators."""
    if n.op == "call_module":
        return str(n.target).rsplit(".", 1)[-1]
    schema = getattr(n.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(n.target, "__name__", str(n.target))
    return name.strip("_")


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, todo = set(), [node]
    while todo:
        n = todo.pop()
        if n not in found:
            found.add(n)
            todo.extend(n.all_input_nodes)
    return found


def _place(x: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies and how it is read."""
    return x.data_ptr(), tuple(x.shape), x.stride(), x.dtype


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, int | float | bool | str | torch.dtype | torch.device) or value is None
