"""Tiny random models, saved exactly as the libraries save real ones."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from splitsight.captions import build_tokenizer
from splitsight.targets.yolo_small import ResNet50Yolo


def vit(folder, **changes):
    """A tiny random ViT classifier, saved as the library saves it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 8}
    names = {i: f"kind {i}" for i in range(3)}
    config = ViTConfig(image_size=32, patch_size=8, id2label=names, label2id={v: k for k, v in names.items()}, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        folder
    )
    return folder


def clip(folder, text=True):
    """A tiny random CLIP, saved as the library saves it."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([["goldfish"], ["king penguin"]])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 12}
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "num_hidden_layers": 1,
    }
    words |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(
        text_config={**sizes, **words},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "num_hidden_layers": 3},
        projection_dim=12,
    )
    model = CLIPModel(config)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    if text:
        tokenizer.save_pretrained(folder)
    return model.eval()


def yolov2(folder, file="model.safetensors"):
    """A tiny random detector, in the form of :mod:`splitsight.targets.sources.yolov2`."""
    torch.manual_seed(0)
    model = ResNet50Yolo(2 * (5 + 3), width=4, hidden=8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # blocks that begin as the identity would hide mistakes
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    folder.mkdir(parents=True)
    config = {"labels": ["cat", "dog", "cow"], "anchors": [[0.2, 0.3], [0.6, 0.5]], "input_size": 64}
    (folder / "config.json").write_text(json.dumps(config | {"width": 4, "hidden": 8}))
    if file.endswith(".safetensors"):
        save_file(model.state_dict(), folder / file)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / file)
    return model.eval()


def stable_diffusion(folder, *, tiny_decoder=False):
    """Stable Diffusion 2.1 in every format, of 32 pixels: velocity, PNDM in the folder, no safety checker."""
    torch.manual_seed(0)
    widths = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        sample_size=32,
        scaling_factor=0.18215,
        **widths,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 2),
        use_linear_projection=True,
        layers_per_block=1,
        **widths,
    )
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    scheduler = PNDMScheduler(prediction_type="v_prediction", skip_prk_steps=True, set_alpha_to_one=False, **noise)
    words = folder.parent / f"{folder.name}-words"
    words.mkdir(parents=True)
    letters = [chr(i) for i in range(97, 123)]
    vocabulary = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(words, model_max_length=20)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=20,
            bos_token_id=52,
            eos_token_id=53,
            pad_token_id=53,
        )
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    if tiny_decoder:
        sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(folder / "vae")
    return str(folder)
