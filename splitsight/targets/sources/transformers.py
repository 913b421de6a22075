"""``transformers:FOLDER`` (or the id of a model in the Hugging Face cache): image classifiers, CLIP's image encoder.

The folder is what ``save_pretrained`` of the model and of its image processor wrote. Of CLIP the image encoder is the
target, its task is to embed; with the text encoder and the tokenizer in the same folder it has zero-shot labels, too:
the lines of ``labels.txt`` there, or the names of Tiny-ImageNet's 200 classes, each as "a photo of a …".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitsight.artifacts import asset
from splitsight.errors import UserError
from splitsight.targets import Normalize, Target, load_state, read_classes
from splitsight.targets.sources import RANDOM, check_run, classifier_of, classify, seeded
from splitsight.tasks import Task
from splitsight.tasks.embed import Embed

__all__ = ["PROMPT", "build"]

PROMPT = "a photo of a {}"
"""What a label is embedded as."""
_BLOCKS = (3, 4, 5, 8)
_LOADED = {"local_files_only": True, "output_loading_info": True, "dtype": torch.float32}


class _Output(nn.Module):
    """One field of what a model of this library returns.

    Args:
        model: takes ``pixel_values``.
        field: ``logits``, ``image_embeds`` or ``pooler_output``.
    """

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed images → ``(B, classes)`` or ``(B, D)``."""
        return getattr(self.model(pixel_values=images), self.field)


def build(what: str, weights: Path | None, input_size: int | None) -> Target:
    """Load a model folder.

    Args:
        what: folder, or id of a model in the cache.
        weights: other weights for it, a file, or ``random``.
        input_size: side of the images; that of the image processor by default.

    Raises:
        UserError: no such folder, nothing in it that this knows, weights that do not fit, or another input size.
    """
    from transformers import AutoConfig, AutoImageProcessor

    config: Any = _read(what, "config.json", lambda: AutoConfig.from_pretrained(what, local_files_only=True))
    processor: Any = _read(
        what, "preprocessor_config.json", lambda: AutoImageProcessor.from_pretrained(what, local_files_only=True)
    )
    kind, field = _kind(what, config)
    name = f"transformers:{what}"
    if str(weights) == RANDOM:
        part = config.vision_config if config.model_type == "clip" else config
        model = seeded(lambda: kind._from_config(part) if hasattr(kind, "_from_config") else kind.from_config(part))
    else:
        model, found = _read(what, "model.safetensors", lambda: kind.from_pretrained(what, **_LOADED))
        if lacking := sorted(found["missing_keys"]):
            raise UserError(
                f"{what} does not hold the weights of a {type(model).__name__}: it lacks '{lacking[0]}' "
                f"({len(lacking)} missing); give a folder that save_pretrained wrote"
            )
        if weights is not None:
            load_state(model, weights, name=name, classifier=classifier_of(model))
    size = input_size or _side(what, processor)
    # scaled to [0, 1] by every processor's rescale_factor, as images are here
    normal = processor.do_normalize
    preprocess = Normalize(processor.image_mean, processor.image_std) if normal else nn.Identity()
    wrapped = _Output(model, field)
    output = check_run(wrapped, preprocess, size, name)
    labels = [str(config.id2label[i]) for i in sorted(config.id2label)] if field == "logits" else []
    task: Task = classify(output, labels, name) if field == "logits" else _embed(what, config)
    return Target(name, wrapped, preprocess, task, size, _aliases(model))


def _kind(what: str, config: Any) -> tuple[Any, str]:
    """The class that loads it, and the field of its output."""
    import transformers

    if config.model_type in ("clip", "clip_vision_model"):
        if config.architectures == ["CLIPVisionModel"]:
            return transformers.CLIPVisionModel, "pooler_output"
        return transformers.CLIPVisionModelWithProjection, "image_embeds"
    if type(config) not in transformers.AutoModelForImageClassification._model_mapping:
        raise UserError(
            f"{what} holds a '{config.model_type}', which is no image classifier and no CLIP: write a callable that "
            "returns a Target, and give --target MODULE:CALLABLE"
        )
    return transformers.AutoModelForImageClassification, "logits"


def _read(what: str, file: str, load: Any) -> Any:
    """What ``load`` returns; what it reports of weights that other parts of a model have no use for is not shown."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return load()
    except Exception as error:  # the library raises OSError, ValueError, KeyError and others
        folder = Path(what)
        why = " ".join(str(error).split())[:200]
        if not folder.is_dir():
            raise UserError(
                f"{what} is no folder here, and {file} of such a model is not in the Hugging Face cache: check the "
                f"path, or fetch it with `hf download {what}`"
            ) from error
        if not any(folder.glob(f"{Path(file).stem}*")):
            raise UserError(
                f"{folder / file} is not there: save the model and its image processor into that folder, "
                f"or fetch the whole of it with `hf download ID --local-dir {folder}`"
            ) from error
        raise UserError(
            f"{folder / file} cannot be used ({type(error).__name__}: {why}): save or fetch it again"
        ) from error
    finally:
        logging.set_verbosity(level)


def _side(what: str, processor: Any) -> int:
    """Side of the square images that the processor crops or resizes to."""
    cropped = getattr(processor, "do_center_crop", None) and getattr(processor, "crop_size", None)
    size = dict(cropped or processor.size)
    sides = {int(size[key]) for key in ("height", "width", "shortest_edge") if size.get(key)}
    if len(sides) != 1:
        raise UserError(
            f"the image processor of {what} makes images of {size}: give the side of square ones with --input"
        )
    return sides.pop()


def _aliases(model: nn.Module) -> dict[str, str]:
    """``L3`` …: ends of encoder blocks, as the literature counts them; none where there is no such list of blocks."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    if len(lists) != 1 or len(lists[0][1]) < max(_BLOCKS):
        return {}
    return {f"L{i}": f"model.{lists[0][0]}.{i - 1}" for i in _BLOCKS}


@torch.no_grad()
def _embed(what: str, config: Any) -> Embed:
    """The task of CLIP, with zero-shot labels where there are a text encoder and a tokenizer."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection
    from transformers.utils.hub import cached_file

    there = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    if config.model_type != "clip" or cached_file(what, "tokenizer_config.json", **there) is None:
        return Embed()
    tokenizer = AutoTokenizer.from_pretrained(what, local_files_only=True)
    own = Path(what) / "labels.txt"
    if own.is_file():
        labels = [line.strip() for line in own.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        labels = [names[0] for names in read_classes(asset("targets", "resnet18") / "classes.tsv")]
    text, found = _read(what, "model.safetensors", lambda: CLIPTextModelWithProjection.from_pretrained(what, **_LOADED))
    if found["missing_keys"]:
        return Embed()
    words = tokenizer([PROMPT.format(label) for label in labels], padding=True, truncation=True, return_tensors="pt")
    parts = [text.eval()(**{k: v[i : i + 64] for k, v in words.items()}).text_embeds for i in range(0, len(labels), 64)]
    return Embed(labels, torch.cat(parts))
