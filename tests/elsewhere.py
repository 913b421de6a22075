"""A second device that every machine has: tensors of the CPU that say they are elsewhere.

They refuse to meet tensors of the CPU, as those of a GPU do (a number without dimensions may meet anything), and
compute the very same numbers. The name ``meta`` is borrowed, since PyTorch knows no device that it was not built for.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

__all__ = ["ELSEWHERE", "SecondDevice"]

ELSEWHERE = torch.device("meta")
_ATEN = torch.ops.aten


class _Elsewhere(torch.Tensor):
    """Stands for ``inner``."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=ELSEWHERE
        )
        made.inner = inner
        return made

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the second device's mode")


class SecondDevice(TorchDispatchMode):
    """Within it, ``tensor.to(ELSEWHERE)`` moves there and ``.cpu()`` back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        ours = [t for t in tensors if isinstance(t, _Elsewhere)]
        there = kwargs["device"] == ELSEWHERE if kwargs.get("device") is not None else bool(ours)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu") if func is not _ATEN._to_copy.default else None
        if ours and func not in (_ATEN._to_copy.default, _ATEN.copy_.default):
            strangers = [t for t in tensors if not isinstance(t, _Elsewhere) and t.ndim > 0]
            if strangers:
                raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        if func is _ATEN._fused_sdp_choice.default:
            return 0  # the one implementation that is the same on all devices
        found = func(*self._bare(args), **self._bare(kwargs))
        if func._schema.is_mutable:
            return args[0]
        return tree_map_only(torch.Tensor, _Elsewhere, found) if there else found

    @staticmethod
    def _bare(value):
        return tree_map_only(_Elsewhere, lambda t: t.inner, value)
