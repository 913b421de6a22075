"""Which sets of values of a traced model are split points, and what they are called.

* Points of one tensor are the dominators of the output (for a network: its bridges). One sweep in execution
  order finds them all: d is one when nothing computed before d is read after d.
* Where one value is followed by others that skip past it, they cross together: for every value d, what the rest
  of the model reads of d and the values it was computed from.
* Two parallel branches: remove each value in turn and look for the dominators of what remains. Every point of
  two tensors is of one of these kinds.
* Points of three and more also include the sets of live values that occur in execution order; any other valid
  set can still be named, as ``"a+b+c"``.

A crossing value must be a floating-point tensor with the batch as its first dimension and fixed others, since
that is what can be streamed and batched a frame at a time. Sizes are recomputed on the right; parameters,
buffers and constants stay in the half, or both halves, that read them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.split.halves import Accepted, First, Second
from splitsight.split.model import same
from splitsight.split.program import BATCHES, NotTraceable, Program, copies, operator_name

__all__ = ["CutPoint", "Traced"]

_SIZE_METHODS = {"size", "dim", "numel", "ndimension", "stride"}


@dataclass(frozen=True)
class CutPoint:
    """A place where the model can be cut.

    Attributes:
        name: path of the module whose output crosses (``"layer2"``), or ``module.operator`` inside one
            (``"layer2.0.add"``, ``#2`` for the second of that name); several joined with ``+``.
        position: values computed by then, counted in execution order over the whole model; grows with depth.
        layers: operators with a weight matrix (convolution, linear, attention) in F1.
        tensors: what crosses, in execution order.
        flops: floating-point operations of F1 an image (2 a multiply-add; convolutions and matrix products).
        parameters: numbers in the parameters that F1 reads.
        aliases: other names of the same point: inner modules that end there, too.
    """

    name: str
    position: int
    layers: int
    tensors: tuple[FeatureSpec, ...]
    flops: int
    parameters: int
    aliases: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes a frame in float32 over all crossing tensors."""
        return sum(t.bytes for t in self.tensors)


class Traced:
    """A model as a dataflow graph; made by :func:`trace`.

    Args:
        program: the graph, the weights, and what was measured on them.
    """

    def __init__(self, program: Program) -> None:
        self._program, self._module = program, program.module
        self._nodes = list(self._module.graph.nodes)
        self._order = {n: i for i, n in enumerate(self._nodes)}
        self._inputs = [n for n in self._nodes if n.op == "placeholder"]
        self._output = self._nodes[-1]
        self._shapes, self._scalars, self._flops = program.shapes, program.scalars, program.flops
        self._data = self._input_dependent()
        self._users = {n: [u for u in n.users if u in self._data] for n in self._nodes}
        self._sources = {n: [s for s in n.all_input_nodes if s in self._data] for n in self._nodes}
        self._position = {n: i for i, n in enumerate(m for m in self._nodes if m in self._data)}
        self._names, self._aliases = self._name_values()
        self._parameters, self._read = self._parameters_read()
        self._by_name = {name: n for n, names in self._aliases.items() for name in names}
        self._by_name.update({name: n for n, name in self._names.items()})

    # ---------------------------------------------------------------- what is a value

    def _input_dependent(self) -> set[fx.Node]:
        """Nodes whose value depends on input values (not merely on sizes)."""
        data: set[fx.Node] = set(self._inputs)
        for n in self._nodes:
            if n.op != "placeholder" and any(s in data for s in n.all_input_nodes) and not _reads_size(n):
                data.add(n)
        data.add(self._output)
        return data

    def _can_cross(self, n: fx.Node) -> bool:
        return self._obstacle(n) is None

    def _obstacle(self, n: fx.Node) -> str | None:
        """Why a value cannot cross; ``None`` where it can."""
        if n.op == "placeholder" or n in self._program.inputs_again:
            return "is the input itself"
        if n not in self._shapes:
            return "is not a tensor"
        a, b = self._shapes[n]
        floating = self._program.dtypes[n].is_floating_point
        if floating and len(a) > 0 and (a[0], b[0]) == BATCHES and a[1:] == b[1:]:
            return None
        return "is not a floating-point tensor with the batch as its first dimension and fixed others"

    def _parameters_read(self) -> tuple[list[int], dict[fx.Node, int]]:
        """Sizes of the parameters, and for each node which of them it is computed from, as bits."""
        bits: dict[int, int] = {}
        sizes: list[int] = []
        read: dict[fx.Node, int] = {}

        def bit(p: nn.Parameter) -> int:
            if id(p) not in bits:
                bits[id(p)] = 1 << len(sizes)
                sizes.append(p.numel())
            return bits[id(p)]

        for n in self._nodes:
            read[n] = 0
            for source in n.all_input_nodes:
                read[n] |= read[source]
            if n.op == "get_attr":
                value = _attribute(self._module, str(n.target))
                if isinstance(value, nn.Parameter):
                    read[n] |= bit(value)
            elif n.op == "call_module":
                for p in self._module.get_submodule(str(n.target)).parameters():
                    read[n] |= bit(p)
        return sizes, read

    def _name_values(self) -> tuple[dict[fx.Node, str], dict[fx.Node, list[str]]]:
        """A name for each value, from the module that it is the output of, and further names."""
        names: dict[fx.Node, str] = {}
        aliases: dict[fx.Node, list[str]] = {}
        taken: dict[str, int] = {}
        paths = {n: _module_paths(n) for n in self._nodes}

        def unique(name: str) -> str:
            taken[name] = taken.get(name, 0) + 1
            return name if taken[name] == 1 else f"{name}#{taken[name]}"

        for n in self._nodes:
            if n not in self._data or n.op in ("placeholder", "output"):
                continue
            # outermost first: modules that this value leaves
            ends = [path for key, path in paths[n].items() if any(key not in paths[u] for u in self._users[n])]
            inner = next(reversed(paths[n].values()), "")
            local = f"{inner}.{operator_name(n)}" if inner else operator_name(n)
            candidates = [unique(name) for name in ends or [local]]
            names[n], aliases[n] = candidates[0], candidates[1:]
        return names, aliases

    # ---------------------------------------------------------------- which sets are cuts

    def _dominators(self, removed: frozenset[fx.Node]) -> list[fx.Node]:
        """Values through which every path from an input to the output passes that avoids ``removed``."""
        back, todo = set(), [self._output]
        while todo:
            n = todo.pop()
            if n not in back and n not in removed:
                back.add(n)
                todo.extend(self._sources[n])
        ahead: set[fx.Node] = set()
        order = [n for n in self._nodes if n in back]
        for n in order:
            if n.op == "placeholder" or any(s in ahead for s in self._sources[n]):
                ahead.add(n)
        if self._output not in ahead:
            return []
        found, latest = [], -1
        for n in order:
            if n not in ahead or n is self._output:
                continue
            if latest <= self._order[n]:
                found.append(n)
            latest = max(latest, max((self._order[u] for u in self._users[n] if u in ahead), default=-1))
        return found

    def _first_half(self, crossing: Iterable[fx.Node]) -> set[fx.Node]:
        """Data nodes that the crossing values are computed from, themselves included."""
        half: set[fx.Node] = set()
        todo = list(crossing)
        while todo:
            n = todo.pop()
            if n not in half:
                half.add(n)
                todo.extend(self._sources[n])
        return half

    def _live(self, half: set[fx.Node]) -> set[fx.Node]:
        """Values of a first half that the second half reads, if it is what the outputs still need."""
        needed, todo = set(), [self._output]
        while todo:
            n = todo.pop()
            if n not in needed and n not in half:
                needed.add(n)
                todo.extend(self._sources[n])
        return {s for n in needed for s in self._sources[n] if s in half}

    def _is_cut(self, crossing: frozenset[fx.Node]) -> bool:
        if not all(self._can_cross(n) for n in crossing) or self._live(self._first_half(crossing)) != crossing:
            return False
        # F2 must compute something: a set of values that the outputs read as they are is no cut
        if set(self._sources[self._output]) <= crossing:
            return False
        try:
            self._second(crossing)
        except NotTraceable:
            return False
        return True

    def cut_points(self, max_tensors: int = 1) -> list[CutPoint]:
        """All points where at most ``max_tensors`` tensors cross, shallow first; see :func:`cut_points`."""
        if max_tensors < 1:
            raise UserError("max_tensors must be at least 1")
        sets: set[frozenset[fx.Node]] = {frozenset([d]) for d in self._dominators(frozenset())}
        bridges = {n for s in sets for n in s}
        if max_tensors >= 2:
            for n in self._data - {self._output}:
                if self._can_cross(n):
                    live = self._live(self._first_half([n]))
                    if len(live) <= max_tensors:
                        sets.add(frozenset(live))
                    if n not in bridges:
                        sets.update(frozenset([n, d]) for d in self._dominators(frozenset([n])) if d not in bridges)
        if max_tensors >= 3:
            half: set[fx.Node] = set()
            for n in self._nodes[:-1]:
                if n in self._data:
                    half.add(n)
                    live = frozenset(self._live(half))
                    if 0 < len(live) <= max_tensors:
                        sets.add(live)
        points = [self._point(s) for s in sets if s and self._is_cut(s)]
        if not points and not self._wider():
            raise UserError(self._why_none())
        return sorted(points, key=lambda p: (p.position, len(p.tensors), p.name))

    def _frontiers(self) -> list[frozenset[fx.Node]]:
        """What is live after each value in execution order, whether or not it can cross."""
        half, found = set(self._inputs), []
        for n in self._nodes[:-1]:
            if n in self._data and n.op != "placeholder":
                half.add(n)
                found.append(frozenset(self._live(half)))
        return found

    def _wider(self) -> list[CutPoint]:
        """Points where any number of tensors crosses, narrowest first; not all of them."""
        points = [self._point(s) for s in set(self._frontiers()) if s and self._is_cut(s)]
        return sorted(points, key=lambda p: (len(p.tensors), p.position))

    def _why_none(self) -> str:
        """Why the model has no point with any number of tensors."""
        last = set(self._sources[self._output])
        inner = [s - last for s in self._frontiers() if s and not s <= last]
        obstacles = [(n, why) for s in inner for n in s if n.op != "placeholder" and (why := self._obstacle(n))]
        if obstacles:
            n, why = obstacles[0]
            reason = f"'{self._names[n]}' {why}, and something like it is needed wherever it could be cut"
        elif any(inner):
            reason = "wherever it could be cut, the rest also reads the input itself"
        else:
            reason = "nothing is computed before its output that could cross"
        return f"the model has no split point, because {reason}: choose another model, or another output of it"

    def _point(self, crossing: frozenset[fx.Node]) -> CutPoint:
        ordered = sorted(crossing, key=self._order.__getitem__)
        half = self._first_half(crossing)
        return CutPoint(
            name="+".join(self._names[n] for n in ordered),
            position=max(self._position[n] for n in ordered),
            layers=sum(self._is_layer(n) for n in half),
            tensors=tuple(FeatureSpec(self._names[n], self._shapes[n][0][1:]) for n in ordered),
            flops=sum(self._flops.get(n, 0) for n in half),
            parameters=self._parameter_count(ordered),
            aliases=tuple(self._aliases[ordered[0]]) if len(ordered) == 1 else (),
        )

    def _parameter_count(self, crossing: Iterable[fx.Node]) -> int:
        read = 0
        for n in crossing:
            read |= self._read[n]
        return sum(size for i, size in enumerate(self._parameters) if read >> i & 1)

    def _is_layer(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return any(p.ndim > 1 for p in self._module.get_submodule(str(n.target)).parameters())
        return n.op == "call_function" and any(
            s not in self._data and s in self._shapes and len(self._shapes[s][0]) > 1 and self._flops.get(n, 0) > 0
            for s in n.all_input_nodes
        )

    # ---------------------------------------------------------------- the two halves

    def resolve(self, point: str | CutPoint) -> CutPoint:
        """The valid point of that name.

        Raises:
            UserError: no such value, or values that are no cut; names valid points nearby.
        """
        return self._point(self._crossing(point))

    def _crossing(self, point: str | CutPoint) -> frozenset[fx.Node]:
        if not isinstance(point, str | CutPoint):
            raise UserError(f"a split point is a name or a cut point, not {type(point).__name__}")
        name = point if isinstance(point, str) else point.name
        parts = [p.strip() for p in name.split("+")]
        unknown = [p for p in parts if p not in self._by_name]
        if unknown:
            points = self.cut_points(1)
            close = difflib.get_close_matches(unknown[0], [p.name for p in points], 4, 0.3)
            near = close or [p.name for p in (points or self._wider())[:4]]
            none = "" if points else "it has no point of a single tensor, and "
            raise UserError(
                f"the model has no value '{unknown[0]}' to split at: {none}valid points are for example "
                + ", ".join(near)
            )
        crossing = frozenset(self._by_name[p] for p in parts)
        if not self._is_cut(crossing):
            raise UserError(self._why_not(name, crossing))
        return crossing

    def _why_not(self, name: str, crossing: frozenset[fx.Node]) -> str:
        last = max(self._position[n] for n in crossing)
        bad = [n for n in crossing if not self._can_cross(n)]
        live = self._live(self._first_half(crossing))
        also = sorted(self._names.get(n, n.name) for n in live - crossing)
        idle = sorted(self._names[n] for n in crossing - live)
        if bad:
            why = f"'{self._names[bad[0]]}' {self._obstacle(bad[0])}"
        elif also:
            why = f"later layers also read {', '.join(also[:3])}" + (" and more" if len(also) > 3 else "")
        elif idle:
            why = f"no later layer reads {', '.join(idle[:3])} beside the rest"
        else:
            why = "nothing, or only sizes that cannot be recomputed, would be left on one side"
        points = self.cut_points(1)
        before = [p.name for p in points if p.position <= last][-2:]
        after = [p.name for p in points if p.position > last][:2]
        nearby = before + after
        near = f"valid points nearby are {', '.join(nearby)}"
        if not nearby:
            wider = sorted(self._wider(), key=lambda p: abs(p.position - last))[:3]
            names = ", ".join(p.name for p in wider)
            near = f"it has no point of a single tensor, and valid points are for example {names}"
        return f"'{name}' is not a valid split point, because {why}: {near}"

    def split(self, point: str | CutPoint) -> tuple[First, Second]:
        """``(F1, F2)`` at a point; see :func:`split`."""
        crossing = self._crossing(point)
        cut, program = self._point(crossing), self._program
        inputs, expected = program.examples[1 if BATCHES[1] in program.batches else 0]
        device = inputs[0].device
        takes = Accepted(tuple(tuple(x.shape[1:]) for x in inputs), program.batches, tuple(x.dtype for x in inputs))
        first = First(self._graph_module(self._first(crossing)), takes, device).eval()
        takes = Accepted(tuple(t.shape for t in cut.tensors), program.batches)
        graph = self._graph_module(self._second(crossing))
        second = Second(graph, takes, device, program.rebuild, clone=not program.functional).eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            features = first(*copies(inputs))
            # a view loses its strides and alignment when F2 copies it, which may cost its last bits
            exact = program.functional or all(_packed(z) for z in features)
            if not same(pytree.tree_leaves(second(features)), expected, exact=exact):
                raise UserError(f"cutting at '{cut.name}' changes what the model computes: choose another point")
        return first, second

    def whole(self, *inputs: Tensor) -> Any:
        """The traced model, uncut; equal to the model in eval mode."""
        return self._program.run(*inputs)

    def _graph_module(self, graph: fx.Graph) -> fx.GraphModule:
        graph.lint()
        return fx.GraphModule(self._module, graph)

    def _first(self, crossing: frozenset[fx.Node]) -> fx.Graph:
        graph = fx.Graph()
        made: dict[fx.Node, Any] = {}
        for n in self._inputs:
            made[n] = graph.placeholder(n.name)
        needed, todo = set(self._inputs), list(crossing)
        while todo:
            n = todo.pop()
            if n not in needed:
                needed.add(n)
                todo.extend(n.all_input_nodes)
        for n in self._nodes:
            if n in needed and n not in made:
                made[n] = graph.node_copy(n, made.__getitem__)
        graph.output(tuple(made[n] for n in sorted(crossing, key=self._order.__getitem__)))
        return graph

    def _second(self, crossing: frozenset[fx.Node]) -> fx.Graph:
        graph = fx.Graph()
        ordered = sorted(crossing, key=self._order.__getitem__)
        made: dict[fx.Node, Any] = {n: graph.placeholder(n.name) for n in ordered}
        batch: list[fx.Node] = []

        def value(n: fx.Node) -> Any:
            if n not in made:
                made[n] = build(n)
            return made[n]

        def build(n: fx.Node) -> Any:
            if n in self._scalars:
                a, b = self._scalars[n]
                if a == b:
                    return a
                if (a, b) == BATCHES:
                    if not batch:
                        batch.append(graph.call_function(torch.ops.aten.sym_size.int, (made[ordered[0]], 0)))
                    return batch[0]
            if n.op == "placeholder":
                raise NotTraceable(f"'{n.name}' would have to cross as well")
            return graph.node_copy(n, value)

        needed, todo = set(), [self._output]
        while todo:
            n = todo.pop()
            if n not in needed and n not in crossing:
                needed.add(n)
                # a scalar is rebuilt from the batch size on demand, so what it was measured on need not exist
                todo.extend(s for s in n.all_input_nodes if s not in self._scalars)
        for n in self._nodes:  # in the model's order
            if n in needed:
                value(n)
        return graph


def _reads_size(n: fx.Node) -> bool:
    """The node asks a tensor for its shape or type, not for its values."""
    if n.op == "call_method":
        return n.target in _SIZE_METHODS
    if n.target is getattr:
        return n.args[1] in ("shape", "ndim", "dtype", "device")
    name = str(n.target)
    return n.op == "call_function" and name.startswith(("aten.sym_size", "aten.sym_stride", "aten.sym_numel"))


def _module_paths(n: fx.Node) -> dict[str, str]:
    """Calls of modules that the node belongs to, outermost first: key of the call → path of the module."""
    stack = n.meta.get("nn_module_stack") or {}
    return {key: path for key, (path, _) in stack.items() if path}


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _packed(z: Tensor) -> bool:
    """Copying the tensor changes neither its strides nor how it is aligned in memory."""
    return bool(z.is_contiguous() and z.storage_offset() == 0)
