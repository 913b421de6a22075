"""An oracle for a network that exists in this process only: random weights, a family that nothing else knows."""

import sys

import torch
from torch import nn

from edge_client.oracle import OracleOptions
from edge_client.oracle_server import serve_oracle
from splitsight.targets import TARGETS, Normalize, Target
from splitsight.tasks.classify import Classify


@TARGETS.register("foreign")
class Foreign(Target):
    """Two convolutions and a classifier."""

    def __init__(self, weights=None):
        torch.manual_seed(1234)
        self._head = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU())
        self._tail = nn.Sequential(nn.Flatten(), nn.Linear(80, 2))
        preprocess = Normalize([0.5] * 3, [0.25] * 3)
        super().__init__("foreign", nn.Sequential(self._head, self._tail), preprocess, Classify(["yes", "no"]), 16)

    def points(self):
        return ["A"]

    def halves(self, point):
        return self._head, self._tail


if __name__ == "__main__":
    sys.exit(serve_oracle(OracleOptions(target="foreign", split="A", budget=int(sys.argv[1]))))
