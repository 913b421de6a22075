"""net-best as a live adversary: from a file to previews and windows, with nothing that is F1."""

import pytest
import torch
from test_net_best import _fresh, _pairs

from adversary.attacks import ATTACKS
from adversary.blackbox.networks import save_network
from adversary.live import blackbox
from adversary.live.engine import Engine
from adversary.live.options import LiveOptions
from adversary.live.windows import Observation, Window
from splitsight.errors import UserError
from splitsight.features import FeatureSpec


@pytest.mark.parametrize("surrogate", [False, True])
def test_it_runs_live_without_f1(flow_prior, tmp_path, monkeypatch, surrogate):
    monkeypatch.setattr(blackbox, "load_prior", lambda name: flow_prior)
    network, pairs = _fresh(flow_prior).eval(), _pairs(4)
    network.surrogate.measure(pairs.features)
    network.decide(0.0, surrogate=surrogate)
    save_network(tmp_path / "n.safetensors", network, ["0" * 64], {})
    common = {"tap": "", "out": tmp_path, "target": "net", "split": "L1", "network": tmp_path / "n.safetensors"}
    known = blackbox.know(LiveOptions(**common))
    assert (known.target, known.split, known.digest, known.defense) == ("net", "L1", "a" * 64, "identity")
    assert [s.shape for s in known.specs] == [(5, 4, 4)] and set(known.weights) == {"network", "prior"}
    engine = known.engine
    assert (engine.pipeline is not None) == surrogate and engine.attack.settings.likelihood_weight == 1.0
    z = torch.from_numpy(pairs.features[0])
    frames = [Observation(i, 0, 0.0, (z[:1],)) for i in range(3)]
    with torch.no_grad():
        plain = flow_prior.decode(network([z[:1]])).clamp(0, 1)[0]
    torch.testing.assert_close(engine.preview(frames[0]), plain, atol=0.02, rtol=0.02)
    result = engine.refine(Window(0, frames, True))
    assert result.images.shape == (3, 3, 16, 16) and result.images.isfinite().all()
    # frames that are all the same have nothing to tell each other
    if not surrogate:
        torch.testing.assert_close(result.images[1], plain, atol=0.03, rtol=0.03)
        with pytest.raises(UserError, match="window needs the first part of the attacked network"):
            blackbox.know(LiveOptions(**common, setting="denoised"))
    # the attack that needs the network drives it itself
    own = blackbox.know(LiveOptions(**common, attack="net-best")).engine
    assert own.network is not None and own.pipeline is None
    assert own.refine(Window(0, frames, True)).images.isfinite().all()
    for name in ("weights", "inversion"):
        with pytest.raises(UserError, match=f"has no use for --{name}"):
            blackbox.know(LiveOptions(**common, **{name: tmp_path / "f"}))
    with pytest.raises(UserError, match=r"another split \(L1, not L2\)"):
        blackbox.know(LiveOptions(**{**common, "split": "L2"}))


def test_a_networks_own_record_says_which_defence_it_expects(flow_prior, tmp_path, monkeypatch):
    monkeypatch.setattr(blackbox, "load_prior", lambda name: flow_prior)
    network = _fresh(flow_prior, defense="gaussian:sigma=0.5").eval()
    save_network(tmp_path / "n.safetensors", network, ["0" * 64], {})
    options = LiveOptions(tap="", out=tmp_path, target="net", split="L1", network=tmp_path / "n.safetensors")
    assert blackbox.know(options).defense == "gaussian:sigma=0.5"


def test_a_window_without_a_surrogate_averages_what_agrees(flow_prior):
    network = _fresh(flow_prior).eval()
    network.decide(0.0, surrogate=False)
    z = torch.from_numpy(_pairs(1).features[0])
    noisy = [z + 0.01 * z.std() * torch.randn(z.shape, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    apart = {}
    for smoothing in (0.0, 1e4):
        attack = ATTACKS.get("window").configured(changes={"smoothing": smoothing})
        engine = Engine(attack, [FeatureSpec("z0", z.shape[1:])], prior=flow_prior, initial=network.core)
        frames = [Observation(i, 0, 0.0, (f,)) for i, f in enumerate(noisy)]
        for frame in frames:
            engine.preview(frame)
        apart[smoothing] = float(engine.refine(Window(0, frames, True)).images.std(0).mean())
    assert apart[1e4] < 0.5 * apart[0.0]
