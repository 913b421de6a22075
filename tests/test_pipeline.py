"""The edge pipeline: what the tap sees, what an attacker may expect of it, and what it says about itself."""

import pytest
import torch
from torch import nn

from splitsight.defenses import DEFENSES, Defense, Parameters, Protection
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.pipeline import EdgePipeline, Expected, resized
from splitsight.targets import OUTPUT, Normalize, Target
from splitsight.tasks.classify import Classify
from splitsight.wire.tensors import CodecSpec, decode, encode


class TwoBranches(nn.Module):
    """A map and a vector cross together behind ``left`` and ``right``."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.join = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(3, 5), nn.Linear(9, 7)

    def forward(self, x):
        a = self.left(x).relu()
        b = self.right(x.mean((2, 3)))
        return self.join(torch.cat([a.mean((2, 3)), b], 1))


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(0)
    labels = [str(i) for i in range(7)]
    return Target("two", TwoBranches(), Normalize([0.5] * 3, [0.2] * 3), Classify(labels), 16, {"A": "relu+right"})


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_halves_make_the_whole(target, images):
    pipeline = EdgePipeline(target, "A")
    whole = target.model(target.preprocess(images))
    features = pipeline(images)
    assert [s.layout for s in pipeline.specs] == ["map", "vector"]
    assert torch.equal(pipeline.tail(features), whole)
    assert torch.equal(EdgePipeline(target, OUTPUT)(images)[0], whole)


def test_off_means_equal_to_the_bit(target, images):
    pipeline = EdgePipeline(target, "A")
    for a, b, c in zip(pipeline(images), pipeline.expected(images), target.head("A")(images), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    for i, sent in enumerate(EdgePipeline(target, "A", "identity+identity").encode(images)):
        parts = zip(target.head("A")(images), pipeline.specs, strict=True)
        plain = [encode(z[i].detach().numpy(), CodecSpec(), spec) for z, spec in parts]
        assert [t.SerializeToString() for t in sent] == [t.SerializeToString() for t in plain]


def test_any_image_is_resized_to_the_input(target, images):
    pipeline = EdgePipeline(target, "A")
    assert torch.equal(resized(images, 16), images)
    for side in (8, 16, 40):
        large = torch.rand(2, 3, side, side)
        assert [z.shape[1:] for z in pipeline(large)] == [s.shape for s in pipeline.specs]
        large.requires_grad_()
        sum(z.square().sum() for z in pipeline.expected(large)).backward()
        assert large.grad.abs().sum() > 0
    # shrinking averages: a fine checkerboard becomes grey
    board = torch.ones(1, 3, 64, 64)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 0
    assert (resized(board, 16)[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_is_decoded_is_what_the_pipeline_says(target, images, dtype):
    pipeline = EdgePipeline(target, "A", codec=CodecSpec(dtype, "zstd"))
    said = pipeline(images)
    for i, tensors in enumerate(pipeline.encode(images)):
        for tensor, spec, z in zip(tensors, pipeline.specs, said, strict=True):
            assert torch.equal(torch.from_numpy(decode(tensor, spec).copy()), z[i])
    exact = EdgePipeline(target, "A")(images)
    assert any(not torch.equal(a, b) for a, b in zip(said, exact, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rounding_lets_gradients_through(target, images, dtype):
    rounded = EdgePipeline(target, "A", codec=CodecSpec(dtype))
    gradients = []
    for pipeline in (rounded, EdgePipeline(target, "A")):
        x = images.clone().requires_grad_()
        sum(z.sum() for z in Expected(pipeline)(x)).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_noise_is_what_it_says_and_no_two_tensors_share_it(target):
    pipeline = EdgePipeline(target, "relu+right", "gaussian:sigma=0.5")
    images = torch.rand(400, 3, 16, 16)
    noise = [a - b for a, b in zip(pipeline(images, Draws.stream(0)), pipeline.expected(images), strict=True)]
    for z in noise:
        assert z.std() == pytest.approx(0.5, rel=0.05) and abs(float(z.mean())) < 0.02
    both = torch.stack([noise[0].flatten(1)[:, :5].flatten(), noise[1].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1
    assert pipeline.deviations(pipeline(images)) == [0.5, 0.5]


def test_a_ratio_is_a_part_of_each_frames_own_spread(target):
    pipeline = EdgePipeline(target, "A", "gaussian:ratio=0.5")
    images = torch.rand(200, 3, 16, 16)
    clean = pipeline.expected(images)
    noisy = pipeline(images)
    own = (noisy[0] - clean[0]).flatten(1).std(1) / clean[0].flatten(1).std(1)
    assert float(own.mean()) == pytest.approx(0.5, rel=0.02) and float(own.std()) < 0.05
    true = 0.5 * float(clean[0].flatten(1).std(1).mean())
    assert pipeline.deviations(noisy)[0] == pytest.approx(true, rel=0.03)


def test_draws_depend_on_the_image_where_seeds_are_given_and_on_nothing_where_not(target, images):
    pipeline = EdgePipeline(target, "A", "gaussian:sigma=1")
    whole, alone = pipeline(images, Draws([5, 6, 7])), pipeline(images[1:2], Draws([6]))
    for a, b in zip(whole, alone, strict=True):
        torch.testing.assert_close(a[1:2], b)
    first, second = pipeline(images), pipeline(images)
    assert not torch.equal(first[0], second[0])
    with pytest.raises(ValueError, match="2 seeds were given for a batch of 3"):
        pipeline(images, Draws([1, 2]))


def test_its_description(target):
    plain, noisy = EdgePipeline(target, "A"), EdgePipeline(target, "A", "gaussian:sigma=0.5")
    about, other = plain.description(), noisy.description()
    assert (about.target, about.split, about.task, about.input_size) == ("two", "A", "classify", 16)
    assert (about.defense, other.defense) == ("identity", "gaussian:sigma=0.5")
    assert about.difference(other) == "defence identity, not gaussian:sigma=0.5"
    # the same cut by its graph's names holds the same weights
    assert EdgePipeline(target, "relu+right").description().head_digest == about.head_digest


def test_digests_follow_the_half_that_changed():
    def of(change):
        torch.manual_seed(0)
        model = TwoBranches()
        change(model)
        return Target("two", model, Normalize([0.5] * 3, [0.2] * 3), Classify(list("abcdefg")), 16).cut("relu+right")

    before, tail = of(lambda m: None), of(lambda m: m.join.bias.data.add_(1))
    head = of(lambda m: m.left.weight.data.add_(1))
    assert tail.head_digest == before.head_digest and tail.tail_digest != before.tail_digest
    assert head.head_digest != before.head_digest and head.tail_digest == before.tail_digest


class _Halve(Defense[Parameters]):
    """Sends every second channel, which the server puts back as it can."""

    name = "halve"

    class _Edge(Protection):
        def expected(self, features):
            return tuple(z[:, ::2] for z in features)

    class _Server(nn.Module):
        def __init__(self, specs):
            super().__init__()
            self.sizes = [s.shape[0] for s in specs]

        def forward(self, features):
            return tuple(z.repeat_interleave(2, 1)[:, :n] for z, n in zip(features, self.sizes, strict=True))

    def build(self, specs):
        return self._Edge(), self._Server(specs)

    def output_specs(self, specs):
        return tuple(FeatureSpec(s.name, ((s.shape[0] + 1) // 2, *s.shape[1:]), s.layout) for s in specs)


@pytest.fixture
def halving():
    DEFENSES.names()
    DEFENSES._items["halve"] = _Halve
    yield
    del DEFENSES._items["halve"]


def test_a_defence_may_change_the_shapes_and_have_a_part_on_the_server(target, images, halving):
    pipeline = EdgePipeline(target, "A", "halve+gaussian:sigma=0.1")
    assert [s.shape for s in pipeline.specs] == [(2, 8, 8), (3,)]
    assert [z.shape[1:] for z in pipeline(images)] == [(2, 8, 8), (3,)]
    assert pipeline.tail(pipeline(images)).shape == (3, 7)
    twice = EdgePipeline(target, "A", "halve+halve")
    assert [s.shape for s in twice.specs] == [(1, 8, 8), (2,)] and twice.tail(twice(images)).shape == (3, 7)


@pytest.mark.parametrize(
    ("split", "defense", "words"),
    [
        ("B", "identity", "unknown split of two 'B': choose one of A, output"),
        ("A", "magic", "unknown defense 'magic'"),
        ("left+right+join", "identity", "not a valid split point"),
    ],
)
def test_what_cannot_be_is_one_sentence(target, split, defense, words):
    with pytest.raises(UserError, match=words) as error:
        EdgePipeline(target, split, defense)
    assert "\n" not in str(error.value)
