"""What `splitsight list` lists."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitsight.targets import Target

__all__ = ["entries", "split_entries"]


def entries(kind: str, target: str = "resnet18", tensors: int = 1, weights: Path | None = None) -> list[dict[str, Any]]:
    """Rows with a ``name`` first, of one kind of thing.

    Args:
        kind: which.
        target: whose splits.
        tensors: that may cross one, at most.
        weights: of the target; where its split points are does not depend on them.

    Raises:
        UserError: no such target.
    """
    return {
        "targets": _targets,
        "splits": lambda: _splits(target, tensors, weights),
        "attacks": _attacks,
        "defenses": _defenses,
        "tasks": lambda: [{"name": name, "about": _about(task)} for name, task in _registry("tasks", "TASKS")],
        "metrics": _metrics,
        "networks": _networks,
        "priors": _priors,
        "scenarios": _scenarios,
    }[kind]()


def _about(thing: object) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


def _targets() -> list[dict[str, Any]]:
    from splitsight.targets import TARGETS

    return [{"name": name, "about": _about(target)} for name, target in TARGETS]


def _splits(target: str, tensors: int, weights: Path | None) -> list[dict[str, Any]]:
    from splitsight import targets

    return split_entries(targets.load(target, weights), tensors)


def split_entries(target: Target, tensors: int = 1) -> list[dict[str, Any]]:
    """The family's names, and all points of the graph where so many tensors cross at most, shallow first."""
    from scenarios.splits.points import all_points

    return [
        {
            "name": point.name,
            "at": point.at,
            "features": [spec.show for spec in point.tensors],
            "layout": [spec.layout for spec in point.tensors],
            "KiB a frame": round(point.bytes / 1024, 1),
            "F1 parameters": point.parameters,
            "F1 MFLOPs": round((point.flops or 0) / 1e6, 1),
        }
        for point in all_points(target, tensors)
    ]


def _attacks() -> list[dict[str, Any]]:
    from adversary.attacks import ATTACKS

    words = {"pipeline": "F1", "initial": "inversion network", "network": "trained network", "prior": "prior"}
    return [
        {
            "name": name,
            "needs": [words[need] for need in words if need in attack.needs],
            "takes": [words[need] for need in words if need in attack.uses],
            "settings": [*attack.presets, *attack.variants],
            "about": attack.summary,
        }
        for name, attack in ATTACKS
    ]


def _defenses() -> list[dict[str, Any]]:
    from splitsight.defenses import DEFENSES

    return [
        {
            "name": name,
            "parameters": [f"{key}: {info.description}" for key, info in defense.Parameters.model_fields.items()],
            "about": _about(defense),
        }
        for name, defense in DEFENSES
    ]


def _registry(module: str, name: str) -> Any:
    return getattr(import_module(f"splitsight.{module}"), name)


def _metrics() -> list[dict[str, Any]]:
    return [
        {"name": name, "title": metric.title, "unit": metric.unit, "better": metric.better}
        for name, metric in _registry("metrics", "METRICS")
    ]


def _networks() -> list[dict[str, Any]]:
    from splitsight.network import NETWORKS, load_profile

    profiles = [(name, load_profile(name)) for name in NETWORKS.names()]
    return [{"name": name, "figures": p.summary(), "about": p.about, "source": p.source} for name, p in profiles]


def _priors() -> list[dict[str, Any]]:
    from adversary.priors import PRIORS

    # what another package has may have to be made, or fetched, before it has a folder
    found = PRIORS.sources().items()
    return [{"name": name, "from": str(at) if isinstance(at, Path) else at.value} for name, at in found]


def _scenarios() -> list[dict[str, Any]]:
    from scenarios.run.spec import SCENARIOS, read_scenario

    demo = {"name": "demo", "about": "one video, three processes, live reconstruction; `splitsight demo`"}
    return [demo] + [
        {"name": name, "about": data.get("about") or data["title"]}
        for name, data in ((name, read_scenario(name)[0]) for name in SCENARIOS.names())
    ]
