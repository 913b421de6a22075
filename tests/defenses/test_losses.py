"""The mathematics of trained defences against independent references, and that each loss reaches what it should."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import kurtosis, multivariate_normal, norm, spearmanr
from tiny import TinyTarget
from torch import nn
from torch.nn.functional import mse_loss

from splitsight.defenses import DEFENSES, Protection
from splitsight.defenses.cem import information_bound
from splitsight.defenses.nopeek import corrected_distance_correlation, distance_correlation
from splitsight.defenses.siamese import contrastive
from splitsight.defenses.training import Batch, settings_of
from splitsight.defenses.training.inverter import Inverter, inversion_loss
from splitsight.defenses.training.loop import System, Through, distillation
from splitsight.defenses.vib import divergence
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.tasks.classify import Classify
from splitsight.tasks.embed import Embed

METHODS = ["adversarial", "bottleneck", "cem", "disco", "nopeek", "shredder", "siamese", "vib"]


def dcor_corrected(x, z):
    """R*² as Székely and Rizzo (2014) define it, by loops over the definition's indices."""
    n = len(x)

    def centred(rows):
        a, u = cdist(rows, rows), np.zeros((n, n))
        for k in range(n):
            for m in range(n):
                if k != m:
                    u[k, m] = a[k, m] - a[k].sum() / (n - 2) - a[:, m].sum() / (n - 2) + a.sum() / ((n - 1) * (n - 2))
        return u

    a, b = centred(x), centred(z)
    return (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())


def dcor(x, z):
    """Distance correlation as Székely, Rizzo and Bakirov define it, by loops over the definition's indices."""
    n = len(x)

    def centred(rows):
        a = cdist(rows, rows)
        return np.array([[a[k, m] - a[k].mean() - a[:, m].mean() + a.mean() for m in range(n)] for k in range(n)])

    a, b = centred(x), centred(z)
    vxz, vxx, vzz = (a * b).sum() / n**2, (a * a).sum() / n**2, (b * b).sum() / n**2
    return math.sqrt(vxz / math.sqrt(vxx * vzz))


def test_distance_correlation_is_the_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6))
    for z in (rng.normal(size=(20, 3)), x[:, :3] ** 2, np.abs(x) + 0.1 * rng.normal(size=x.shape)):
        found = distance_correlation(torch.from_numpy(x), torch.from_numpy(z))
        assert float(found) == pytest.approx(dcor(x, z), rel=1e-10)
        found = corrected_distance_correlation(torch.from_numpy(x), torch.from_numpy(z))
        assert float(found) == pytest.approx(dcor_corrected(x, z), rel=1e-10)


def test_only_the_corrected_distance_correlation_of_a_small_batch_tells_independence():
    generator = torch.Generator().manual_seed(13)
    biased, corrected = [], []
    for _ in range(50):
        x, z = (torch.randn(16, 1000, generator=generator) for _ in range(2))
        biased.append(float(distance_correlation(x, z)))
        corrected.append(float(corrected_distance_correlation(x, z)))
    assert min(biased) > 0.9 and abs(np.mean(corrected)) < 4 * np.std(corrected) / 50**0.5 < 0.1
    assert float(corrected_distance_correlation(x, 2 * x + 1)) == pytest.approx(1)
    assert float(corrected_distance_correlation(x, torch.ones(16, 3))) == 0


def test_distance_correlation_has_its_known_properties():
    x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    assert float(distance_correlation(x, 3 * x @ rotation + 7)) == pytest.approx(1)
    assert float(distance_correlation(x, torch.ones(64, 2, dtype=torch.float64))) == 0
    # squared distances would see nothing here: z is uncorrelated with x, and a function of it
    line = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    assert float(distance_correlation(line, line**2)) == pytest.approx(dcor(line.numpy(), line.numpy() ** 2))
    assert float(distance_correlation(line, line**2)) > 0.4


@pytest.mark.parametrize("measure", [distance_correlation, corrected_distance_correlation])
def test_distance_correlation_of_equal_features_has_a_gradient(measure):
    z = torch.ones(8, 3, requires_grad=True)
    found = measure(torch.rand(8, 5), z)
    found.backward()
    assert float(found.detach()) == 0 and torch.isfinite(z.grad).all()


def test_distance_correlation_has_the_gradient_of_its_values():
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: distance_correlation(x, z), z)
    assert torch.autograd.gradcheck(lambda z: corrected_distance_correlation(x, z), z)
    twice = z.detach()[[0, 0, 1, 2, 3, 4]].requires_grad_(True)  # two frames alike: a distance of 0 has no gradient
    distance_correlation(x, twice).backward()
    assert twice.grad is not None and bool(torch.isfinite(twice.grad).all())


def test_divergence_is_that_of_normal_distributions():
    m, s, p, q = (torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(4))
    known = torch.distributions.kl_divergence(
        torch.distributions.Normal(m, s.exp()), torch.distributions.Normal(p, q.exp())
    )
    assert torch.allclose(divergence(m, s, p, q), known, atol=1e-4)
    assert float(divergence(m, s, m, s).abs().max()) == 0


def test_contrastive_loss_by_hand():
    d = torch.tensor([[0.0, 0.5, 2.0], [0.5, 0.0, 0.4], [2.0, 0.4, 0.0]])
    classes = torch.tensor([0, 0, 1])
    found = contrastive(d, classes[:, None] == classes[None], 1.0)
    assert float(found) == pytest.approx(0.5 * 0.5**2 + 0.5 * (0.6**2 + 0) / 2)
    # a batch of one class only
    assert float(contrastive(d, torch.ones(3, 3, dtype=torch.bool), 1.0)) == pytest.approx(0.5 * (0.25 + 4 + 0.16) / 3)


def test_the_information_bound_is_exact_for_one_gaussian():
    rng = np.random.default_rng(4)
    rows = torch.from_numpy(rng.normal(size=(20_000, 3)) * [1.0, 2.0, 0.1]).float()
    nearest = torch.zeros(len(rows), dtype=torch.long)
    found = information_bound(rows, rows.mean(0, keepdim=True), nearest, 0.5)
    exact = multivariate_normal(cov=np.diag(np.array([1.0, 4.0, 0.01]) + 0.5)).entropy()
    exact -= multivariate_normal(cov=0.5 * np.eye(3)).entropy()
    assert float(found) == pytest.approx(exact, rel=0.02)


def test_the_information_bound_lies_above_the_information_of_a_mixture():
    """Two overlapping Gaussians on a line; the entropy of their noisy mixture by quadrature."""
    rng = np.random.default_rng(5)
    which = rng.random(20_000) < 0.3
    rows = torch.from_numpy(rng.normal(size=20_000) * 0.7 + np.where(which, 2.0, 0.0)).float()[:, None]
    nearest = torch.from_numpy(which.astype(np.int64))
    found = float(information_bound(rows, torch.tensor([[0.0], [2.0]]), nearest, 0.4))
    t = np.linspace(-6, 8, 20_001)
    density = 0.7 * norm.pdf(t, 0, math.sqrt(0.89)) + 0.3 * norm.pdf(t, 2, math.sqrt(0.89))
    exact = np.trapezoid(-density * np.log(density), t) - norm(scale=math.sqrt(0.4)).entropy()
    label = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert exact < found < exact + label
    assert found == pytest.approx(label + 0.5 * math.log(0.89 / 0.4), rel=0.02)


def test_the_information_bound_falls_with_noise_and_grows_with_features():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(6)).requires_grad_(True)
    centroids, nearest = torch.zeros(2, 5), torch.arange(40) % 2
    low, high = (information_bound(rows, centroids, nearest, v) for v in (4.0, 0.1))
    assert bool(low < high)
    high.backward()
    # a step along the gradient pushes features away from their centroids
    assert rows.grad is not None and bool((rows.grad * rows).sum() > 0)


def _fresh(name, settings):
    """A method with its parts on a tiny net, and what is in a step of it."""
    target = TinyTarget()
    cut = target.cut("S1")
    kind = DEFENSES.get(name)
    chosen = settings_of(kind, settings)
    torch.manual_seed(0)
    edge, server = kind.parts(chosen, cut.specs)
    method = kind.Method(chosen, cut.specs, 16)
    system = System(copy.deepcopy(cut.head), edge, server, copy.deepcopy(cut.tail))
    if chosen.halves == "both":
        system.head.requires_grad_(True)
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        method.begin(edge, server, cut.head(images))
    system.train()
    return system, method, cut, images, target.task


SETTINGS = {
    "bottleneck": {"channels": 2},
    "disco": {"ratio": 0.5},
    "shredder": {"tensors": 3, "inverse_snr": 2.0},
}


@pytest.mark.parametrize("name", METHODS)
def test_each_penalty_reaches_what_it_trains_and_falls(name):
    system, method, cut, images, _ = _fresh(name, SETTINGS.get(name, {}))
    if name == "adversarial":
        method.settings = method.settings.model_copy(update={"threshold": 0.0})
    if name == "bottleneck":  # begins at the best linear choice
        for linear in (*system.edge.maps, *system.server.maps):
            linear.reset_parameters()
    if name == "shredder":
        with torch.no_grad():
            for noise in system.edge.noise:
                noise.mul_(0.1)  # weaker than wanted
    own = [*method.parameters()] if name == "vib" else []
    parameters = [p for p in (*system.parameters(), *own) if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, 3e-3)

    def loss(i=0):
        return method.penalty(system(images, cut, Draws(range(24 * i, 24 * i + 24)))).loss

    first = loss()
    first.backward()
    reached = [p for p in parameters if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    assert reached, "the penalty has no gradient"
    if name in ("adversarial", "cem", "nopeek", "siamese", "vib"):
        assert any(p is q for p in reached for q in system.head.parameters())
    if name in ("bottleneck", "disco", "shredder", "vib"):
        assert any(p is q for p in reached for q in system.edge.parameters())
    for i in range(60):
        optimizer.zero_grad()
        loss(i).backward()
        optimizer.step()
    assert bool(loss() < first)


@pytest.mark.parametrize("name", METHODS)
def test_the_task_reaches_what_each_method_adds(name):
    system, _, cut, images, task = _fresh(name, SETTINGS.get(name, {}))
    batch = system(images, cut, Draws(range(24)))
    distillation(batch.outputs, batch.wanted, task).backward()
    added = [*system.edge.parameters()] + ([] if system.server is None else [*system.server.parameters()])
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in added)


def test_an_opponent_learns_to_invert_and_leaves_the_defence_alone():
    system, method, cut, images, _ = _fresh("adversarial", {})
    optimizer = torch.optim.Adam(method.opponent.parameters(), 1e-2)
    errors = []
    for _ in range(40):
        batch = system(images, cut, Draws())
        loss = method.against(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.8 * errors[0]
    assert all(p.grad is None for p in system.parameters())


@pytest.mark.parametrize(
    ("score", "threshold", "active"),
    [("ssim", 1.0, False), ("ssim", 0.0, True), ("mse", 0.0, False), ("mse", 1.0, True)],
)
def test_the_hinge_ends_where_the_inverter_fails_enough(score, threshold, active):
    system, method, cut, images, _ = _fresh("adversarial", {"score": score, "threshold": threshold})
    with torch.no_grad():
        method.opponent.steps[-2].bias.fill_(0.3)
    method.penalty(system(images, cut, Draws())).loss.backward()
    total = sum(float(p.grad.abs().sum()) for p in system.head.parameters())
    assert (total > 0) == active


def test_the_inverter_takes_any_layout():
    specs = (
        FeatureSpec("a", (4, 3, 3)),
        FeatureSpec("b", (17, 5)),
        FeatureSpec("c", (12,)),
        FeatureSpec("d", (6, 6, 2)),
    )
    inverter = Inverter(specs, 20, width=16)
    z = tuple(torch.randn(2, *spec.shape) for spec in specs)
    images = inverter(z)
    assert images.shape == (2, 3, 20, 20) and 0 <= float(images.min()) <= float(images.max()) <= 1
    loss = inversion_loss(inverter, z, torch.rand(2, 3, 20, 20))
    loss.backward()
    assert all(p.grad is not None for p in inverter.parameters())


def test_logits_are_distilled_softly_and_other_outputs_by_their_error():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(8))
    task = Classify([str(i) for i in range(7)])
    assert float(distillation(logits, logits, task)) == pytest.approx(0, abs=1e-6)
    other = torch.zeros_like(logits).requires_grad_(True)
    found = distillation(other, logits, task)
    p = (logits / 2).softmax(1)
    assert float(found) == pytest.approx(4 * float((p * (p * 7).log()).sum(1).mean()), rel=1e-5)
    found.backward()
    assert other.grad is not None and bool(other.grad.abs().sum() > 0)
    wanted = {"a": logits, "b": [torch.arange(4)]}
    off = {"a": logits + 1, "b": [torch.arange(4)]}
    assert float(distillation(off, wanted, Embed())) == pytest.approx(1 / float(logits.var()), rel=1e-5)


def test_training_behind_a_defence_sees_its_values_and_the_gradient_of_what_is_expected():
    class _Rounding(Protection):
        def forward(self, features, draws):
            return tuple(z.round() for z in features)

        def expected(self, features):
            return tuple(2 * z for z in features)

    z = torch.tensor([[0.2, 1.7]], requires_grad=True)
    through = Through(_Rounding()).train()
    assert through.training and not through.inner.training
    (sent,) = through((z,), Draws())
    assert sent.tolist() == [[0.0, 2.0]]
    sent.sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[2.0, 2.0]]


def test_shredder_draws_fresh_laplace_numbers_in_the_order_it_learned():
    spec = FeatureSpec("z", (8, 10, 10))
    kind = DEFENSES.get("shredder")
    edge, _ = kind.parts(settings_of(kind, {"tensors": 2, "inverse_snr": 0.5}), (spec,))
    method = kind.Method(settings_of(kind, {"tensors": 2, "inverse_snr": 0.5}), (spec,), 16)
    z = 3 * torch.randn(40, *spec.shape, generator=torch.Generator().manual_seed(9))
    method.begin(edge, None, (z,))
    learned = edge.noise[0].detach().flatten(1)
    assert float(learned.var(1).mean()) == pytest.approx(0.5 * 9, rel=0.15)
    edge.eval()
    (sent,) = edge((z,), Draws(range(40)))
    noise = (sent - z).detach().flatten(1)
    assert not torch.equal(noise[0], noise[1])
    # each frame's numbers are in the order of one of the two, and both are used
    ranks = np.array([[spearmanr(n, m).statistic for m in learned] for n in noise.numpy()])
    assert np.all(ranks.max(1) > 0.9999) and set(ranks.argmax(1)) == {0, 1}
    assert kurtosis(noise.flatten().numpy()) == pytest.approx(3, abs=0.7)  # a Laplace distribution's
    assert torch.allclose(edge.expected((z,))[0], z + edge.noise[0].mean(0))
    (spread,) = edge.deviations((z,))
    assert spread.shape == spec.shape and torch.allclose(spread, edge.noise[0].std(0))


def test_a_strong_noise_is_not_pushed_further():
    system, method, cut, images, _ = _fresh("shredder", {"tensors": 2, "inverse_snr": 0.1})
    with torch.no_grad():
        system.edge.noise[0].mul_(10)
    assert float(method.penalty(system(images, cut, Draws(range(24)))).loss) == 0


def test_disco_drops_its_share_and_the_tap_shows_which():
    specs = (FeatureSpec("map", (8, 4, 4)), FeatureSpec("tokens", (5, 6)), FeatureSpec("vector", (10,)))
    kind = DEFENSES.get("disco")
    torch.manual_seed(3)
    edge, _ = kind.parts(settings_of(kind, {"ratio": 0.5}), specs)
    z = tuple(torch.randn(6, *spec.shape) for spec in specs)
    sent = edge(z, Draws())
    masks = edge.support(sent)
    for spec, original, seen, mask in zip(specs, z, sent, masks, strict=True):
        alive = spec.channels_last(mask).reshape(6, -1, spec.channels)
        assert (alive == alive[:, :1]).all() and (alive[:, 0].sum(1) == spec.channels // 2).all()
        assert torch.equal(seen, original * mask)
    assert len({tuple(row) for row in edge.masks(z)[0].detach().round().int().tolist()}) > 1, "one mask for all frames"
    matched = edge.expected_on(tuple(torch.ones_like(m, dtype=torch.float32) for m in masks), masks)
    assert all(torch.equal(m, mask.float()) for m, mask in zip(matched, masks, strict=True))
    with pytest.raises(UserError, match="drops no channel"):
        kind.parts(settings_of(kind, {"ratio": 0.01}), specs)


def test_a_bottleneck_starts_at_the_principal_components():
    specs = (
        FeatureSpec("map", (6, 4, 4)),
        FeatureSpec("last", (4, 4, 6)),
        FeatureSpec("tokens", (5, 6)),
        FeatureSpec("v", (6,)),
    )
    kind = DEFENSES.get("bottleneck")
    settings = settings_of(kind, {"channels": 2})
    edge, server = kind.parts(settings, specs)
    generator = torch.Generator().manual_seed(4)
    plane = torch.randn(2, 6, generator=generator)  # features that two channels hold without loss
    z = tuple(
        spec.from_channels_last(
            torch.randn(*spec.channels_last(torch.zeros(9, *spec.shape)).shape[:-1], 2, generator=generator) @ plane + 1
        )
        for spec in specs
    )
    kind.Method(settings, specs, 16).begin(edge, server, z)
    sent = edge(z, Draws())
    assert [tuple(s.shape[1:]) for s in sent] == [(2, 4, 4), (4, 4, 2), (5, 2), (2,)]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(server(sent), z, strict=True))
    # noise that was there before is spread by the map as it is on average
    noise = torch.randn(4000, *specs[0].shape, generator=generator) * torch.rand(specs[0].shape, generator=generator)
    quiet = (noise.std(0), 0.0, 0.0, 0.0)
    spread = edge((noise, *(z_.new_zeros(4000, *s.shape) for z_, s in zip(z[1:], specs[1:], strict=True))), Draws())
    assert torch.allclose(edge.carried(quiet)[0][0], spread[0].detach().std(0), rtol=0.1)
    assert all(float(s.max()) == 0 for s in edge.carried(quiet)[1:])
    for k, words in ((6, "fewer channels"), (9, "fewer channels")):
        with pytest.raises(UserError, match=words):
            kind.parts(settings_of(kind, {"channels": k}), specs)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("nopeek", {"weigth": 1}, "unknown setting of the training of nopeek 'weigth': choose one of .*weight"),
        ("nopeek", {"halves": "tail"}, "halves: input should be 'both'"),
        ("bottleneck", {"channels": 0}, "channels: input should be greater than or equal to 1"),
        ("disco", {"ratio": 1}, "ratio: input should be less than 1"),
        ("shredder", {"rate": "fast"}, "rate: input should be a valid number"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(name, given, words):
    with pytest.raises(UserError, match=words) as error:
        settings_of(DEFENSES.get(name), given)
    assert "\n" not in str(error.value)


def test_siamese_needs_classes():
    kind = DEFENSES.get("siamese")
    method = kind.Method(settings_of(kind, {}), (FeatureSpec("z", (3,)),), 16)
    z = (torch.randn(4, 3),)
    batch = Batch(torch.rand(4, 3, 16, 16), z, z, z, [z], z, [z], nn.Identity())
    with pytest.raises(UserError, match="needs a network that gives classes"):
        method.penalty(batch)


def test_the_conditional_entropy_bound_is_reached_by_no_inverter():
    """Theorem 1 on a case that is known exactly: Gaussian x, z = x + ε; the best estimate's error is the bound."""
    variance, noise = 2.0, 0.7
    entropy = multivariate_normal(cov=variance * np.eye(4)).entropy()
    information = 0.5 * 4 * math.log1p(variance / noise)
    bound = math.exp(2 * (entropy - information) / 4) / (2 * math.pi * math.e)
    x = math.sqrt(variance) * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(11))
    z = x + math.sqrt(noise) * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(12))
    rows = information_bound(x, torch.zeros(1, 4), torch.zeros(len(x), dtype=torch.long), noise)
    assert float(rows) == pytest.approx(information, rel=0.02)
    assert float(mse_loss(z * variance / (variance + noise), x)) == pytest.approx(bound, rel=0.02)
