"""One string names a network: how it is read, and what the network is called."""

from __future__ import annotations

import pytest

from splitsight.errors import UserError
from splitsight.specification import Specification, specify, target_name


@pytest.mark.parametrize(
    ("text", "source", "what", "size", "name"),
    [
        ("resnet18", "", "resnet18", None, "resnet18"),
        ("torchvision:resnet50", "torchvision", "resnet50", None, "torchvision:resnet50"),
        ("timm:resnet18.a1_in1k@96", "timm", "resnet18.a1_in1k", 96, "timm:resnet18.a1_in1k@96"),
        ("transformers:/srv/nets/vit", "transformers", "/srv/nets/vit", None, "transformers:vit"),
        ("transformers:google/vit-base", "transformers", "google/vit-base", None, "transformers:vit-base"),
        ("yolov2:runs/garden/", "yolov2", "runs/garden/", None, "yolov2:garden"),
        ("pack.nets:build@3x32x32", "module", "pack.nets:build", 32, "pack.nets:build@32"),
        ("/srv/a@b/nets.py:Net.small@32x32", "module", "/srv/a@b/nets.py:Net.small", 32, "nets:Net.small@32"),
        (r"C:\nets\mine.py:build", "module", r"C:\nets\mine.py:build", None, "mine:build"),
    ],
)
def test_reading(text, source, what, size, name):
    assert Specification.parse(text) == Specification(source, what, size)
    assert target_name(text) == name and target_name(name) == name


def test_the_size_may_be_given_beside_it():
    assert specify("a:b", None) == "a:b" and specify("a:b", "3x32x32") == "a:b@32"
    assert specify("a:b@32", "32") == "a:b@32" and specify("resnet18", None) == "resnet18"
    with pytest.raises(UserError, match=r"--input 64 and the target a:b@32 differ"):
        specify("a:b@32", "64")
    with pytest.raises(UserError, match=r"'resnet18' has an input size of its own"):
        specify("resnet18", "64")
    for size in ("3x32x31", "1x28x28", "0", "-1", "x", "3x", "big", "3x3x3x3", "2x32x32"):
        with pytest.raises(UserError, match=r"none that can be fed.*3x224x224"):
            specify("a:b", size)
