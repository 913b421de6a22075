"""Training of the prior's parts on tiny data: what is held out, what is learnt, resumed and written."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import TinyTarget

from adversary.blackbox.inversion import inversion_for
from adversary.fits import Fits, live_fits
from adversary.priors._pictures import Pictures
from adversary.priors._settings import Settings
from adversary.priors._train_autoencoder import build_autoencoder
from adversary.priors._train_denoiser import _Latents, train_denoiser
from adversary.priors._train_pixels import fit_gain, train_pixels
from adversary.priors.pixels import PixelDenoiser, build_pixel_denoiser, denoising_gain
from adversary.priors.prior import Prior, load_prior
from adversary.training import train_prior_command
from splitsight import targets
from splitsight.data import encode_png, to_tensor
from splitsight.errors import UserError
from splitsight.photographs import Photographs
from splitsight.pipeline import EdgePipeline
from splitsight.training import Budget
from splitsight.training_data import TrainingSet


def _image(h, w, rng):
    """Smooth, so that there is something to learn in seconds."""
    y, x = np.mgrid[:h, :w] / 16
    colour, phase = rng.uniform(50, 200, 3), rng.uniform(0, 6, 3)
    return (colour + 50 * np.sin(x[..., None] + 2 * y[..., None] + phase)).astype(np.uint8)


def _parquet(path, images, labels):
    rows = [{"bytes": encode_png(image), "path": None} for image in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": pa.array(labels)}), path)
    return path


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of two shards of 16-pixel images, and a file of twenty photographs beside its table."""
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(2):
        _parquet(folder / f"train-{i}.parquet", [_image(16, 16, rng) for _ in range(60)], [k % 2 for k in range(60)])
    (folder / "classes.tsv").write_text("0\tn0\tgoldfish\n1\tn1\tred panda, panda\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    sizes = [(40, 60), (60, 40)] * 10
    _parquet(photos / "p.parquet", [_image(h, w, rng) for h, w in sizes], [-1] + [2] * 19)
    (photos / "imagenet-classes.tsv").write_text("0\tn0\ttench\n1\tn1\tshark\n2\tn2\tcastle\n")
    return folder, photos / "p.parquet"


def _pictures(data, *, photos=True):
    folder, file = data
    return Pictures(TrainingSet.open(folder), [file] if photos else [], 16)


def _unet(**changes):
    return Settings(**{"network": "unet", "widths": (16, 16), "batch": 10, **changes})


def test_every_tenth_photograph_is_held_out_and_crops_know_their_class(data):
    photos = Photographs([data[1]])
    assert photos.held.tolist() == [9, 19] and not set(photos.held) & set(photos.train)
    assert photos.names[0] is None and photos.names[1] == ["castle"]
    rng = np.random.default_rng(0)
    for size in (16, 32, 80):  # 80 pixels: more than there are
        images, names = photos.crops(photos.train, 5, size, rng)
        assert images.shape == (5, size, size, 3) and images.dtype == np.uint8
        assert all(name in (None, ["castle"]) for name in names)


def test_photographs_that_cannot_be_used_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="no such file of photographs"):
        Photographs([tmp_path / "gone.parquet"])
    (data[1].parent / "imagenet-classes.tsv").rename(data[1].parent / "other")
    with pytest.raises(UserError, match="table"):
        Photographs([data[1]])
    few = _parquet(tmp_path / "few.parquet", [np.zeros((20, 20, 3), np.uint8)] * 9, [-1] * 9)
    with pytest.raises(UserError, match="too few"):
        Photographs([few])
    pq.write_table(pa.table({"x": [1]}), few)
    with pytest.raises(UserError, match="no column 'image'"):
        Photographs([few])


def test_a_draw_is_mostly_small_images_and_sometimes_larger_crops_alone(data):
    pictures, rng = _pictures(data), np.random.default_rng(0)
    draws = [pictures.draw(20, rng) for _ in range(400)]
    small = [draw for draw in draws if len(draw.index)]
    large = [draw for draw in draws if not len(draw.index)]
    assert 0.02 < len(large) / len(draws) < 0.12
    assert all(len(d.index) == 16 and d.crops.shape == (4, 16, 16, 3) and len(d) == 20 for d in small)
    assert all(d.crops.shape == (5, 32, 32, 3) for d in large)
    alone = _pictures(data, photos=False)
    assert all(len(alone.draw(20, rng).index) == 20 for _ in range(50))
    with pytest.raises(UserError, match="--photos"):
        alone.held_crops(1, 16, rng)
    assert ["castle"] in pictures.vocabulary and ["castle"] not in alone.vocabulary


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_the_denoiser_learns_and_goes_on_where_it_stopped(data, tmp_path, network):
    vae = build_autoencoder(8, 8)
    settings = _unet(network=network, lr=3e-3)
    reference = None
    for steps in (4, 16):
        trained = train_denoiser(
            vae, _pictures(data), tmp_path / "run", Budget(steps=steps), settings, reference=reference
        )
        reference = Prior(vae, trained.denoiser, trained.scheduler, trained.text_encoder, trained.tokenizer)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < losses[0] and losses[-1] == trained.figures["velocity_mse"]
    assert {"photos_loss", "large_loss", "loss_t0.1", "loss_t0.9"} <= rows[-1].keys()
    assert trained.figures["finished"] and 60 < trained.figures["images_seen"] <= 160
    unknown = trained.tokenizer.unk_token_id
    assert unknown not in trained.tokenizer("a photo of a castle, red panda")["input_ids"]


def test_latents_are_encoded_once_and_kept(data):
    pictures, vae = _pictures(data), build_autoencoder(8, 8).eval()
    index, mirrored = np.array([3, 5, 3, 3]), np.array([0, 1, 1, 0])
    first = _Latents(vae, pictures.images).get(index, mirrored)
    x = torch.from_numpy(pictures.images[index]).permute(0, 3, 1, 2) / 127.5 - 1
    x = torch.stack([one.flip(-1) if flip else one for one, flip in zip(x, mirrored, strict=True)])
    with torch.no_grad():
        np.testing.assert_allclose(first, vae.encode(x).latent * vae.config.scaling_factor, atol=2e-3, rtol=2e-3)
        again = _Latents(vae, pictures.images)
        vae.encode = None  # nothing is encoded again
        np.testing.assert_array_equal(again.get(index[::-1], mirrored[::-1]), first[::-1])


def test_training_goes_on_from_a_prior_of_any_network(data, tmp_path, unet_prior):
    vae = build_autoencoder(8, 8)
    before = unet_prior.denoiser.conv_out.weight.clone()
    size = len(unet_prior.tokenizer)
    trained = train_denoiser(
        vae, _pictures(data), tmp_path / "a", Budget(steps=2), _unet(network="transformer"), start=unet_prior
    )
    assert type(trained.denoiser) is type(unet_prior.denoiser) and len(trained.tokenizer) == size
    assert not torch.equal(trained.denoiser.conv_out.weight, before)
    with pytest.raises(UserError, match="another shape"):
        unet_prior.latent_shape = (8, 16, 16)
        train_denoiser(vae, _pictures(data), tmp_path / "b", Budget(steps=2), _unet(), start=unet_prior)


def test_a_denoiser_of_pixels_takes_any_size_and_noise_it_has_not_seen_the_size_of():
    denoiser = PixelDenoiser(build_pixel_denoiser((8, 16)))
    for size in ((16, 16), (15, 33), (9, 8)):
        x = torch.rand(2, 3, *size, requires_grad=True)
        out = denoiser(x, torch.tensor([0.02, 0.2]))
        assert out.shape == x.shape
        torch.testing.assert_close(out[1:], denoiser(x[1:], 0.2), atol=1e-5, rtol=1e-4)
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()
    parameters = sum(p.numel() for p in build_pixel_denoiser().parameters())
    assert parameters <= 2_000_000


def test_the_gain_of_a_denoiser_is_in_decibels():
    class Half(torch.nn.Linear):
        """Takes half of the noise away: 6 dB."""

        def forward(self, noisy, sigma):
            return (noisy + self.clean) / 2

    image = np.full((60, 16, 16, 3), 102, np.uint8)
    half = Half(1, 1)
    half.clean = 0.4
    assert denoising_gain(half, image, 0.1) == pytest.approx(20 * np.log10(2), abs=0.01)


def test_the_denoiser_of_pixels_learns_and_goes_on_where_it_stopped(data, tmp_path):
    for steps in (20, 60):
        denoiser, figures = train_pixels(
            _pictures(data), tmp_path, Budget(steps=steps), _unet(lr=4e-3, schedule="stable", average=0.95)
        )
    assert figures["gain_0.12"] > 1 and figures["photos_gain_0.12"] > 1
    assert figures["finished"] and denoiser(torch.rand(1, 3, 16, 16), 0.1).shape == (1, 3, 16, 16)


def _fits(count, rng):
    """Images under an error that white noise is nothing like: one grey level too much everywhere."""
    images = np.stack([0.8 * _image(16, 16, rng) for _ in range(count)]).astype(np.uint8)
    return Fits(
        images,
        (images + 25.5).round().astype(np.uint8),
        np.full(count, 0.1, np.float32),
        np.arange(count) % 2 == 1,
        middle=EdgePipeline(TinyTarget(), "S1"),
        deepest=EdgePipeline(TinyTarget(), "S2"),
    )


def test_what_fits_leave_is_learnt_beside_noise_from_an_earlier_denoiser(data, tmp_path):
    fits = _fits(60, np.random.default_rng(3))
    settings = _unet(lr=4e-3, schedule="stable", average=0.9)
    start, _ = train_pixels(_pictures(data), tmp_path / "a", Budget(steps=30), settings)
    before = [p.clone() for p in start.parameters()]
    denoiser, figures = train_pixels(
        _pictures(data), tmp_path / "b", Budget(steps=60), settings, start=start, fits=fits
    )
    assert all(torch.equal(p, q) for p, q in zip(before, start.parameters(), strict=True))
    held = fits.parts()[1]
    assert len(held) == 6 and fit_gain(start, held) < 1 < figures["fit_gain"] == fit_gain(denoiser, held)
    denoiser.save(tmp_path / "once")
    PixelDenoiser.from_folder(tmp_path / "once").save(tmp_path / "twice")
    assert str(tmp_path) not in (tmp_path / "twice" / "config.json").read_text()
    assert figures["images_seen"] > 60 * 8 and "photos_gain_0.02" in figures


def test_fits_are_drawn_in_pairs(data):
    fits = _fits(20, np.random.default_rng(3))
    x, fit, level, deep = fits.draw(50, np.random.default_rng(0))
    assert 0 < int(deep.sum()) < 50
    assert x.shape == fit.shape == (50, 3, 16, 16) and level.tolist() == pytest.approx([0.1] * 50)
    torch.testing.assert_close(fit - x, torch.full_like(x, 0.1), atol=0.003, rtol=0)


def test_the_error_of_features_is_relative_and_has_a_gradient_for_the_answer_alone():
    fits = _fits(20, np.random.default_rng(3))
    y, x = (torch.rand(2, 3, 16, 16, requires_grad=True) for _ in range(2))
    deep = torch.tensor([False, True])
    assert float(fits.feature_error(x, x, deep).detach()) == 0

    def distance(pipeline, i):
        with torch.no_grad():
            (a,), (b,) = pipeline(y), pipeline(x)
        return np.linalg.norm(a[i] - b[i]) ** 2 / np.linalg.norm(b[i]) ** 2

    shallow = [distance(fits.middle, i) for i in range(2)]
    assert float(fits.feature_error(y, x, ~deep & deep).detach()) == pytest.approx(np.mean(shallow), rel=1e-4)
    # the second image has been fitted behind the middle
    error = fits.feature_error(y, x, deep)
    assert float(error.detach()) == pytest.approx((sum(shallow) + distance(fits.deepest, 1)) / 2, rel=1e-4)
    error.backward()
    assert float(y.grad.abs().sum()) > 0 and x.grad is None


def test_live_fits_are_nearer_to_features_than_previews_and_kept(tmp_path, monkeypatch):
    prior, target = load_prior("small"), targets.load("resnet18")
    images = np.stack([_image(64, 64, np.random.default_rng(i)) for i in range(4)])
    monkeypatch.setattr(target, "points", lambda: ["L4"])
    monkeypatch.setattr("adversary.fits._EVALUATIONS", (6,))
    fits = live_fits(prior, target, images, 1, tmp_path)
    pipeline = EdgePipeline(target, "L4")
    network = inversion_for(pipeline.description(), prior)
    assert (
        len(fits) == 4
        and fits.middle.split == fits.deepest.split == "L4"
        and not fits.deep.any()
        and fits.levels.tolist() == pytest.approx([network.pixels.deviation] * 4)
    )
    with torch.no_grad():
        (z,) = pipeline(to_tensor(fits.originals))
        previews = prior.decode(network((z,))).clamp(0, 1)

        def error(x):
            return float((pipeline(x)[0] - z).square().mean())

        assert error(to_tensor(fits.fits)) < error(previews)
    monkeypatch.setattr("adversary.fits._fitted", None)  # nothing is fitted again
    np.testing.assert_array_equal(live_fits(prior, target, images, 1, tmp_path).fits, fits.fits)
    monkeypatch.setattr(target, "points", lambda: ["output"])
    with pytest.raises(UserError, match="leave out --fits"):
        live_fits(prior, target, images, 1, tmp_path)


def test_the_command_writes_a_prior_with_both_denoisers_and_their_cards(data, tmp_path, monkeypatch, flow_prior):
    monkeypatch.setattr("adversary.training._SIZE", 16)
    monkeypatch.setattr("adversary.training._SAMPLES", 60)
    monkeypatch.setattr("adversary.training.targets.load", lambda name: None)
    monkeypatch.setattr("adversary.training.frechet_distance", lambda *args, **options: (7.5, "a network"))
    flow_prior.save(tmp_path / "old")
    common = {"data": data[0], "out": tmp_path / "out", "minutes": None, "steps": 2, "device": "cpu"}
    settings = _unet(photos=[data[1]], evaluate_every=1e-6)
    with pytest.raises(UserError, match="no autoencoder"):
        train_prior_command(**common, part="denoiser", settings=settings)
    with pytest.raises(UserError, match="--part pixels, or leave --fits out"):
        train_prior_command(**common, part="denoiser", settings=settings, fits=8)
    with pytest.raises(UserError, match="--start, such as small"):
        train_prior_command(**common, part="pixels", settings=settings, fits=8)
    with pytest.raises(UserError, match="trained or kept"):
        train_prior_command(**common, part="all", settings=settings, autoencoder=str(tmp_path / "old"))
    card = train_prior_command(**common, part="pixels", settings=settings) / "README.md"
    assert "gain_0.06" in card.read_text()
    folder = train_prior_command(**common, part="denoiser", settings=settings, autoencoder=str(tmp_path / "old"))
    prior = load_prior(str(folder))
    assert (
        prior.pixel_denoiser is not None
        and prior.masked
        and prior.latent_digest == load_prior(str(tmp_path / "old")).latent_digest
    )
    text = (folder / "README.md").read_text()
    assert (
        "UNet2DConditionModel" in text
        and "| frechet_distance_4_steps | 7.5 |" in text
        and "| minutes | images |" in text
    )
    # a full row after the first step, and one at the end
    log = [json.loads(line) for line in (tmp_path / "out" / "denoiser" / "log.jsonl").read_text().splitlines()]
    assert log[0]["reference"] == "old" and "loss_t0.5" in log[0]
    assert sum("loss" in row and "val_loss" in row for row in log) == 1 and "val_loss" in log[-1]
