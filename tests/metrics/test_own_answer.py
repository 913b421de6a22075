"""What the attacked network itself makes of a reconstruction."""

from __future__ import annotations

import torch

from splitsight.metrics import Batch, measure, metrics


def test_own_answer_kept():
    """A network that tells dark from light, and has no answer to grey."""

    def network(images):
        mean = images.flatten(1).mean(1)
        return torch.where((mean - 0.5).abs() < 0.1, -1, (mean > 0.5).long())

    level = torch.tensor([0.1, 0.9, 0.1, 0.5, 0.9])
    original = level.view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    reconstruction = original.clone()
    reconstruction[2] = 0.8
    reconstruction[4] = torch.nan
    batch = Batch(reconstruction=reconstruction, original=original, network=network)
    (wanted,) = (metric for metric in metrics() if metric.name == "own_answer")
    assert measure([wanted], batch) == {"own_answer": [True, True, False, None, False]}
    assert measure([wanted], Batch(reconstruction=reconstruction, original=original)) == {}
