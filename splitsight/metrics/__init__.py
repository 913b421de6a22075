"""Figures: image quality, finding the right frame, means with intervals; :data:`METRICS` has what rows are given."""

from __future__ import annotations

from splitsight.metrics.image import PSNR_CAP, PSNR_EQ14_CAP, image_quality, psnr_eq14
from splitsight.metrics.intervals import mean_interval, percentile, proportion_interval
from splitsight.metrics.metric import METRICS, Batch, Metric, image_metrics, measure, metrics, metrics_named
from splitsight.metrics.retrieval import Match, matched, pixels

__all__ = [
    "METRICS",
    "PSNR_CAP",
    "PSNR_EQ14_CAP",
    "Batch",
    "Match",
    "Metric",
    "image_metrics",
    "image_quality",
    "matched",
    "mean_interval",
    "measure",
    "metrics",
    "metrics_named",
    "percentile",
    "pixels",
    "proportion_interval",
    "psnr_eq14",
]
