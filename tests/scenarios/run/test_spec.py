"""Scenarios as YAML: every key checked, cells expanded, the quick form laid over."""

import pytest
import yaml

from adversary.attacks import ATTACKS
from scenarios.run.prompts import check_template
from scenarios.run.spec import SCENARIOS, load_scenario, read_scenario
from splitsight.errors import UserError

BASE = {"title": "t", "about": "a", "cells": [{"method": "do"}]}


def test_lists_are_axes_and_lists_in_lists_are_values():
    cells = load_scenario(
        {
            **BASE,
            "cells": [
                {"split": ["L4", "L8"], "method": ["do", "db"], "setting": "tuned"},
                {"method": "dmb", "with": {"steps": [1, 2], "levels": [[0.3, 0.1]]}, "prompt": ["", ["a", "b"]]},
            ],
        }
    ).cells
    assert [(c.split, c.method) for c in cells[:4]] == [("L4", "do"), ("L4", "db"), ("L8", "do"), ("L8", "db")]
    assert [(c.options, c.prompts) for c in cells[4:]] == [
        ({"steps": s, "levels": [0.3, 0.1]}, p) for p in (("",), ("a", "b")) for s in (1, 2)
    ]


@pytest.mark.parametrize("name", SCENARIOS.names())
def test_what_is_written_down_is_read_back(name):
    scenario = load_scenario(read_scenario(name)[0], changes={"evaluator": None, "seconds": 2.5})
    again = load_scenario(yaml.safe_load(yaml.safe_dump(scenario.dump())))
    assert again == scenario and again.evaluator is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"titel": "x"}, "unknown key 'titel'"),
        ({"data": {"cuont": 3}}, "unknown key 'data.cuont'"),
        ({"cells": [{"method": "do"}, {"method": "db", "spilt": "L8"}]}, "unknown key 'cells.1.spilt'"),
        ({"quick": {"sceonds": 1}}, "its section 'quick': unknown key 'sceonds'"),
        ({"quick": {"data": {"cnt": 1}}}, "unknown key 'data.cnt'"),
        ({"quick": 3}, "'quick' must be a section"),
        ({"cells": []}, "cells: list should have at least 1 item"),
        ({"cells": [{"split": "L4"}]}, "cells.0.method: field required"),
        ({"data": {"count": 0}}, "data.count: input should be greater than or equal to 1"),
        ({"cells": [{"method": "do"}, {"method": "do"}]}, "two cells at L8 are called 'do'"),
        ({"compare": [{"name": "x", "of": {"metod": "do"}, "to": {}}]}, "'metod' is no key of a cell"),
    ],
)
def test_mistakes_are_named(keys, words):
    with pytest.raises(UserError, match=r"^mine") as caught:
        load_scenario({**BASE, **keys}, name="mine")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_quick_is_laid_over_sections_and_replaces_lists():
    data = {**BASE, "data": {"count": 9, "gallery": 50}, "quick": {"data": {"count": 2}, "cells": [{"method": "db"}]}}
    full, quick = load_scenario(data), load_scenario(data, quick=True)
    assert (full.data.count, full.cells[0].method) == (9, "do")
    assert (quick.data.count, quick.data.gallery, quick.cells[0].method) == (2, 50, "db")
    assert load_scenario(data, quick=True, changes={"data": {"count": 1}}).data.count == 1
    with pytest.raises(UserError, match="no section 'quick'"):
        load_scenario(BASE, quick=True)


def test_files_that_are_no_scenarios(tmp_path):
    with pytest.raises(UserError, match=r"unknown scenario 'table-99': choose one of .*table-1"):
        read_scenario("table-99")
    with pytest.raises(UserError, match="cannot be read"):
        read_scenario(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match="is not YAML"):
        read_scenario(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="must hold keys"):
        read_scenario(str(tmp_path / "list.yaml"))


def test_the_white_box_suite_is_there():
    tables = {"table-1", "table-1-published", "table-2", "table-3"}
    others = {"figure-12", "figure-14", "algorithm-2", "algorithm-2-published", "end-to-end"}
    assert tables | others <= set(SCENARIOS.names())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SCENARIOS.names())
def test_shipped_scenarios_name_what_exists(name, quick):
    scenario = load_scenario(read_scenario(name)[0], quick=quick)
    for cell in scenario.cells:
        ATTACKS.get(cell.method).configured(cell.setting, split=cell.split, changes=cell.options)
        for template in cell.prompts:
            check_template(template)
    if not quick:
        for comparison in scenario.compare:
            for side in (comparison.of, comparison.to):
                found = [(c.split, c.defense) for c in scenario.cells if c.matches(side)]
                assert found, f"{comparison.name}: {side} selects nothing"
                assert len(found) == len(set(found)), f"{comparison.name}: {side} selects several cells at one split"
