"""Cut any PyTorch model in two, anywhere that a small set of tensors crosses.

The model is traced into its dataflow graph (``torch.export``, else ``torch.fx``). A set of values C is a split
point when every path from the inputs to the outputs passes through C and nothing else computed before C is
needed after it. Then F1 computes C from the inputs, F2 computes the outputs from C, no work is done twice, and

    F2(F1(x)) = model(x), bit for bit in eval mode,

because both halves run the very operators of the model, in its order, on its own weights (which are shared,
not copied). That equality is verified on an example before the halves are handed out.

Two things lie outside of it. Memory layout: where a model hands on a transposed view, kernels may sum in another
order once the tensor has been made contiguous by a wire (or, for models that write in place, by F2's own copy),
and the last bits of the output differ. Gradient mode:
PyTorch's attention layers have a fast path without gradients; such models are cut around the layer
(``torch.fx``), which keeps the path they take.

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

import contextlib
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["CutPoint", "FeatureSpec", "First", "Second", "Traced", "cut_points", "split", "trace"]

# Two batch sizes: what differs between runs at these sizes depends on the batch, the rest is constant.
_BATCHES = (2, 3)
_TOLERANCES = {torch.float16: (1e-3, 1e-5), torch.bfloat16: (1.6e-2, 1e-5), torch.float64: (1e-7, 1e-7)}
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
        aliases: other names of the same point: inner modules that end there, too.
    """

    name: str
    position: int
    layers: int
    tensors: tuple[FeatureSpec, ...]
    flops: int
    aliases: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes a frame in float32 over all crossing tensors."""
        return sum(t.bytes for t in self.tensors)


class First(nn.Module):
    """F1: the model's inputs → tuple of the tensors that cross.

    Args:
        graph: computes them, as a tuple.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs as the model takes them, ``(B, …)`` each → tensors ``(B, …)``."""
        return tuple(self.graph(*inputs))


class Second(nn.Module):
    """F2: the tensors that crossed → the model's output, in the model's own structure.

    Args:
        graph: computes the outputs.
        rebuild: puts what ``graph`` returns into the model's output structure.
        clone: copy the features first, for graphs that hold in-place operators.
    """

    def __init__(self, graph: fx.GraphModule, rebuild: Callable[[Any], Any], *, clone: bool = False) -> None:
        super().__init__()
        self.graph = graph
        self._rebuild = rebuild
        self._clone = clone

    def forward(self, *features: Tensor | Sequence[Tensor]) -> Any:
        """The tuple that F1 returned (or its tensors as arguments) → the model's output."""
        values = features[0] if len(features) == 1 and not isinstance(features[0], Tensor) else features
        return self._rebuild(self.graph(*(v.clone() for v in values) if self._clone else values))


def cut_points(model: nn.Module, example: Tensor | tuple[Tensor, ...], *, max_tensors: int = 1) -> list[CutPoint]:
    """All points of a model where at most ``max_tensors`` tensors cross, shallow first.

    Args:
        model: any module; its weights and training flag are left as they are.
        example: valid input, ``(B, …)``, or a tuple of inputs with the same batch size.
        max_tensors: 1 for bridges only; 2 and more to cut through skip connections.

    Raises:
        UserError: the model cannot be traced; says why.
    """
    return trace(model, example).cut_points(max_tensors)


def split(model: nn.Module, example: Tensor | tuple[Tensor, ...], point: str | CutPoint) -> tuple[First, Second]:
    """Cut a model at a point: ``(F1, F2)`` in eval mode with ``F2(F1(x))`` equal to ``model(x)`` bit for bit.

    Args:
        model: any module. The halves share its parameters and buffers.
        example: valid input, ``(B, …)``, or a tuple of inputs. The halves take any batch size.
        point: a cut point or its name or alias; values joined with ``+`` for several tensors.

    Raises:
        UserError: the model cannot be traced, or the point is not valid; then valid ones nearby are named.
    """
    return trace(model, example).split(point)


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Traced:
    """Trace a model once, to list and make several cuts.

    Args:
        model: any module that takes tensors with the batch first.
        example: valid input, ``(B, …)``, or a tuple of inputs with the same batch size.

    Raises:
        UserError: the model cannot be traced with a free batch size.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or any(not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 for x in inputs):
        raise UserError("the example input must be a tensor, or a tuple of tensors, with a non-empty batch dimension")
    batches = [tuple(_tiled(x, b) for x in inputs) for b in _BATCHES]
    with _eval(model), torch.no_grad():
        try:
            expected = [pytree.tree_leaves(model(*_copies(b))) for b in batches]
        except Exception as error:
            raise UserError(f"the model does not run on the example input: {_one_line(error)}") from error
        reasons = []
        for tracer in (_export, _export_functional, _symbolic):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    traced = tracer(model, batches)
                for batch, leaves in zip(batches, expected, strict=True):
                    if not _same(pytree.tree_leaves(traced.whole(*_copies(batch))), leaves):
                        raise _NotTraceable("the traced graph does not compute what the model computes")
            except Exception as error:  # tracing runs arbitrary code of the model
                reasons.append(f"{tracer.__name__.strip('_')}: {_one_line(error)}")
                continue
            traced._expected = (batches[1], expected[1])
            return traced
    raise UserError(
        f"{type(model).__name__} cannot be traced into a graph with a free batch size, so it cannot be split: "
        + "; ".join(reasons)
    )


class _NotTraceable(Exception):
    pass


class Traced:
    """A model as a dataflow graph; made by :func:`trace`.

    Args:
        module: the graph and the weights.
        batches: inputs at two batch sizes.
        rebuild: from what the graph's output node holds to the model's output.
        functional: no operator in the graph writes into its arguments.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        batches: Sequence[tuple[Tensor, ...]],
        rebuild: Callable[[Any], Any],
        *,
        functional: bool,
    ) -> None:
        self._module, self._rebuild, self._functional = module, rebuild, functional
        self._expected: tuple[tuple[Tensor, ...], list[Any]] | None = None
        self._nodes = list(module.graph.nodes)
        self._order = {n: i for i, n in enumerate(self._nodes)}
        self._inputs = [n for n in self._nodes if n.op == "placeholder"]
        self._output = self._nodes[-1]
        recorders = [_Recorder(module) for _ in batches]
        recorders[0].run_counted(*_copies(batches[0]))
        recorders[1].run(*_copies(batches[1]), enable_io_processing=False)
        first, second = (r.values for r in recorders)
        # only shapes and numbers are kept, so that the intermediate results can be freed
        self._shapes = {
            n: (tuple(first[n].shape), tuple(second[n].shape), first[n].is_floating_point())
            for n in self._nodes
            if isinstance(first.get(n), Tensor)
        }
        self._scalars = {n: (first[n], second[n]) for n in self._nodes if n in first and _is_plain(first[n])}
        self._flops = {n: f // _BATCHES[0] for n, f in recorders[0].flops.items()}
        self._data = self._input_dependent()
        self._users = {n: [u for u in n.users if u in self._data] for n in self._nodes}
        self._sources = {n: [s for s in n.all_input_nodes if s in self._data] for n in self._nodes}
        self._position = {n: i for i, n in enumerate(m for m in self._nodes if m in self._data)}
        self._names, self._aliases = self._name_values()
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
        """Floating-point, batch first, all else fixed, and not the input itself."""
        if n.op == "placeholder" or n not in self._shapes:
            return False
        a, b, floating = self._shapes[n]
        return floating and len(a) > 0 and (a[0], b[0]) == _BATCHES and a[1:] == b[1:]

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
            local = f"{inner}.{_operator_name(n)}" if inner else _operator_name(n)
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
        except _NotTraceable:
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
        return sorted(points, key=lambda p: (p.position, len(p.tensors), p.name))

    def _point(self, crossing: frozenset[fx.Node]) -> CutPoint:
        ordered = sorted(crossing, key=self._order.__getitem__)
        half = self._first_half(crossing)
        return CutPoint(
            name="+".join(self._names[n] for n in ordered),
            position=max(self._position[n] for n in ordered),
            layers=sum(self._is_layer(n) for n in half),
            tensors=tuple(FeatureSpec(self._names[n], self._shapes[n][0][1:]) for n in ordered),
            flops=sum(self._flops.get(n, 0) for n in half),
            aliases=tuple(self._aliases[ordered[0]]) if len(ordered) == 1 else (),
        )

    def _is_layer(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return any(p.ndim > 1 for p in self._module.get_submodule(str(n.target)).parameters())
        return n.op == "call_function" and any(
            s.op == "get_attr" and s in self._shapes and len(self._shapes[s][0]) > 1 and self._flops.get(n, 0) > 0
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
        name = point if isinstance(point, str) else point.name
        parts = [p.strip() for p in name.split("+")]
        unknown = [p for p in parts if p not in self._by_name]
        if unknown:
            singles = self.cut_points(1)
            close = difflib.get_close_matches(unknown[0], [p.name for p in singles], 4, 0.3)
            near = close or [p.name for p in singles[:4]]
            raise UserError(
                f"the model has no value '{unknown[0]}' to split at: valid points are for example {', '.join(near)}"
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
            why = f"'{self._names[bad[0]]}' is not a floating-point tensor with the batch as its first dimension"
        elif also:
            why = f"later layers also read {', '.join(also[:3])}" + (" and more" if len(also) > 3 else "")
        elif idle:
            why = f"no later layer reads {', '.join(idle[:3])} beside the rest"
        else:
            why = "nothing, or only sizes that cannot be recomputed, would be left on one side"
        points = self.cut_points(1)
        before = [p.name for p in points if p.position <= last][-2:]
        after = [p.name for p in points if p.position > last][:2]
        near = (
            f"valid points nearby are {', '.join(before + after)}"
            if before or after
            else "it has no single-tensor point"
        )
        return f"'{name}' is not a valid split point, because {why}: {near}"

    def split(self, point: str | CutPoint) -> tuple[First, Second]:
        """``(F1, F2)`` at a point; see :func:`split`."""
        crossing = self._crossing(point)
        name = self._point(crossing).name
        first = First(self._graph_module(self._first(crossing))).eval()
        second = Second(self._graph_module(self._second(crossing)), self._rebuild, clone=not self._functional).eval()
        if self._expected is not None:
            inputs, expected = self._expected
            with torch.no_grad():
                features = first(*_copies(inputs))
                # a view loses its strides and alignment when F2 copies it, which may cost its last bits
                exact = self._functional or all(_packed(z) for z in features)
                if not _same(pytree.tree_leaves(second(features)), expected, exact=exact):
                    raise UserError(f"cutting at '{name}' changes what the model computes: choose another point")
        return first, second

    def whole(self, *inputs: Tensor) -> Any:
        """The traced model, uncut; equal to the model in eval mode."""
        return self._rebuild(fx.Interpreter(self._module).run(*inputs, enable_io_processing=False))

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
                if (a, b) == _BATCHES:
                    if not batch:
                        batch.append(graph.call_function(torch.ops.aten.sym_size.int, (made[ordered[0]], 0)))
                    return batch[0]
            if n.op == "placeholder":
                raise _NotTraceable(f"'{n.name}' would have to cross as well")
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


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value and the floating-point operations of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.flops: dict[fx.Node, int] = {}
        self._counter: FlopCounterMode | None = None

    def run_counted(self, *inputs: Tensor) -> None:
        with FlopCounterMode(display=False) as self._counter:
            self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops() if self._counter else 0
        value = self.values[n] = super().run_node(n)
        if self._counter:
            self.flops[n] = self._counter.get_total_flops() - before
        return value


# -------------------------------------------------------------------- tracing


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    return torch.export.export(model, _copies(inputs), dynamic_shapes=free, strict=False)


def _rebuilder(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[Any], Any]:
    spec = pytree.tree_flatten(model(*_copies(inputs)))[1]
    return lambda leaves: pytree.tree_unflatten(list(leaves), spec)


def _export(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Traced:
    module = _exported(model, batches[0]).module()
    _functionalize(module, batches[0])
    return Traced(module, batches, _rebuilder(model, batches[0]), functional=True)


def _export_functional(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Traced:
    """PyTorch's own functionalisation: handles writes through views, but replaces some operators."""
    module = _exported(model, batches[0]).run_decompositions({}).module()
    return Traced(module, batches, _rebuilder(model, batches[0]), functional=True)


def _symbolic(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Traced:
    return Traced(fx.symbolic_trace(model), batches, lambda output: output, functional=False)


def _functionalize(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Replace in-place operators by their pure counterparts (same kernels, same bits), so that no half writes
    into a tensor that the other half, the wire, or an eavesdropper holds.

    Raises:
        _NotTraceable: a write is seen through another view of the same memory, or has no pure counterpart.
    """
    graph = module.graph
    for n in list(graph.nodes):
        if n.target == "_guards_fn" and not n.users:
            graph.erase_node(n)  # checks the traced shapes; each half has others
    recorder = _Recorder(module)
    recorder.run(*_copies(inputs), enable_io_processing=False)
    memory = {
        n: v.untyped_storage().data_ptr() for n, v in recorder.values.items() if isinstance(v, Tensor) and v.numel()
    }
    nodes = list(graph.nodes)
    order = {n: i for i, n in enumerate(nodes)}
    for n in nodes:
        schema = getattr(n.target, "_schema", None) if n.op == "call_function" else None
        if schema is None or not schema.is_mutable:
            continue
        written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        name = schema.name.split("::")[-1]
        packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        pure = getattr(packet, n.target._overloadname, None)
        if written != [0] or pure is None:
            raise _NotTraceable(f"operator {n.target} writes into its arguments")
        base = n.args[0]
        for other in nodes[: order[n]]:
            shared = other is not base and memory.get(other) is not None and memory.get(other) == memory.get(base)
            if shared and any(order.get(u, len(nodes)) > order[n] for u in other.users):
                raise _NotTraceable(f"{n.name} writes into memory that is also read as {other.name}")
        n.target = pure
        base.replace_all_uses_with(n, delete_user_cb=lambda user, n=n: order.get(user, len(nodes)) > order[n])
    graph.lint()
    module.recompile()


# -------------------------------------------------------------------- small things


@contextlib.contextmanager
def _eval(model: nn.Module) -> Iterator[None]:
    flags = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, flag in flags.items():
            m.training = flag


def _tiled(x: Tensor, batch: int) -> Tensor:
    x = x.detach()
    return torch.cat([x] * -(-batch // len(x)))[:batch]


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Clones, because a model may write into its input."""
    return tuple(x.clone() for x in inputs)


def _packed(z: Tensor) -> bool:
    """Copying the tensor changes neither its strides nor how it is aligned in memory."""
    return z.is_contiguous() and z.storage_offset() == 0


def _same(a: list[Any], b: list[Any], exact: bool = True) -> bool:
    """Equal bit for bit, NaN included; else up to the rounding of sums taken in another order."""

    def equal(x: Any, y: Any) -> bool:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return bool(x == y)
        if x.shape != y.shape or x.dtype != y.dtype:
            return False
        if not exact and x.is_floating_point():
            # torch.testing's tolerances of the type
            rtol, atol = _TOLERANCES.get(x.dtype, (1.3e-6, 1e-5))
            return torch.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True)
        return bool(((x == y) | ((x != x) & (y != y))).all())

    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, int | float | bool | str | torch.dtype | torch.device) or value is None


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


def _operator_name(n: fx.Node) -> str:
    if n.op == "call_module":
        return str(n.target).rsplit(".", 1)[-1]
    schema = getattr(n.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(n.target, "__name__", str(n.target))
    return name.strip("_")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
