"""What `splitsight list` lists."""

from __future__ import annotations

from typing import Any

__all__ = ["entries"]


def entries(kind: str, target: str = "resnet18") -> list[dict[str, Any]]:
    """Rows with a ``name`` first, of targets, splits, attacks, defenses, priors or scenarios.

    Args:
        kind: which.
        target: whose splits.

    Raises:
        UserError: no such target.
    """
    return {
        "targets": _targets,
        "splits": lambda: _splits(target),
        "attacks": _attacks,
        "defenses": _defenses,
        "priors": _priors,
        "scenarios": _scenarios,
    }[kind]()


def _about(thing: object) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


def _targets() -> list[dict[str, Any]]:
    from splitsight.targets import TARGETS

    return [{"name": name, "about": _about(target)} for name, target in TARGETS]


def _splits(target: str) -> list[dict[str, Any]]:
    from splitsight import targets

    loaded = targets.load(target)
    return [
        {
            "name": point,
            "features": ["×".join(map(str, spec.shape)) for spec in loaded.feature_specs(point)],
            "numbers": sum(spec.numel for spec in loaded.feature_specs(point)),
        }
        for point in loaded.points()
    ]


def _attacks() -> list[dict[str, Any]]:
    from adversary.attack import ATTACKS

    return [{"name": name, "about": attack.summary} for name, attack in ATTACKS]


def _defenses() -> list[dict[str, Any]]:
    from splitsight.defenses import DEFENSES

    return [{"name": name, "about": _about(defense)} for name, defense in DEFENSES]


def _priors() -> list[dict[str, Any]]:
    from adversary.priors.prior import prior_names
    from splitsight.artifacts import asset

    return [{"name": name, "folder": str(asset("priors", name))} for name in prior_names()]


def _scenarios() -> list[dict[str, Any]]:
    from scenarios.run.spec import load_scenario, read_scenario, scenario_names

    demo = {"name": "demo", "about": "one video, three processes, live reconstruction; `splitsight demo`"}
    return [demo] + [
        {"name": name, "about": load_scenario(read_scenario(name)[0], name=name).about} for name in scenario_names()
    ]
