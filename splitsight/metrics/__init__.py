"""Figures: image quality, finding the right frame, means with intervals."""

from __future__ import annotations

from splitsight.metrics.image import PSNR_CAP, PSNR_EQ14_CAP, image_quality, psnr_eq14
from splitsight.metrics.intervals import mean_interval, percentile, proportion_interval
from splitsight.metrics.retrieval import Match, matched, pixels

__all__ = [
    "PSNR_CAP",
    "PSNR_EQ14_CAP",
    "Match",
    "image_quality",
    "matched",
    "mean_interval",
    "percentile",
    "pixels",
    "proportion_interval",
    "psnr_eq14",
]
