"""From a model to its graph: ``torch.export``, its functionalised form, or ``torch.fx``, whichever fits first."""

from __future__ import annotations

import copy
import difflib
import io
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from splitsight.errors import UserError
from splitsight.split.cuts import CutPoint, Traced
from splitsight.split.halves import First, Second
from splitsight.split.model import PrivateCopy, accepted, generators_kept, generators_state, one_line, same
from splitsight.split.program import (
    BATCHES,
    Batches,
    NotTraceable,
    Program,
    RandomOutput,
    Rebuild,
    Recorder,
    as_is,
    copies,
    operator_name,
)

__all__ = ["cut_points", "split", "trace"]

_RANDOM = "{} draws random numbers in eval mode, so that its halves could not give what it gives: switch them off"
_SEEDS = 5


def cut_points(model: nn.Module, example: Tensor | tuple[Tensor, ...], *, max_tensors: int = 1) -> list[CutPoint]:
    """All points of a model where at most ``max_tensors`` tensors cross, shallow first.

    Args:
        model: any module; is left as it is.
        example: valid input, ``(B, …)``, or a tuple of inputs with the same batch size.
        max_tensors: 1 for bridges only; 2 and more to cut through skip connections.

    Returns:
        Empty where more tensors cross everywhere.

    Raises:
        UserError: the model cannot be traced, or has no point for any number of tensors; says why.
    """
    return trace(model, example).cut_points(max_tensors)


def split(model: nn.Module, example: Tensor | tuple[Tensor, ...], point: str | CutPoint) -> tuple[First, Second]:
    """Cut a model at a point: ``(F1, F2)`` in eval mode with ``F2(F1(x))`` equal to ``model(x)`` bit for bit.

    Args:
        model: any module. The halves share its parameters and buffers.
        example: valid input, ``(B, …)``, or a tuple of inputs. The halves take any batch size, but only this size
            and type otherwise.
        point: a cut point or its name or alias; values joined with ``+`` for several tensors.

    Raises:
        UserError: the model cannot be traced, or the point is not valid; then valid ones nearby are named.
    """
    return trace(model, example).split(point)


def trace(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> Traced:
    """Trace a model once, to list and make several cuts.

    The model is run and traced on a copy; the global random number generators are restored.

    Args:
        model: any module that takes tensors with the batch first. Wrappers that only run another module (data
            parallel training, ``torch.compile``) are taken off.
        example: valid input, ``(B, …)``, or a tuple of inputs with the same batch size.

    Raises:
        UserError: what was given is no such model or input, the model cannot be traced with a free batch size, is
            random in eval mode, or remembers earlier calls.
    """
    given, model = model, accepted(model)
    inputs = _checked(example)
    batches = [tuple(_tiled(x, b) for x in inputs) for b in BATCHES]
    name = type(model).__name__
    reasons, lines = [], []
    with (
        generators_kept(),
        redirect_stderr(io.StringIO()),  # torch.export prints the graph that it had until it failed
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(inputs[0].device.type, enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        seen = _Seen(model, batches)
        for tracer in (_export, _export_functional, _symbolic):
            private = PrivateCopy(model)
            try:
                program = tracer(private, batches, seen.output)
                private.restore()
                program.examples = list(zip(batches, seen.leaves, strict=True))
                if not all(map(same, program.record(batches, draws=seen.draws), seen.leaves)):
                    raise NotTraceable("the traced graph does not compute what the model computes")
                if private.is_changed():
                    raise NotTraceable("the traced graph writes into parameters or buffers")
                program.batches = _with_one(program, seen.one)
            except RandomOutput as error:
                raise UserError(_RANDOM.format(name)) from error
            except Exception as error:  # tracing runs arbitrary code of the model
                reasons.append(f"{tracer.__name__.strip('_')}: {one_line(error)}")
                lines.append(_place(error))
                continue
            private.share(program.module)
            return Traced(program)
    inner = getattr(given, "module", None)
    raise UserError(
        f"{name} cannot be traced into a graph with a free batch size, so it cannot be split"
        + (" (if it only wraps the model in its .module, give that instead)" if isinstance(inner, nn.Module) else "")
        + f": {'; '.join(dict.fromkeys(reasons))}"
        + next((f" ({line})" for line in lines if line), "")
        + "; write that part with tensor operators alone (torch.where for a branch), or cut the model by hand in "
        "Target.halves"
    )


def _place(error: Exception) -> str:
    """The line of the model's code that led to an error, if it is known."""
    frames = [*traceback.extract_tb(error.__traceback__), *(getattr(error, "real_stack", None) or ())]
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    for frame in reversed(frames):
        if not frame.filename.startswith(ours) and frame.line and Path(frame.filename).is_file():
            return f"at {Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
    return ""


class _Seen:
    """What a model does, seen on a copy of it.

    Args:
        model: as accepted.
        batches: inputs at two batch sizes.

    Raises:
        UserError: it does not run on the example, is random, or remembers earlier calls.

    Attributes:
        output: in the model's own structure.
        leaves: of its outputs for the batches.
        one: input of a single image and the leaves of its output, or ``None`` where it refuses that.
        draws: it draws numbers from PyTorch's generators.
    """

    def __init__(self, model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
        private = PrivateCopy(model).model
        name = type(model).__name__
        before = generators_state()

        def leaves(batch: tuple[Tensor, ...]) -> list[Any]:
            return pytree.tree_leaves(private(*copies(batch)))

        try:
            self.output = private(*copies(batches[0]))
            self.leaves = [pytree.tree_leaves(self.output), leaves(batches[1])]
            repeats = [leaves(batches[0])]
            after = generators_state()
            if after[1:] != before[1:]:  # Python's and NumPy's numbers become constants of a graph
                for seed in range(_SEEDS):
                    random.seed(seed)
                    np.random.seed(seed)
                    repeats.append(leaves(batches[0]))
        except Exception as error:
            needs = "; its forward must take the tensors by position" if isinstance(error, TypeError) else ""
            raise UserError(f"the model does not run on the example input: {one_line(error)}{needs}") from error
        self.draws = after[0] != before[0]
        if not all(same(r, self.leaves[0]) for r in repeats):
            if after != before:
                raise UserError(_RANDOM.format(name))
            raise UserError(
                f"{name} gives another output when it is called again with the same input, because it draws random "
                "numbers or remembers earlier calls: make it depend on its input alone"
            )
        single = tuple(x[:1] for x in batches[0])
        try:
            self.one: tuple[tuple[Tensor, ...], list[Any] | None] = (single, leaves(single))
        except Exception:  # such as BatchNorm in training mode
            self.one = (single, None)


def _with_one(program: Program, one: tuple[tuple[Tensor, ...], list[Any] | None]) -> Batches:
    """The batch sizes of a program, without 1 where the model treats that apart (as ``squeeze`` does)."""
    single, expected = one
    try:
        alike = expected is not None and same(pytree.tree_leaves(program.run(*copies(single))), expected)
    except Exception:
        alike = False
    return program.batches if alike else Batches(2, program.batches.most, program.batches.guards)


# -------------------------------------------------------------------- ways of tracing


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    inputs = copies(inputs)
    free = torch.export.ShapesCollection()  # binds them to the model's signature, *args and **kwargs included
    for x in inputs:
        free[x] = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(model, inputs, dynamic_shapes=free, strict=False)


def _export(private: PrivateCopy, batches: Sequence[tuple[Tensor, ...]], output: Any) -> Program:
    exported = _exported(private.model, batches[0])
    module = exported.module()
    _without_checks(module)
    _inline_gradient_modes(module)
    for n in module.graph.nodes:
        if n.op == "get_attr" and isinstance(getattr(module, str(n.target), None), fx.GraphModule):
            user = next(iter(n.users), n)
            raise NotTraceable(f"{user.target} holds a part of the model in a graph of its own")
    _functionalize(module, batches[0])
    return Program(module, Rebuild(output), True, Batches.of(exported))


def _export_functional(private: PrivateCopy, batches: Sequence[tuple[Tensor, ...]], output: Any) -> Program:
    """PyTorch's own functionalisation: handles writes through views and dissolves autocast, but replaces some
    operators.
    """
    exported = _exported(private.model, batches[0])
    module = exported.run_decompositions({}).module()
    _without_checks(module)
    _place_in_modules(module, list(_within_autocast(exported.graph_module)))
    for n in reversed(list(module.graph.nodes)):  # new values of buffers
        if n.target is torch.ops.aten.copy_.default and not n.users:
            module.graph.erase_node(n)
    module.recompile()
    return Program(module, Rebuild(output), True, Batches.of(exported))


def _within_autocast(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Operators that run under autocast, which are in graphs within the graph."""
    for n in module.graph.nodes:
        if n.target is torch.ops.higher_order.wrap_with_autocast:
            inner = getattr(module, str(n.args[4].target))
            for m in inner.graph.nodes:
                if m.op == "call_function" and not isinstance(m.target, torch._ops.HigherOrderOperator):
                    yield m
            yield from _within_autocast(inner)


def _place_in_modules(module: fx.GraphModule, originals: list[fx.Node]) -> None:
    """Say again which module of the model each operator belongs to; dissolving autocast forgets it.

    Both lists are in execution order, so they are aligned by the operators' names; what stands between two pairs
    belongs to the only original between them (which was decomposed), or, a conversion of types, to what follows.
    """
    dissolved = [
        n for n in module.graph.nodes if str(n.meta.get("torch_fn", ("",))[0]).startswith("wrap_with_autocast")
    ]
    matcher = difflib.SequenceMatcher(
        None, [operator_name(n) for n in originals], [operator_name(n) for n in dissolved], autojunk=False
    )
    i = j = 0
    for a, b, size in matcher.get_matching_blocks():
        between = originals[i] if a - i == 1 else None
        following = originals[a] if size else None
        for n in dissolved[j:b]:
            source = following if operator_name(n) == "to_copy" else between
            if source is not None:
                n.meta["nn_module_stack"] = source.meta.get("nn_module_stack")
        for k in range(size):
            dissolved[b + k].meta["nn_module_stack"] = originals[a + k].meta.get("nn_module_stack")
        i, j = a + size, b + size


def _symbolic(private: PrivateCopy, batches: Sequence[tuple[Tensor, ...]], output: Any) -> Program:
    # as many arguments as are given: with *args there is nothing to trace, and defaults would become inputs
    model = copy.copy(private.model)
    names = ", ".join(f"input_{i}" for i in range(len(batches[0])))
    forward = eval(f"lambda self, {names}: forward(self, {names})", {"forward": type(model).forward})
    model.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
    return Program(fx.symbolic_trace(model), as_is, False)


def _without_checks(module: fx.GraphModule) -> None:
    """Drop the checks of traced shapes, since each half has others (:class:`Accepted`)."""
    for n in reversed(list(module.graph.nodes)):
        if not n.users and (n.target == "_guards_fn" or n.target is torch.ops.aten._assert_tensor_metadata.default):
            module.graph.erase_node(n)
    module.recompile()


def _inline_gradient_modes(module: fx.GraphModule) -> None:
    """Dissolve the graphs within the graph that ``torch.enable_grad`` leaves; values do not depend on it."""
    for n in list(module.graph.nodes):
        if n.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
            continue
        inner = getattr(module, str(n.args[1].target)).graph
        placeholders = [p for p in inner.nodes if p.op == "placeholder"]
        made = dict(zip(placeholders, n.args[2:], strict=True))
        with module.graph.inserting_before(n):
            # such a graph returns a tuple, which is taken apart right behind it
            results = cast("tuple[fx.Node, ...]", module.graph.graph_copy(inner, made))
        for user in list(n.users):
            user.replace_all_uses_with(results[cast("int", user.args[1])])
            module.graph.erase_node(user)
        module.graph.erase_node(n)
    module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op != "get_attr")
    module.recompile()


def _functionalize(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Replace in-place operators by their pure counterparts (same kernels, same bits), so that no half writes
    into a tensor that the other half, the wire, or an eavesdropper holds, nor into the model's buffers.

    Raises:
        NotTraceable: a write is seen through another view of the same memory, or has no pure counterpart.
    """
    graph = module.graph
    for n in graph.nodes:
        if n.target in _NORMALIZES_BY_BATCH and n.args[5]:
            # running statistics are written and not read
            n.args = (*n.args[:3], None, None, *n.args[5:])
    if not any(_writes(n) for n in graph.nodes):
        module.recompile()
        return
    recorder = Recorder(module)
    recorder.run(*copies(inputs), enable_io_processing=False)
    memory = {
        n: v.untyped_storage().data_ptr() for n, v in recorder.values.items() if isinstance(v, Tensor) and v.numel()
    }
    nodes = list(graph.nodes)
    order = {n: i for i, n in enumerate(nodes)}
    for n in nodes:
        if not _writes(n):
            continue
        schema = n.target._schema
        written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        name = schema.name.split("::")[-1]
        packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
        pure = getattr(packet, n.target._overloadname, None)
        if written != [0] or pure is None:
            raise NotTraceable(f"operator {n.target} writes into its arguments")
        base = n.args[0]
        for other in nodes[: order[n]]:
            shared = other is not base and memory.get(other) is not None and memory.get(other) == memory.get(base)
            if shared and any(order.get(u, len(nodes)) > order[n] for u in other.users):
                raise NotTraceable(f"{n.name} writes into memory that is also read as {other.name}")
        n.target = pure
        base.replace_all_uses_with(n, delete_user_cb=lambda user, n=n: order.get(user, len(nodes)) > order[n])
    graph.lint()
    module.recompile()


def _writes(n: fx.Node) -> bool:
    """The operator writes into an argument."""
    schema = getattr(n.target, "_schema", None) if n.op == "call_function" else None
    return schema is not None and schema.is_mutable


# the sixth argument says so
_NORMALIZES_BY_BATCH: set[Callable[..., Any]] = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten.instance_norm.default,
}


# -------------------------------------------------------------------- the example


def _checked(example: Any) -> tuple[Tensor, ...]:
    inputs = (example,) if isinstance(example, Tensor) else example
    if (
        not isinstance(inputs, list | tuple)
        or not inputs
        or any(not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 for x in inputs)
    ):
        raise UserError("the example input must be a tensor, or a tuple of tensors, with a non-empty batch dimension")
    sizes = {len(x) for x in inputs}
    if len(sizes) > 1:
        raise UserError(f"the example inputs need the same batch size, but have {', '.join(map(str, sorted(sizes)))}")
    return tuple(inputs)


def _tiled(x: Tensor, batch: int) -> Tensor:
    x = x.detach()
    return torch.cat([x] * -(-batch // len(x)))[:batch]
