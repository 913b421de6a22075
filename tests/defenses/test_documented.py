"""What ``docs/trained-defenses.md`` says of settings and of limits is what the code has."""

import math
import re
from pathlib import Path

import pytest
import torch
from scipy.optimize import brentq

from splitsight.defenses import DEFENSES, parse_defense
from splitsight.defenses.training import Learned, Settings
from splitsight.defenses.training.command import DefenseOptions, train_defense_command
from splitsight.pipeline import EdgePipeline

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "trained-defenses.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in DEFENSES if issubclass(k, Learned)])
def test_every_setting_of_a_method_is_on_the_page_with_its_default(name, kind):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    said = dict(re.findall(r"`(\w+)` = ([\w.]+)", row))
    own = {k: f.default for k, f in kind.Settings.model_fields.items() if k not in Settings.model_fields}
    own |= {"halves": "tail"} if name == "aware" else {}
    assert said == {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in own.items()}


def _column(head):
    cells = next(line for line in PAGE.splitlines() if line.startswith(f"| {head} |")).split("|")[2:-1]
    return [cell.strip() for cell in cells]


def test_what_no_training_can_recover_is_computed_from_the_mechanism():
    def accuracy(nats, classes=200):
        def excess(error):
            entropy = -error * math.log(error) - (1 - error) * math.log(1 - error)
            return entropy + error * math.log(classes - 1) - (math.log(classes) - nats)

        return 1 - brentq(excess, 1e-12, 1 - 1 / classes)

    rows = zip(_column("ε a frame"), _column("σ / C"), _column("nats at most"), _column("top-1 at most"), strict=True)
    for epsilon, sigma, nats, top1 in rows:
        mechanism = parse_defense(f"clip:norm=1+gaussian:epsilon={epsilon},delta=1e-5").mechanism
        assert mechanism is not None
        ratio = 2 * mechanism.multiplier
        information = 1 / (2 * ratio**2)
        assert sigma == f"{ratio:.2f}" and nats == f"{information:.2f}"
        if top1 == "–":
            assert information > math.log(200)
        else:
            assert float(top1.split()[0]) == pytest.approx(
                100 * accuracy(information), abs=0.51 if information > 0.3 else 0.06
            )


def test_the_pages_method_trains(pictures, tiny_target, tmp_path, monkeypatch):
    monkeypatch.setattr("splitsight.defenses.training.command.targets.load", lambda name, weights: tiny_target)
    monkeypatch.setattr(DEFENSES, "_items", dict(DEFENSES))
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert source is not None
    exec(source[1], {"__name__": "page"})
    changes = {"weight": 3, "rate": 3e-3}
    options = DefenseOptions("sparse", pictures, tmp_path / "out", split="S1", steps=40, batch=8, changes=changes)
    file = train_defense_command(options)
    x = torch.rand(2, 3, 16, 16)
    plain, sparse = (EdgePipeline(tiny_target, "S1", d).protected(x)[0] for d in ("identity", f"sparse:weights={file}"))
    assert float(sparse.abs().mean()) < 0.9 * float(plain.abs().mean())
