from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from splitsight.defenses import DEFENSES, Cost, Defense
from splitsight.errors import UserError


def test_identity_changes_nothing():
    defense = DEFENSES.get("identity")()
    assert isinstance(defense, Defense)
    z = (torch.rand(2, 3), torch.rand(2, 4, 4))
    assert all(a is b for a, b in zip(defense.protect(z), z, strict=True))
    tail = nn.Linear(2, 2)
    assert defense.adapt(tail, None) is tail
    assert defense.cost() == Cost(flops=0, bytes_ratio=1.0, trained=False) and defense.guarantee() is None


def test_unknown_defense_lists_known_ones():
    with pytest.raises(UserError, match=r"unknown defense 'shredder': choose one of .*identity"):
        DEFENSES.get("shredder")


def test_every_defense_documents_itself():
    assert all(d.__doc__ and issubclass(d, Defense) for _, d in DEFENSES)


def test_listing_defenses_does_not_import_torch():
    code = "from splitsight.defenses import DEFENSES; DEFENSES.names(); import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
