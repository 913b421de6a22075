"""Imports point one way: scenarios → {edge_client, cloud_server, adversary} → splitsight; roles never meet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROLES = {"edge_client", "cloud_server", "adversary"}
MAY_IMPORT = {
    "splitsight": set(),
    **{role: {"splitsight"} for role in ROLES},
    "scenarios": {"splitsight", *ROLES},
}
FILES = sorted(f for package in MAY_IMPORT for f in (ROOT / package).rglob("*.py"))


def imported(source: str, module: list[str]) -> set[str]:
    """Top-level names that a module imports anywhere, inside functions and by ``import_module`` too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.add(module[0] if node.level < len(module) + 1 else "(outside)")
            elif node.module:
                found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in ("import_module", "__import__", "run_module") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value.split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file):
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    ours = imported(file.read_text(encoding="utf-8"), parts) & (set(MAY_IMPORT) | {"(outside)"})
    wrong = ours - {parts[0]} - MAY_IMPORT[parts[0]]
    assert not wrong, f"{file.relative_to(ROOT)} must not import {', '.join(sorted(wrong))}"


def test_the_check_sees_what_it_should():
    source = (
        "def f():\n    from adversary.live import run\n    import_module('cloud_server.server')\nimport edge_client.x"
    )
    assert imported(source, ["splitsight", "a"]) == {"adversary", "cloud_server", "edge_client"}


def test_every_folder_with_code_is_a_package():
    for file in FILES:
        assert (file.parent / "__init__.py").is_file(), f"{file.parent.relative_to(ROOT)} lacks __init__.py"


def test_the_tree_of_the_design():
    for folder in (
        "protos/splitsight/v1",
        "splitsight/targets",
        "splitsight/wire",
        "splitsight/defenses",
        "splitsight/metrics",
        "adversary/priors",
        "adversary/whitebox",
        "adversary/blackbox",
        "adversary/live",
    ):
        assert (ROOT / folder).is_dir(), folder
    assert (ROOT / "splitsight" / "split" / "__init__.py").is_file()


def test_protos_are_the_only_contract_between_processes():
    names = {p.name for p in (ROOT / "protos" / "splitsight" / "v1").glob("*.proto")}
    assert {"tensor.proto", "split_inference.proto", "tap.proto"} <= names
