"""DMB, diffusion-model-based: the noise of the whole generator is the variable (Algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, option
from adversary.attacks.descent import PAPER, Descent, descend, draw
from adversary.whitebox.terms import Negentropy, TemporalSmoothing, Term
from adversary.whitebox.variables import Noise

__all__ = ["DMB", "DMBMulti"]


class _Sampled(Descent):
    iterations: int = option(150, "steps of each start", ge=1, tune=(150, 300))
    steps: int = option(4, "sampling steps", ge=1, tune=(1, 2, 4))
    relative: bool = option(False, "divide the feature loss by ‖z_mid‖², so that tv weighs the same at every split")
    tv: float = option(1.0, "λ_s, weight of total variation", ge=0, tune=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0))
    checkpoint: bool = option(False, "trade a third more time for the memory of one sampling step")
    alpha: float = option(1.0, "α of the negentropy (equation 9), with a text", ge=1, le=2)
    lambda_txt: float = option(10.0, "weight of the negentropy, with a text", ge=0)


_TUNED = {"iterations": 300, "relative": True, "tv": 0.1, "lambda_txt": 0.1}
_PAPER = {**PAPER, "steps": 20}


@ATTACKS.register("dmb")
class DMB(Attack):
    """White-box, diffusion-model-based (Algorithm 1): noise searched through the sampler, each image alone.

    Equation 6: ``argmin_v ‖F1(D(v_n, e)) − z_mid‖² + λ_s TV(D(v_n, e))``, v from a standard normal draw; with a
    prompt, ``e = E(t)`` and the negentropy of equations 8 and 9 with ``lambda_txt`` and ``alpha``.
    """

    Settings = _Sampled
    name = "dmb"
    presets: ClassVar = {"fast": {}, "tuned": _TUNED, "paper": _PAPER}
    needs = frozenset({"pipeline", "prior"})
    text = True

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames; nothing is carried on."""
        self.check(problem)
        shape = problem.generator.latent_shape
        return _through_sampler(problem, self.settings, lambda i: draw(problem, shape, i), callback)


@ATTACKS.register("dmb-multi")
class DMBMulti(Attack):
    """White-box, several frames with temporal smoothing (Algorithm 2): noises searched through the sampler.

    Equation 10: the frames of a window together, with ``λ_c ‖v_k − v̄‖²``. The published algorithm draws the
    frames' noises independently (``paper``); from one shared draw (``shared``, in all others) frames are coupled from
    the start; ``tuned-independent`` is tuned without that. ``live`` runs until the deadline.

    A shared start goes on from window to window: at the mean noise of the last one.

    Each setting has a control, ``…-single``: every frame alone (λ_c = 0) from the *same* noise, with the same number
    of model evaluations, so that what differs is the coupling.
    """

    class Settings(_Sampled):
        """Those of :class:`DMB`, and the coupling."""

        smoothing: float = option(
            5.0, "λ_c, weight of temporal smoothing", ge=0, tune=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
        )
        shared: bool = option(True, "start all frames from one draw", tune=(True, False))

    name = "dmb-multi"
    presets: ClassVar = {
        "fast": {},
        "tuned": {**_TUNED, "smoothing": 0.01},
        "paper": {**_PAPER, "steps": 10, "shared": False},
        "live": PAPER,
    }
    variants: ClassVar = {
        **{f"{name}-single": (name, {"smoothing": 0.0}) for name in presets},
        "tuned-independent": ("tuned", {"shared": False}),
    }
    needs = frozenset({"pipeline", "prior"})
    windowed = True
    text = True

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a window.

        Args:
            problem: what is known.
            state: the last window's mean noise ``(1, C, h, w)``.
            callback: keeps the time.
        """
        self.check(problem)
        s, shape, frames = self.settings, problem.generator.latent_shape, problem.frames

        def start(restart: int) -> Tensor:
            if state is not None and restart == 0:
                return state.repeat(frames, 1, 1, 1)
            return draw(problem, shape, restart, shared=s.shared)

        terms = [TemporalSmoothing(s.smoothing)] if s.smoothing > 0 else []
        carried = (lambda value: value.mean(0, keepdim=True)) if s.shared else (lambda value: None)
        return _through_sampler(problem, s, start, callback, terms=terms, together=s.smoothing > 0, state=carried)


def _through_sampler(
    problem: Problem,
    s: _Sampled,
    start: Any,
    callback: Callback | None,
    *,
    terms: Sequence[Term] = (),
    **more: Any,
) -> Reconstruction:
    """:func:`descend` on noise that starts at ``start(restart)``."""
    prior, terms = problem.generator, list(terms)
    if problem.text is not None and s.lambda_txt > 0:
        terms.append(Negentropy(s.lambda_txt, s.alpha))
    return descend(
        problem,
        lambda i: Noise(prior, start(i), problem.text, s.steps, checkpoint=s.checkpoint),
        s,
        callback,
        terms=terms,
        **more,
    )
