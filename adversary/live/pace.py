"""Can this machine keep up? What a window costs at least, against how often a new one comes.

Every attack answers by a deadline, but none can do less than one step: a step of DMB differentiates a whole sampler,
which may take longer than the time between two windows. That is measured before the stream begins, on a window of
made-up features, and said then.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]


@dataclass(frozen=True)
class Pace:
    """What was measured.

    Attributes:
        attack: ``NAME:SETTING``.
        frames: of a window.
        least: seconds that the shortest possible answer took for a window.
        evaluations: forward passes through F1 in that time, 0 where none was counted.
        period: seconds between two windows.
    """

    attack: str
    frames: int
    least: float
    evaluations: int
    period: float

    @property
    def warning(self) -> str:
        """One sentence for a machine that cannot keep up; empty where it can."""
        if self.least <= self.period:
            return ""
        rate = f" ({self.evaluations / self.least:.2g} evaluations of the network a second)" if self.evaluations else ""
        out = 1 - self.period / self.least
        help_ = "a longer --stride, fewer --frames" if self.attack == "window:live" else "--attack window:live"
        return (
            f"{self.attack} needs at least {self.least:.1f} s here for one step on a window of {self.frames}{rate}, "
            f"and a new window comes every {self.period:g} s: expect an answer {self.least:.0f} s or more after a "
            f"window's last frame, and {out:.0%} of the windows left out; {help_} or more --threads may keep up"
        )
