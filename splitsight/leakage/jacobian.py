"""Products with the Jacobian J = ∂F1/∂x of a batch of images, which is never formed.

``Jᵀu`` is one reverse sweep (vector-Jacobian product), which nearly every operator has. ``Jv`` is one more through
that sweep: ``g(u) = Jᵀu`` is linear in u, and its own transposed product with v is ``Jv``. So after one pass forwards
and one backwards each product costs about one pass of F1, where forward mode (``torch.func.jvp``) goes through F1
again each time; that was two to four passes. Forward mode takes over for an F1 with an operator whose derivative has
none itself (hard sigmoid, in MobileNetV3) or hides it, which one test of ``⟨u, Jv⟩ = ⟨Jᵀu, v⟩`` shows; the products
are the same.

The images of a batch do not interact in eval mode, so a product for a batch is one for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from splitsight.errors import UserError
from splitsight.split.model import one_line

__all__ = ["Head", "Jacobian"]

Head = Callable[[Tensor], tuple[Tensor, ...]]
"""F1: images ``(B, C, H, W)`` → tensors that cross, ``(B, …)`` each; every image by itself."""


class Jacobian:
    """J at a batch of images; holds the graph of F1 while it lives.

    Args:
        head: F1, in eval mode.
        images: ``(B, C, H, W)``.

    Attributes:
        images: as given, detached.
        features: what crosses, detached.

    Raises:
        UserError: no tensor that crosses can be derived by the images.
    """

    def __init__(self, head: Head, images: Tensor) -> None:
        # fused attention has one derivative, not two
        with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._x = images.detach().clone().requires_grad_()
            self._z = head(self._x)
        self.images = self._x.detach()
        self.features = tuple(z.detach() for z in self._z)
        if not any(z.requires_grad for z in self._z):
            raise UserError(
                "the features have no derivative by the images, so no measure of leakage can be computed from it: "
                "give an F1 that does not detach or round what it passes on"
            )
        self._head, self._forward_mode = head, False
        self._u: list[Tensor] = []
        self._g: Tensor | None = None

    def transposed(self, cotangents: Sequence[Tensor | None]) -> Tensor:
        """``Jᵀu``: one a tensor, ``(B, …)``, or ``None`` for zeros → ``(B, C, H, W)``."""
        return self._reverse(cotangents, create_graph=False)

    def _reverse(self, cotangents: Sequence[Tensor | None], *, create_graph: bool) -> Tensor:
        pairs = [(z, u) for z, u in zip(self._z, cotangents, strict=True) if u is not None and z.requires_grad]
        if not pairs:
            return torch.zeros_like(self._x)
        with torch.inference_mode(False), torch.enable_grad():
            (found,) = torch.autograd.grad(
                [z for z, _ in pairs],
                self._x,
                [u for _, u in pairs],
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
        return found

    def __call__(self, tangents: Tensor) -> tuple[Tensor, ...]:
        """``Jv``: ``(B, C, H, W)`` → one a tensor, ``(B, …)``.

        Raises:
            UserError: an operator of F1 has neither a second nor a forward-mode derivative.
        """
        if self._forward_mode:
            return self._forward(tangents)
        first = self._g is None
        try:
            found = self._transposed_twice(tangents)
        except RuntimeError as error:
            if not _lacks_derivative(error):
                raise
            found = None
        if found is None or (first and not self._is_adjoint(tangents, found)):
            self._forward_mode, self._g, self._u = True, None, []
            return self._forward(tangents)
        return found

    def _transposed_twice(self, v: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.enable_grad():
            if self._g is None:
                self._u = [torch.zeros_like(z, requires_grad=True) for z in self.features]
                self._g = self._reverse(self._u, create_graph=True)
            return torch.autograd.grad(
                self._g, self._u, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )

    def _is_adjoint(self, v: Tensor, jv: tuple[Tensor, ...]) -> bool:
        """``⟨u, Jv⟩ = ⟨Jᵀu, v⟩`` for random u; operators that hide from the second derivative leave zeros in Jv."""
        u = [torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z) for z in jv]
        a, b, c, d = _flat(u), _flat(jv), _flat([self.transposed(u)]), _flat([v])
        apart = ((a * b).sum(1) - (c * d).sum(1)).abs()
        return bool((apart <= 1e-4 * (a.norm(dim=1) * b.norm(dim=1) + c.norm(dim=1) * d.norm(dim=1))).all())

    def _forward(self, v: Tensor) -> tuple[Tensor, ...]:
        try:
            with torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH):
                return torch.func.jvp(self._head, (self.images,), (v,))[1]
        except RuntimeError as error:
            if not _lacks_derivative(error):
                raise
            raise UserError(
                f"an operator of F1 has neither a second nor a forward-mode derivative ({one_line(error)}), so FSInfo "
                "cannot be computed here: leave it out; the Jacobian's energy and dFIL need neither"
            ) from error


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten(1) for t in tensors], 1).double()


_LACKING = ("is not implemented", "once_differentiable", "does not require grad", "forward AD", "autograd.Function")


def _lacks_derivative(error: RuntimeError) -> bool:
    return isinstance(error, NotImplementedError) or any(said in str(error) for said in _LACKING)
