"""From rows and measures to one line a defence: attacks, the strongest, what adapting added, who is dominated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scenarios.defend.plan import Attacker
from scenarios.run.figures import by_cell
from scenarios.run.plan import cell_id
from scenarios.run.spec import Cell, Scenario
from splitsight.metrics import Metric, mean_interval, metrics_named
from splitsight.summary import DefenseAttack, DefenseSummary, Interval, Strongest

__all__ = ["MEASURE", "attack_name", "dominated", "summaries"]

MEASURE = "ssim"
"""What makes an attack the strongest: structural similarity to the original. PSNR alone rewards a grey blur."""

_NO_IMAGE = "it gave numbers that are no image"

Row = Mapping[str, Any]
_SHOWN = ("psnr", "ssim", "matched_top1", "recognised")
_MOST = ("matched_top1", "recognised")


def attack_name(cell: Cell) -> str:
    """How an attack on a defence is called in summaries: ``best faithful``, ``…, not told``, ``…, 16 still frames``."""
    name = Attacker(cell.method, cell.setting).name
    name += "" if cell.adaptive else ", not told"
    return name + (f", {cell.static} still frames" if cell.static > 1 else "")


def _means(rows: Sequence[Row], shown: Sequence[Metric]) -> dict[str, float | None]:
    return {
        m.name: mean_interval([v for r in rows if (v := m.value(r.get(m.column))) is not None])["mean"] for m in shown
    }


def _shown(rows: Sequence[Row]) -> list[Metric]:
    wanted = metrics_named(rows[0]) if rows else []
    return [m for m in wanted if m.name.partition(":")[0] in _SHOWN]


def _common(cells: Sequence[Sequence[Row]]) -> set[int]:
    return set.intersection(*({row["index"] for row in rows} for rows in cells)) if cells else set()


def _strongest(attacks: Mapping[str, Sequence[Row]]) -> tuple[Strongest | None, set[int]]:
    shared = _common(list(attacks.values()))
    means = {}
    for name, rows in attacks.items():
        same = [row for row in rows if row["index"] in shared]
        means[name] = _means(same, _shown(same))
    known = {name: found for name, found in means.items() if found.get(MEASURE) is not None}
    if not known:
        return None, shared
    best = max(known, key=lambda name: known[name][MEASURE] or 0.0)
    values = {key: value for key, value in known[best].items() if key in _SHOWN}
    most: dict[str, float] = {}
    for found in means.values():
        for key, value in found.items():
            if key.partition(":")[0] in _MOST and value is not None:
                most[key] = max(value, most.get(key, 0.0))
    return Strongest.model_validate({"attack": best, "n": len(shared), **values, "most": most}), shared


def _adapting(
    told: Mapping[str, Sequence[Row]], untold: Mapping[str, Sequence[Row]], shared: set[int]
) -> Interval | None:
    """The difference of the best of each, image by image."""
    if not told or not untold:
        return None

    def best(side: Mapping[str, Sequence[Row]]) -> dict[int, float]:
        # a reconstruction that is no image has no value, and an attacker without any obtained nothing
        values = [
            {r["index"]: r[MEASURE] for r in rows if r["index"] in shared and r[MEASURE] is not None}
            for rows in side.values()
        ]
        return max(values, key=lambda v: sum(v.values()) / max(1, len(v)))

    a, b = best(told), best(untold)
    both = sorted(a.keys() & b.keys())
    return Interval(**mean_interval([a[i] - b[i] for i in both])) if both else None


def summaries(
    scenario: Scenario,
    rows: Sequence[Row],
    measures: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> list[DefenseSummary]:
    """One a split and defence, the undefended reference first.

    Args:
        scenario: whose cells were attacked.
        rows: of the run.
        measures: out of :func:`scenarios.defend.measure.measure`.
        skipped: cells that could not run, and why.
    """
    found = []
    whole = list(zip(scenario.cells, by_cell(scenario, rows), strict=True))
    for measured in measures:
        place = measured["split"], measured["defense"]
        own = [(i, cell, r) for i, (cell, r) in enumerate(whole) if (cell.split, cell.defense) == place]
        left_out = {attack_name(c): skipped[cell_id(i)] for i, c, _ in own if cell_id(i) in skipped}
        left_out |= {attack_name(c): _NO_IMAGE for _, c, r in own if any(row[MEASURE] is None for row in r)}
        attacks = {attack_name(cell): (cell, r) for _, cell, r in own if r and attack_name(cell) not in left_out}
        strongest, shared = _strongest({name: r for name, (_, r) in attacks.items()})
        sides = [{n: r for n, (c, r) in attacks.items() if c.adaptive == told} for told in (True, False)]
        found.append(
            DefenseSummary.model_validate(
                {
                    **{key: value for key, value in measured.items() if key != "fresh"},
                    "attacks": {name: _attack(cell, r) for name, (cell, r) in attacks.items()},
                    "strongest": strongest,
                    "adapting": _adapting(sides[0], sides[1], shared) if shared else None,
                    "left_out": left_out,
                }
            )
        )
    for summary in found:
        rivals = [other for other in found if other.split == summary.split]
        summary.dominated = dominated(summary, rivals)
    return found


def _attack(cell: Cell, rows: Sequence[Row]) -> DefenseAttack:
    black = Attacker(cell.method, cell.setting).black_box
    return DefenseAttack.model_validate(
        {
            "adaptive": cell.adaptive,
            "threat": "black-box" if black else "white-box",
            "static": cell.static,
            "n": len(rows),
            **_means(rows, _shown(rows)),
        }
    )


def dominated(one: DefenseSummary, others: Sequence[DefenseSummary]) -> bool:
    """Whether another keeps at least as much utility and gives away at most as much, and is better in one of both."""
    if one.strongest is None:
        return False
    here = one.utility.accuracy, -one.strongest.ssim
    for other in others:
        if other.strongest is not None and other is not one:
            there = other.utility.accuracy, -other.strongest.ssim
            if all(x >= y for x, y in zip(there, here, strict=True)) and there != here:
                return True
    return False
