"""What a defence has to know of features before it can be used, measured on images: its noise's scale, or a file."""

from __future__ import annotations

from pathlib import Path

from splitsight import targets
from splitsight.data import load_images, to_tensor
from splitsight.defenses import Chain, Place, parse_defense
from splitsight.errors import UserError

__all__ = ["calibrate"]


def calibrate(
    defense: str,
    images: Path,
    *,
    target: str = "resnet18",
    split: str = "L8",
    weights: Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
) -> Chain:
    """A chain with all that it has to know.

    Args:
        defense: as ``--defense`` takes it, without what is to be measured.
        images: folder of PNG/JPEG, one such file, or Parquet in Hugging Face image format; like those that are to be
            protected, and not those that it is tested on.
        target: name of the network.
        split: name of the split point.
        weights: of the target; the embedded ones by default.
        limit: at most this many images.
        out: file for what does not fit into a parameter; by default one in ``$SPLITSIGHT_HOME/defenses``.

    Raises:
        UserError: bad input, or a defence that has nothing to measure.
    """
    chain = parse_defense(defense)
    network = targets.load(target, weights)
    cut = network.cut(split)
    place = Place(network.name, split, cut.head_digest, cut.tail_digest, str(chain))
    found = chain.fitted(
        cut.head, cut.specs, to_tensor(load_images(images, network.input_size, limit).images), place, out
    )
    if str(found) == str(chain):
        raise UserError(f"'{chain}' has nothing to measure: use it as it is")
    return found
