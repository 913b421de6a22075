"""FIA-Flow's two parts: what they start as, and what they keep to themselves."""

import copy

import pytest
import torch

from adversary.blackbox.flow import LEVEL, Aligned, Flow
from splitsight.features import FeatureSpec


@pytest.mark.parametrize(
    "shapes",
    [[(16, 4, 4)], [(8, 16, 16)], [(32, 1, 1)], [(5, 12)], [(20,)], [(4, 3, 3), (6,)], [(3, 7, 5)], [(6, 6, 9)]],
    ids=str,
)
def test_alignment_fits_any_feature(shapes):
    specs = [FeatureSpec(f"z{i}", shape) for i, shape in enumerate(shapes)]
    assert Aligned(specs, (8, 4, 4), width=8)([torch.randn(2, *s) for s in shapes]).shape == (2, 8, 4, 4)


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_untrained_step_is_the_priors_own_estimate(flow_prior, everywhere):
    flow, z = Flow(flow_prior, 2, everywhere=everywhere), torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(flow(z), flow_prior.denoise(z, LEVEL))
        # a rectified flow: the denoiser's velocity at level τ, times −τ₀, whatever τ
        velocity = (z - flow_prior.denoise(z, 0.15)) / 0.15
        torch.testing.assert_close(flow.velocity(z, 0.5), -LEVEL * velocity, atol=1e-5, rtol=1e-4)


def test_ddim_priors_do_too(stable_prior):
    flow, z = Flow(stable_prior, 2), torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(flow(z), stable_prior.denoise(z, LEVEL))


def test_only_the_adaptations_learn_and_the_prior_stays(flow_prior):
    before = copy.deepcopy(flow_prior.state_dict())
    flow, z = Flow(flow_prior, 2), torch.randn(2, 8, 4, 4)
    assert all("/up" in key or "/down" in key for key in flow.state_dict())
    assert not any(p.requires_grad for p in flow_prior.parameters())
    optimizer = torch.optim.SGD(flow.parameters(), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        flow(z).square().sum().backward()
        optimizer.step()
    assert not torch.allclose(flow(z), flow_prior.denoise(z, LEVEL))
    for key, value in flow_prior.state_dict().items():
        assert torch.equal(value, before[key]), key
    again = Flow(flow_prior, 2)
    again.load_state_dict(flow.state_dict())
    torch.testing.assert_close(again(z), flow(z))


def test_the_adaptations_are_a_low_rank_product_added_to_each_layer(flow_prior):
    flow, z = Flow(flow_prior, 2, everywhere=True), torch.randn(2, 8, 4, 4)
    adapted = copy.deepcopy(flow_prior)
    for key in {key.rpartition("/")[0] for key in flow.adaptations}:
        down, up = flow.adaptations[f"{key}/down"], flow.adaptations[f"{key}/up"]
        torch.nn.init.normal_(up, std=0.1)
        with torch.no_grad():
            adapted.denoiser.get_submodule(key.replace("/", ".")).weight += up @ down
    with torch.no_grad():
        torch.testing.assert_close(flow(z), adapted.denoise(z, LEVEL), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(flow(z), flow_prior.denoise(z, LEVEL))
