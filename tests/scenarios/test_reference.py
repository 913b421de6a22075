"""The page of a scenario's keys follows from the models."""

from pathlib import Path

import yaml

from scenarios.reference import COMMANDS, PAGE, commands, descriptions, page
from scenarios.run import spec
from scenarios.run.spec import load_scenario

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_are_up_to_date():
    for path, made in ((PAGE, page()), (COMMANDS, commands())):
        assert (ROOT / path).read_text(encoding="utf-8") == made, "run `python -m scenarios.reference`"


def test_every_key_is_described():
    for model in (spec.Scenario, spec.Data, spec.Training, spec.Cell, spec.Comparison, spec.PaperRow, spec.PaperGain):
        assert set(model.model_fields) <= set(descriptions(model)), model
    whole = page()
    assert "| `with` | section of keys |" in whole and "| `count` | integer, ≥ 1 | `64` |" in whole


def test_its_example_is_a_scenario():
    example = page().split("```yaml\n")[1].split("```")[0]
    assert [cell.method for cell in load_scenario(yaml.safe_load(example)).cells] == ["db", "dmb"]
