"""The caller's model: what may be given to be split, and a copy of it that tracing may run and change."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim.swa_utils import AveragedModel

from splitsight.errors import UserError

__all__ = ["PrivateCopy", "accepted", "generators_kept", "generators_state", "one_line", "same", "unwrapped"]

_TOLERANCES = {torch.float16: (1e-3, 1e-5), torch.bfloat16: (1.6e-2, 1e-5), torch.float64: (1e-7, 1e-7)}


def accepted(model: Any) -> nn.Module:
    """The model without the wrappers that only run it (data parallel training, ``torch.compile``).

    Raises:
        UserError: it is no module whose operators can be traced; says what to give.
    """
    if isinstance(model, type):
        raise UserError(f"{model.__name__} is a class: give an instance of it, {model.__name__}(…)")
    if isinstance(model, torch.export.ExportedProgram) or (
        isinstance(model, fx.GraphModule) and {"train", "eval"} & set(vars(model))
    ):
        raise UserError("a program of torch.export cannot be split: give the nn.Module that it was exported from")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("a TorchScript module cannot be split: give the nn.Module that it was made from")
    if isinstance(model, Mapping):
        raise UserError("a state dict holds no model: build the model, call its load_state_dict, and give the model")
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", type(model).__name__)
        if callable(model):
            raise UserError(f"'{name}' is no nn.Module: give one whose forward computes what it computes")
        raise UserError(f"the model to split must be an nn.Module, not {type(model).__name__}")
    model = unwrapped(model)
    if any(
        isinstance(p, UninitializedBuffer | UninitializedParameter) for m in model.modules() for p in _tensors(vars(m))
    ):
        raise UserError("the model has lazy parameters without a shape: run it once on an input before it is split")
    return model


def unwrapped(module: nn.Module) -> nn.Module:
    """What a wrapper that only runs another module runs; any other module as it is."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # what torch.compile returns
            module = inner
        else:
            return module


class PrivateCopy:
    """A copy of a model, in eval mode, with weights of its own and without wrappers.

    Running and tracing arbitrary code may change buffers, flags, attributes, even weights; here it changes the
    copy's. A second set of weights is held in memory for that time.

    Args:
        model: is read only.

    Raises:
        UserError: the model cannot be copied, or not be set to eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        # what copy.deepcopy refuses: tensors with a gradient history
        memo: dict[int, Any] = {}
        for m in model.modules():
            for t in _tensors(vars(m)):
                if not t.is_leaf:
                    memo[id(t)] = t.detach().clone()
        try:
            copied = self._copy(model, memo)
        except Exception:
            self._share_what_cannot_be_copied(model, memo)
            try:
                copied = self._copy(model, memo)
            except Exception as error:
                raise UserError(
                    f"{type(model).__name__} cannot be copied, which tracing does to leave it as it is: "
                    + one_line(error)
                ) from error
        self.model = copied
        try:
            self.model.eval()
        except Exception as error:
            raise UserError(f"{type(model).__name__} cannot be set to eval mode: {one_line(error)}") from error
        originals = {id(t): t for m in model.modules() for t in _tensors(vars(m))}
        # by identity of the copy, which is kept beside the original so that no other tensor gets its identity
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {
            id(memo[i]): (memo[i], t) for i, t in originals.items() if isinstance(memo.get(i), Tensor)
        }

    @staticmethod
    def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
        trial = dict(memo)
        for m in reversed(list(model.modules())):
            inner = unwrapped(m)
            if inner is not m:
                trial[id(m)] = copy.deepcopy(inner, trial)
        copied = copy.deepcopy(model, trial)
        memo.update(trial)
        return copied

    @staticmethod
    def _share_what_cannot_be_copied(model: nn.Module, memo: dict[int, Any]) -> None:
        """Locks, open files, modules of Python and the like stay the caller's."""
        for m in model.modules():
            for key, value in vars(m).items():
                if key in ("_modules", "_parameters", "_buffers"):
                    continue
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:
                    memo[id(value)] = value

    def restore(self) -> None:
        """Give the copy's tensors the caller's values again."""
        with torch.no_grad():
            for mine, original in self._pairs.values():
                mine.data.copy_(original.data)

    def is_changed(self) -> bool:
        """Something has written into the copy's tensors."""
        return not all(same([mine], [original]) for mine, original in self._pairs.values())

    def share(self, module: nn.Module) -> None:
        """Replace the copy's tensors in a module by the caller's."""
        for m in module.modules():
            places: list[Any] = [m._parameters, m._buffers, vars(m)]
            for values in places:
                for key, value in values.items():
                    if isinstance(value, Tensor) and id(value) in self._pairs:
                        values[key] = self._pairs[id(value)][1]


def generators_state() -> tuple[Any, ...]:
    """States of the global random number generators: PyTorch (processor, then devices), Python, NumPy."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    name, keys, *rest = np.random.get_state(legacy=True)
    return (
        tuple(s.numpy().tobytes() for s in (torch.get_rng_state(), *devices)),
        random.getstate(),
        (name, np.asarray(keys).tobytes(), *rest),
    )


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global random number generators afterwards."""
    python, numpy_ = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in the attributes of a module, through dictionaries and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _tensors(v)


def same(a: list[Any], b: list[Any], exact: bool = True) -> bool:
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


def one_line(error: Exception) -> str:
    """An exception's message, short enough for a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
