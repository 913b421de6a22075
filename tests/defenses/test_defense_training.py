"""``splitsight train defense``: every method from pictures to a file that the pipeline applies, and what is refused."""

import json

import pytest
import torch

from scenarios import cli
from splitsight.artifacts import digest, load_weights
from splitsight.data import load_images, to_tensor
from splitsight.defenses import DEFENSES, parse_defense
from splitsight.defenses.training import Learned
from splitsight.defenses.training.command import DefenseOptions, train_defense_command
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.wire.tensors import CodecSpec

METHODS = [name for name, kind in DEFENSES if issubclass(kind, Learned)]
CHANGES = {"bottleneck": {"channels": 3}, "shredder": {"tensors": 2}, "cem": {"components": 2}}
NOISE = "clip:norm=4+gaussian:epsilon=200"


@pytest.fixture
def lab(monkeypatch, tiny_target):
    """The tiny target by any name, and where a command looks for it."""
    monkeypatch.setattr("splitsight.defenses.training.command.targets.load", lambda name, weights: tiny_target)
    return tiny_target


def options(name, pictures, out, **more):
    """A short training."""
    given = {"steps": 3, "batch": 4, "changes": CHANGES.get(name, {}), "split": "S2", "threads": 1}
    if name == "aware":
        given["defense"] = NOISE
    return DefenseOptions(name=name, data=pictures, out=out, **{**given, **more})


def chain_of(name, file):
    """As ``--defense`` takes it."""
    return (f"{NOISE}+" if name == "aware" else "") + f"{name}:weights={file}"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_is_applied(name, lab, pictures, tmp_path):
    file = train_defense_command(options(name, pictures, tmp_path / "out"))
    plain, defended = EdgePipeline(lab, "S2"), EdgePipeline(lab, "S2", chain_of(name, file))
    x = torch.rand(3, 3, 16, 16)
    sent = defended.protected(x, Draws([1, 2, 3]))
    assert [tuple(z.shape[1:]) for z in sent] == [spec.shape for spec in defended.specs]
    assert not torch.equal(sent[0], plain.protected(x)[0]) or name == "aware"
    assert defended.tail(sent).shape == (3, 3)
    assert all(torch.equal(a, b) for a, b in zip(sent, defended.protected(x, Draws([1, 2, 3])), strict=True))
    coded = EdgePipeline(lab, "S2", chain_of(name, file), CodecSpec("int8"))
    assert coded(x, Draws([1, 2, 3]))[0].shape == sent[0].shape
    said, own = plain.description(), defended.description()
    settings = json.loads((tmp_path / "out" / "run" / "run.json").read_text())["settings"]
    assert (own.tail_digest != said.tail_digest) == (settings["halves"] != "none")
    assert (own.head_digest != said.head_digest) == (settings["halves"] == "both")
    assert own.defense == chain_of(name, file) and str(parse_defense(own.defense)) == own.defense
    assert EdgePipeline(lab, "S2", chain_of(name, file.parent)).description().defense_digest == own.defense_digest
    # the undefended network is as it was
    assert EdgePipeline(lab, "S2").description() == said
    card = (file.parent / "README.md").read_text()
    assert f"splitsight train defense {name}" in card and "agreement_before" in card and "minutes" in card
    assert defended.defense.cost(plain.specs).flops >= 0


def test_resumes_where_it_stopped_and_nowhere_else(lab, pictures, tmp_path, capsys):
    file = train_defense_command(options("vib", pictures, tmp_path / "out"))
    before, first = file.read_bytes(), json.loads((tmp_path / "out" / "run" / "before.json").read_text())
    assert train_defense_command(options("vib", pictures, tmp_path / "out", steps=5)) == file
    assert "train vib: resumed at step 3" in capsys.readouterr().err and file.read_bytes() != before
    assert json.loads((tmp_path / "out" / "run" / "before.json").read_text()) == first
    with pytest.raises(UserError, match="holds a run with another settings"):
        train_defense_command(options("vib", pictures, tmp_path / "out", changes={"weight": 2}))
    with pytest.raises(UserError, match="holds a run with another split"):
        train_defense_command(options("vib", pictures, tmp_path / "out", split="S1"))
    with pytest.raises(UserError, match="holds a run with another defense"):
        train_defense_command(options("cem", pictures, tmp_path / "out"))


def test_the_same_seed_trains_the_same(lab, pictures, tmp_path):
    one, two, other = (
        load_weights(train_defense_command(options("disco", pictures, tmp_path / str(i), seed=seed)))
        for i, seed in enumerate((0, 0, 1))
    )
    assert digest(one) == digest(two) != digest(other)


def test_noise_aware_training_recovers_what_noise_takes(lab, pictures, tmp_path):
    """On images it has not seen, behind the noise that it was trained with."""
    changes = {"halves": "both", "rate": 3e-3}
    strong = "clip:norm=4+gaussian:epsilon=60"
    more = {"steps": 150, "batch": 8, "changes": changes, "defense": strong, "split": "S1"}
    file = train_defense_command(options("aware", pictures, tmp_path / "out", **more))
    images = to_tensor(load_images(pictures, 16).images).repeat(40, 1, 1, 1)
    plain, noisy, aware = (EdgePipeline(lab, "S1", d) for d in ("identity", strong, f"{strong}+aware:weights={file}"))
    with torch.no_grad():
        wanted = plain.tail(plain.protected(images)).softmax(1)

        def off(pipeline):
            sent = pipeline.protected(images, Draws(range(len(images))))
            return float((pipeline.tail(sent).softmax(1) - wanted).abs().mean())

        assert off(aware) < 0.7 * off(noisy)


def test_a_guarantee_holds_with_halves_trained_behind_it(lab, pictures, tmp_path):
    file = train_defense_command(options("aware", pictures, tmp_path / "out", changes={"halves": "both"}))
    chain = parse_defense(f"{NOISE}+aware:weights={file}")
    assert chain.mechanism is not None and chain.guarantees() == parse_defense(NOISE).guarantees()
    sent = EdgePipeline(lab, "S2", str(chain)).protected(torch.rand(2, 3, 16, 16), Draws([1, 2]))
    assert torch.isfinite(sent[0]).all()
    trained = train_defense_command(options("nopeek", pictures, tmp_path / "nopeek"))
    assert parse_defense(f"nopeek:weights={trained}+{NOISE}").mechanism is not None
    # a norm stays bounded by a clip before a defence that only brings other halves, and not by one before a decoder
    assert parse_defense(f"clip:norm=4+nopeek:weights={trained}+gaussian:epsilon=2").mechanism is not None
    narrow = train_defense_command(options("bottleneck", pictures, tmp_path / "narrow"))
    with pytest.raises(UserError, match="bottleneck stands between"):
        parse_defense(f"clip:norm=4+bottleneck:weights={narrow}+gaussian:epsilon=2")


def test_traffic_that_a_bottleneck_saves(lab, pictures, tmp_path):
    file = train_defense_command(options("bottleneck", pictures, tmp_path / "out"))
    pipeline = EdgePipeline(lab, "S2", f"bottleneck:weights={file}")
    sent = len(pipeline.encode(torch.rand(1, 3, 16, 16))[0][0].data)
    plain = len(EdgePipeline(lab, "S2").encode(torch.rand(1, 3, 16, 16))[0][0].data)
    assert sent == 3 / 16 * plain and pipeline.accounting()["bytes_ratio"] == 3 / 16


def test_halves_that_were_traced_are_trained_too(lab, pictures, tmp_path):
    file = train_defense_command(options("nopeek", pictures, tmp_path / "out", split="1"))
    pipeline = EdgePipeline(lab, "1", f"nopeek:weights={file}")
    assert pipeline.tail(pipeline.protected(torch.rand(2, 3, 16, 16))).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("gaussian", {}, "the defence gaussian is not trained: choose one of adversarial, aware"),
        ("nopeak", {}, "unknown defense 'nopeak': choose one of"),
        ("aware", {"defense": "identity"}, "aware trains behind other defences: name them with --defense"),
        ("nopeek", {"defense": NOISE}, "--defense goes with aware"),
        ("nopeek", {"steps": None}, "--minutes or --steps"),
        ("bottleneck", {"changes": {"channels": 16}}, "is none where 16 cross"),
        ("nopeek", {"split": "S9"}, "S9"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(name, more, words, lab, pictures, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        train_defense_command(options(name, pictures, tmp_path / "out", **more))
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "model").exists()


def test_a_file_is_refused_where_it_does_not_belong(lab, pictures, tmp_path):
    file = train_defense_command(options("nopeek", pictures, tmp_path / "out"))
    with pytest.raises(UserError, match="trained for split point S2, not S1"):
        EdgePipeline(lab, "S1", f"nopeek:weights={file}")
    with pytest.raises(UserError, match="holds the defence nopeek, not vib"):
        EdgePipeline(lab, "S2", f"vib:weights={file}")
    aware = train_defense_command(options("aware", pictures, tmp_path / "aware"))
    with pytest.raises(UserError, match="trained behind other defences") as error:
        EdgePipeline(lab, "S2", f"clip:norm=4+gaussian:epsilon=2+aware:weights={aware}")
    assert f"give '{NOISE}+aware:weights={aware}'" in str(error.value)
    with torch.no_grad():
        lab.model[0].weight.add_(0.1)
    lab.cut.cache_clear()
    with pytest.raises(UserError, match="weights of F1 with digest"):
        EdgePipeline(lab, "S2", f"nopeek:weights={file}")


def test_the_command_trains_and_names_the_file(lab, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["train", "defense", "bottleneck", "--data", str(pictures), "--split", "S1", "--out", str(out)]
    with pytest.raises(SystemExit) as caught:
        cli.main([*given, "--steps", "2", "--batch", "4", "--set", "channels=2"])
    assert not caught.value.code
    assert capsys.readouterr().out.strip() == str(out / "model" / "bottleneck.safetensors")
    assert "--set channels=2 --steps 2" in (out / "model" / "README.md").read_text()
    with pytest.raises(SystemExit) as caught:
        cli.main(given)
    assert caught.value.code == 2 and "--minutes or --steps" in capsys.readouterr().err
