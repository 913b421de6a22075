"""``docs/reference``, made from the code: ``python -m scenarios.reference``.

``scenario.md`` has every key of a scenario, from its models, ``commands.md`` every command and option, from the command
line itself.
"""

from __future__ import annotations

import re
from inspect import cleandoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from scenarios.cli import app
from scenarios.run import spec
from splitsight.files import write_text
from splitsight.metrics import metrics

__all__ = ["COMMANDS", "PAGE", "commands", "descriptions", "page"]

PAGE = Path("docs/reference/scenario.md")
"""From the root of the repository."""

COMMANDS = Path("docs/reference/commands.md")

_SECTIONS: dict[str, type[BaseModel]] = {
    "The file": spec.Scenario,
    "data": spec.Data,
    "train": spec.Training,
    "cells": spec.Cell,
    "compare": spec.Comparison,
    "paper": spec.PaperRow,
    "compare.paper": spec.PaperGain,
}
_WORDS = {str: "text", Path: "path", int: "integer", float: "number", bool: "true or false", NoneType: "nothing"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least", "max_length": "at most"}


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What a model's docstring says of each attribute, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
        for name, words in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, flags=re.M):
            found[name] = " ".join(words.split())
    return found


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in parts if part is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (list, tuple):
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return "section of keys"
    for name, model in _SECTIONS.items():
        if annotation is model:
            return f"section [{name}](#{name.replace('.', '')})"
    return _WORDS.get(annotation, "anything")


def _limits(field: FieldInfo) -> str:
    found = [
        (sign, getattr(part, name)) for part in field.metadata for name, sign in _SIGNS.items() if hasattr(part, name)
    ]
    return "".join(f", {sign} {value:g}" for sign, value in found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "" or value == [] or value == {} or isinstance(value, BaseModel):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(model: type[BaseModel]) -> list[str]:
    said, hints = descriptions(model), get_type_hints(model)
    lines = ["| key | value | default | what |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        what = re.sub(r"``(.*?)``", r"`\1`", said[name]).replace("|", "\\|").replace("`None`", "`null`")
        kind = _kind(hints[name]) + _limits(field)
        lines.append(f"| `{field.alias or name}` | {kind} | {_default(field)} | {what} |")
    return lines


def page() -> str:
    """The page, in Markdown.

    Raises:
        KeyError: a key that no docstring describes.
    """
    lines = [
        "# Keys of a scenario",
        "",
        "<!-- Made by `python -m scenarios.reference` from scenarios/run/spec.py: change that, not this. -->",
        "",
        "`splitsight run NAME` takes a scenario of the package (`splitsight list scenarios`), `splitsight run "
        "FILE.yaml` one of your own. The smallest:",
        "",
        "```yaml",
        "title: DB and DMB at L8",
        "cells:",
        "  - {split: L8, method: [db, dmb], setting: tuned}",
        "```",
        "",
        cleandoc(spec.__doc__ or "").partition("\n\n")[2].replace("``", "`"),
    ]
    for name, model in _SECTIONS.items():
        summary = cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("``", "`")
        lines += ["", f"## {name}", "", summary, "", *_table(model)]
    lines += [
        "",
        "## Metrics",
        "",
        "What is measured of each image: a column of `rows.parquet`, a figure in `summary.json`, a column of each "
        "table, and a key that `paper` may have. Other packages add to it (`splitsight.metrics`, an entry point).",
        "",
        "| metric | heading | figure | possible values | better | needs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for metric in metrics([""]):
        if not metric.fn.__module__.startswith("splitsight."):
            continue
        figure = "mean, Student's interval" if metric.kind == "mean" else "share, Wilson's interval"
        needs = ", ".join(sorted(metric.needs))
        bounds = f"{metric.bounds[0]:.4g} to {metric.bounds[1]:.4g}"
        lines.append(f"| `{metric.name}` | {metric.heading} | {figure} | {bounds} | {metric.better} | {needs} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """The page of commands, in Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="splitsight")
    note = "<!-- Made by `python -m scenarios.reference` from the command line: change that, not this. -->"
    return f"{note}\n\n{text.strip()}\n"


if __name__ == "__main__":
    write_text(PAGE, page())
    write_text(COMMANDS, commands())
