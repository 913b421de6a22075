"""Products with the Jacobian J = ∂F1/∂x of a batch of images, which is never formed.

``Jᵀu`` is one reverse sweep (vector-Jacobian product). ``Jv`` is one more through that sweep: ``g(u) = Jᵀu`` is
linear in u, and its own transposed product with v is ``Jv``. So both need reverse derivatives alone, which PyTorch
has for nearly all operators, and no forward-mode ones, which fused attention and other operators lack; and after one
pass forwards (and one backwards) each product costs about one pass of F1, where ``torch.func.jvp`` costs two or more
since it goes through F1 again. The images of a batch do not interact in eval mode, so a product for a batch is one
for each image.
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
            UserError: an operator of F1 whose derivative cannot be derived again.
        """
        try:
            first = self._g is None
            with torch.inference_mode(False), torch.enable_grad():
                if self._g is None:
                    self._u = [torch.zeros_like(z, requires_grad=True) for z in self.features]
                    self._g = self._reverse(self._u, create_graph=True)
                found = torch.autograd.grad(
                    self._g, self._u, tangents, retain_graph=True, allow_unused=True, materialize_grads=True
                )
        except RuntimeError as error:
            if not _lacks_derivative(error):
                raise
            raise _no_second_derivative(one_line(error)) from error
        if first:
            self._check_adjoint(tangents, found)
        return found

    def _check_adjoint(self, v: Tensor, jv: tuple[Tensor, ...]) -> None:
        """Refuse a Jv that is not the transpose of Jᵀu: operators that hide from the second derivative leave zeros."""
        u = [torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z) for z in jv]
        jtu = self.transposed(u)

        def flat(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([t.flatten(1) for t in tensors], 1).double()

        a, b, c, d = flat(u), flat(jv), flat([jtu]), flat([v])
        apart = ((a * b).sum(1) - (c * d).sum(1)).abs()
        if (apart > 1e-4 * (a.norm(dim=1) * b.norm(dim=1) + c.norm(dim=1) * d.norm(dim=1))).any():
            raise _no_second_derivative("its derivative is taken for a constant")


def _no_second_derivative(why: str) -> UserError:
    return UserError(
        f"FSInfo needs second derivatives, which an operator of F1 lacks ({why}): leave it out here; the Jacobian's "
        "energy and dFIL need first ones only"
    )


def _lacks_derivative(error: RuntimeError) -> bool:
    return isinstance(error, NotImplementedError) or any(
        said in str(error) for said in ("is not implemented", "once_differentiable", "does not require grad")
    )
