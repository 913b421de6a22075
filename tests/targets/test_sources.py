"""Networks that are no registered family: the user's own code, torchvision, timm, transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from splitsight.errors import UserError
from splitsight.targets import Normalize, load

CODE = """
import torch
from torch import nn
from splitsight.targets import Normalize, Target
from splitsight.tasks.classify import Classify


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(1), nn.Linear(256, 7))


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(*net())


def target(weights=None):
    return Target("other", net(), Normalize([0.5] * 3, [0.5] * 3), Classify(list("abcdefg")), 16, {"early": "1"})


def two(a, b=1):
    return net()


def boom():
    raise ValueError("no such day")


def maps():
    return nn.Conv2d(3, 4, 3)


def pair():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()
        def forward(self, x):
            return self.net(x), x
    return Pair()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x) if x.sum().item() > 0 else x


number = 3
instance = net()
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def same(target, x):
    """Head and tail of the middle point give what the model gives; features cross."""
    cut = target.cut(points[len(points) // 2]) if (points := target.points()) else target.cut("output")
    whole = target.model(target.preprocess(x))
    assert torch.equal(cut.tail(cut.head(x)), whole)
    return cut


def test_own_code(code, tmp_path):
    made = load(f"{code}:net@16")
    assert made.name == "mine:net@16" and made.input_size == 16 and made.labels == [str(i) for i in range(7)]
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(made.preprocess(x), x)
    same(made, x)
    # the same in every process, and the generator is left alone
    before = torch.get_rng_state()
    assert load(f"{code}:net", input_size=16).digest == load(f"{code}:Small@16").digest == made.digest
    assert torch.equal(torch.get_rng_state(), before)
    state = {f"module.{k}": v + 1 for k, v in made.model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.th")
    assert torch.equal(load(f"{code}:net@16", tmp_path / "w.th").model[3].bias, made.model[3].bias + 1)


def test_own_target_says_everything_itself(code):
    made = load(f"{code}:target")
    assert made.name == "mine:target" and made.labels[1] == "b" and made.points() == ["early"]
    assert load(f"{code}:instance@16").name == "mine:instance@16"
    with pytest.raises(UserError, match=r"takes images of 16 pixels, not 32: leave --input out"):
        load(f"{code}:target@32")


def test_a_module_beside_the_command(code, monkeypatch):
    monkeypatch.chdir(code.parent)
    (code.parent / "nets_beside.py").write_text("from mine import net\n")
    assert load("nets_beside:net@16").name == "nets_beside:net@16"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ("net", r"size of the images .* is not known: give it with --input"),
        ("net@32", r"does not take RGB images of 32 × 32 .*--input"),
        ("nothing@16", r"has no 'nothing': give a callable"),
        ("two@16", r"needs 'a': name a callable that takes nothing"),
        ("boom", r"fails \(ValueError: no such day\): mend it"),
        ("number", r"is a int, which cannot be called"),
        ("maps@16", r"is \(2, 4, 14, 14\), no logits"),
        ("pair@16", r"is tuple, which no task can read"),
        ("dict", r"has no 'dict'"),
    ],
)
def test_own_code_that_does_not_fit(code, call, match):
    with pytest.raises(UserError, match=match) as error:
        load(f"{code}:{call}")
    assert "\n" not in str(error.value)


def test_modules_that_are_not_there(code, tmp_path):
    with pytest.raises(UserError, match=r"no module 'nowhere.at' here"):
        load("nowhere.at:all@16")
    with pytest.raises(UserError, match=r"no such file: .*gone.py"):
        load(f"{tmp_path / 'gone.py'}:net@16")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"needs the module 'nothing_of_this_name': install it"):
        load(f"{tmp_path / 'broken.py'}:net@16")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"cannot be imported \(SyntaxError"):
        load(f"{tmp_path / 'wrong.py'}:net@16")


def test_what_cannot_be_traced_says_where(code, capfd):
    made = load(f"{code}:Branching@16")
    with pytest.raises(UserError, match=r"cannot be traced .*at mine.py, line \d+: .*item\(\) > 0.*torch.where"):
        made.points()
    assert capfd.readouterr() == ("", "")


def test_unknown_names():
    with pytest.raises(UserError, match=r"unknown target 'resnet19': choose one of .*resnet18.*; or give timm:"):
        load("resnet19")
    with pytest.raises(UserError, match=r"torchvision has no classifier 'resnet5'; those like it are .*resnet50"):
        load("torchvision:resnet5")
    with pytest.raises(UserError, match=r"needs weights: give --weights with one of IMAGENET1K_V1.* a file, or random"):
        load("torchvision:resnet18")


def test_torchvision(tmp_path, monkeypatch):
    net = torchvision.models.resnet18(num_classes=5)
    torch.save(net.state_dict(), tmp_path / "five.pth")
    made = load("torchvision:resnet18@64", tmp_path / "five.pth")
    assert made.labels == list("01234") and made.input_size == 64 and made.points() == ["L4", "L8", "L12", "L16"]
    assert isinstance(made.preprocess, Normalize)
    same(made, torch.rand(2, 3, 64, 64))
    with pytest.raises(UserError, match=r"does not hold the weights of torchvision:resnet34"):
        load("torchvision:resnet34", tmp_path / "five.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"IMAGENET1K_V1 .* are not at .*mobilenet_v3_small-\w+.pth: fetch .*`curl"):
        load("torchvision:mobilenet_v3_small", Path("IMAGENET1K_V1"))
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir(parents=True)
    torch.manual_seed(3)
    state = torchvision.models.mobilenet_v3_small().state_dict()
    torch.save(state, file)
    published = load("torchvision:mobilenet_v3_small", Path("IMAGENET1K_V1"))
    assert torch.equal(published.model.state_dict()["classifier.3.bias"], state["classifier.3.bias"])
    assert published.labels[0] == "tench" and published.input_size == 224
    file.write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"does not hold the weights IMAGENET1K_V1 .* fetch it again"):
        load("torchvision:mobilenet_v3_small", Path("IMAGENET1K_V1"))


def test_random_weights_are_those_of_every_process():
    first, second = (load("torchvision:resnet18@32", Path("random")) for _ in range(2))
    assert first.digest == second.digest and len(first.labels) == 1000


def test_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=4)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    made = load("timm:resnet10t@64", tmp_path / "w.safetensors")
    assert made.name == "timm:resnet10t@64" and len(made.labels) == 4
    same(made, torch.rand(2, 3, 64, 64))
    with pytest.raises(UserError, match=r"timm has no classifier 'resnet10q'; those like it are .*resnet10t"):
        load("timm:resnet10q")
    with pytest.raises(UserError, match=r"timm has no weights 'nothing' of resnet10t: give one of c3_in1k"):
        load("timm:resnet10t.nothing")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match=r"`hf download timm/resnet10t.c3_in1k model.safetensors`"):
        load("timm:resnet10t", Path("c3_in1k"))
    full = timm.create_model("resnet10t")
    save_file(full.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    published = load("timm:resnet10t.c3_in1k")
    assert published.input_size == 176 and torch.equal(published.model.fc.bias, full.fc.bias)


def vit(folder, **changes):
    """A tiny random ViT classifier, saved as the library saves it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 8}
    names = {i: f"kind {i}" for i in range(3)}
    config = ViTConfig(image_size=32, patch_size=8, id2label=names, label2id={v: k for k, v in names.items()}, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        folder
    )
    return folder


def test_transformers_classifier(tmp_path):
    made = load(f"transformers:{vit(tmp_path / 'vit')}")
    assert made.name == "transformers:vit" and made.labels == ["kind 0", "kind 1", "kind 2"] and made.input_size == 32
    assert made.points() == ["L3", "L4", "L5", "L8"]
    x = torch.rand(2, 3, 32, 32)
    for point in made.points():
        cut = made.cut(point)
        assert cut.specs[0].layout == "tokens" and cut.specs[0].shape == (17, 16)
        assert torch.equal(cut.tail(cut.head(x)), made.model(made.preprocess(x)))
    with pytest.raises(UserError, match=r"does not take RGB images of 64 × 64"):
        load(f"transformers:{tmp_path / 'vit'}@64")


def test_transformers_folders_that_do_not_fit(tmp_path):
    folder = vit(tmp_path / "vit")
    state = {k: v for k, v in load(f"transformers:{folder}").model.model.state_dict().items() if ".0." not in k}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not hold the weights of a ViTForImageClassification: it lacks '.*\.0\."):
        load(f"transformers:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors is not there: .*`hf download ID --local-dir"):
        load(f"transformers:{folder}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json is not there"):
        load(f"transformers:{folder}")
    with pytest.raises(UserError, match=r"somebody/something is no folder here, .*`hf download somebody/something`"):
        load("transformers:somebody/something")


def clip(folder, text=True):
    """A tiny random CLIP, saved as the library saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from splitsight.captions import build_tokenizer

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


def test_clip(tmp_path):
    model = clip(tmp_path / "clip")
    (tmp_path / "clip" / "labels.txt").write_text("goldfish\nking penguin\n")
    made = load(f"transformers:{tmp_path / 'clip'}")
    assert made.task.name == "embed" and made.labels == ["goldfish", "king penguin"] and made.input_size == 32
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=made.preprocess(x))
        theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    torch.testing.assert_close(made.model(made.preprocess(x)), theirs)
    assert made.task.read(theirs)[0].best().name in made.labels
    assert made.cut("output").specs[0].shape == (12,)
    same(made, x)


def test_clip_without_a_tokenizer_has_no_labels(tmp_path):
    clip(tmp_path / "clip", text=False)
    assert load(f"transformers:{tmp_path / 'clip'}").labels == []


def test_the_command_takes_them(code, tmp_path):
    """One attack on a module that lies in the current folder, as the installed command finds it."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.effect_noise((16, 16), 80).convert("RGB").save(tmp_path / "pictures" / "a.png")
    root = Path(__file__).resolve().parents[2]
    # the current folder is not on the path of an installed command
    path = f"import sys; sys.path[:] = [{str(root)!r}, *filter(None, sys.path)]"
    script = f"{path}; from scenarios.__main__ import main; main()"
    words = "attack do --target mine:net --input 3x16x16 --split 1 --images pictures --out out --set iterations=3"
    done = subprocess.run(
        [sys.executable, "-c", script, *words.split(), "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"target": "mine:net@16"' in done.stdout
