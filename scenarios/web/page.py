"""The page: pictures, controls, plots, words. It holds no state of the run; one timer a tab reads the board."""

from __future__ import annotations

import asyncio
import math
import queue
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from nicegui import ui

from scenarios.web.choices import ATTACKS_LIVE, DEFENSES, Catalogue, strength_of
from scenarios.web.plots import Plots
from scenarios.web.words import part
from splitsight.errors import UserError

if TYPE_CHECKING:
    from scenarios.web.joined import JoinedRun
    from scenarios.web.run import WebRun

__all__ = ["build"]

_SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0)
_EVERY_S = 0.5
_SETTLED_S = 2.0
"""Within which a change that was made stands in the status."""
_OTHER = "other"


def build(app: FastAPI, run: WebRun | JoinedRun, catalogue: Catalogue) -> None:
    """Register the page at ``/``.

    Args:
        app: whose page it is.
        run: what is shown and asked.
        catalogue: what may be chosen.
    """

    @ui.page("/")
    def page() -> None:
        ui.add_head_html(
            '<link rel="stylesheet" href="/static/live.css"><script type="module" src="/static/live.js"></script>'
        )
        _Page(run, catalogue)


class _Page:
    """The elements of one tab."""

    def __init__(self, run: WebRun | JoinedRun, catalogue: Catalogue) -> None:
        self._run, self._catalogue, self._cannot = run, catalogue, run.cannot
        self._syncing = False  # handlers look at it at once, before anything is awaited
        self._edited = False
        self._held = 0.0
        self._dark = ui.dark_mode(None)
        with ui.element("main").classes("live"):
            self._header()
            ui.html(part("lost"), sanitize=False)
            self._problem = ui.label("").classes("alert").props('role="alert"')
            ui.html(part("panels"), sanitize=False)
            self._words = ui.label("").classes("words")
            self._stream()
            self._attacked()
            self._sweep()
            with _section("Figures over time"):
                self._plots = Plots(run.board)
            with _section("What is shown, and why encryption does not help"):
                ui.html(part("explanation"), sanitize=False)
            self._export()
        ui.timer(_EVERY_S, self._update)
        self._update()

    # ---------------------------------------------------------------- parts

    def _header(self) -> None:
        with ui.element("header").classes("top"):
            ui.html("<h1>splitsight: what the cloud can see</h1>", sanitize=False)
            button = ui.button("Light or dark", on_click=self._toggle_dark).props('outline no-caps color="none"')
            button.classes("plain")
        self._what = ui.label("starting").classes("what")
        self._phase = ui.label("").classes("soft").props('role="status"')

    def _stream(self) -> None:
        with _section("The stream"):
            with ui.element("div").classes("row"):
                self._pause = _button("Pause", self._toggle_pause)
                self._step = _button("Single frame", lambda: self._ask("change", step=1, quiet=True))
                self._speed = ui.select(
                    {speed: f"{speed:g} ×" for speed in _SPEEDS}, value=1.0, label="Speed", on_change=self._speed_chosen
                ).props("outlined")
                self._source = ui.select(
                    {"": "the clip it was started with"}, value="", label="Play", on_change=self._source_chosen
                ).props("outlined")
            self._fixed("edge", self._pause, self._step, self._speed, self._source)
            with ui.element("div").classes("cards").style("margin-top: 10px"):
                self._processes = [ui.label("") for _ in range(3)]
            if "processes" in self._cannot:
                return
            with ui.element("div").classes("row").style("margin-top: 10px"):
                _button("Start again", lambda: self._ask("restart"))
                ui.label("starts adversary and edge anew, where one hangs or is gone").classes("soft")

    def _attacked(self) -> None:
        with _section("What is attacked, and how"):
            edited = self._mark
            with ui.element("div").classes("row"):
                self._target = ui.select([self._run.options.target], label="Target", on_change=self._target_chosen)
                self._split = ui.select([self._run.options.split], label="Split point", on_change=edited)
                self._threat = ui.select(
                    {"white-box": "white-box: has the first part", "black-box": "black-box: only asked it questions"},
                    label="Threat model",
                    on_change=edited,
                )
                self._defense = ui.select(
                    {**{key: s.title for key, s in DEFENSES.items()}, _OTHER: "another, typed in"},
                    label="Defence",
                    on_change=self._defense_chosen,
                )
                self._strength = ui.select({}, label="Strength", on_change=edited)
                self._typed = ui.input("Defence, as --defense takes it", on_change=edited)
                for element in (self._target, self._split, self._threat, self._defense, self._strength, self._typed):
                    element.props("outlined")
            with ui.element("div").classes("row").style("margin-top: 10px"):
                self._apply = _button("Use these", self._apply_all)
                if "processes" not in self._cannot:
                    ui.label("starts new processes; the stream goes on until they are ready").classes("soft")
            chosen = (self._target, self._split, self._threat, self._defense, self._strength, self._typed, self._apply)
            self._fixed("processes", *chosen)
            with ui.element("div").classes("row").style("margin-top: 14px"):
                self._attack = ui.select({}, label="Attack", on_change=self._attack_chosen).props("outlined")
                self._prompt = ui.input("Prompt: what may be in the picture").props("outlined clearable")
                self._prompt.on("keydown.enter", self._use_prompt)
                use = _button("Use the prompt", self._use_prompt)
            self._fixed("adversary", self._attack, self._prompt, use)
            self._attack_says = ui.label("").classes("soft").props('role="status"')

    def _sweep(self) -> None:
        with _section("The same frame at each split point"):
            ui.html(part("sweep"), sanitize=False)
            with ui.element("div").classes("row"):
                _button("Reconstruct the newest frame at each split point", self._take_frame)
                self._sweep_says = ui.label("").classes("soft").props('role="status"')

    def _export(self) -> None:
        with _section("Take it away"):
            ui.html(
                '<p><a class="plain" href="/export/clip.mp4" download>Clip of the last 20 seconds</a> '
                '<a class="plain" href="/export/report.zip" download>Report so far (zip)</a></p>',
                sanitize=False,
            )
            self._exporting = ui.label("").classes("soft").props('role="status"')
            self._where = ui.label("").classes("soft what")
            self._reports = ui.html("", sanitize=False)
            if "processes" in self._cannot:
                return
            with ui.element("div").classes("row"):
                _button("Stop, and write the report", self._confirm_stop)

    def _fixed(self, what: str, *elements: Any) -> None:
        """Controls that can change nothing here are disabled, with one sentence on why."""
        if what in self._cannot:
            for element in elements:
                element.disable()
            ui.label(self._cannot[what]).classes("soft")

    # ---------------------------------------------------------------- what people do

    async def _ask(self, action: str, *, quiet: bool = False, **values: Any) -> bool:
        """Ask the run for something, and say what came of it; whether it was done."""
        self._held = math.inf  # what was chosen stands until the processes have said what they do
        try:
            said = await asyncio.wrap_future(self._run.ask(action, **values))
        except UserError as error:
            ui.notify(str(error), type="warning", multi_line=True, timeout=10_000, close_button="Close")
            return False
        except queue.Full:
            ui.notify("Too much is being asked at once: wait a moment.", type="warning")
            return False
        finally:
            self._held = time.monotonic() + _SETTLED_S
        if said and not quiet:
            ui.notify(said)
        return True

    async def _toggle_dark(self) -> None:
        # by what is seen: without a choice of one's own it is what the system asks for
        dark = await ui.run_javascript("document.body.classList.contains('body--dark')", timeout=5.0)
        self._dark.set_value(not dark)

    async def _toggle_pause(self) -> None:
        await self._ask("change", paused=not self._status["paused"], quiet=True)

    def _speed_chosen(self) -> Awaitable[bool] | None:
        return None if self._syncing else self._ask("change", speed=self._speed.value, quiet=True)

    def _source_chosen(self) -> Awaitable[bool] | None:
        return None if self._syncing else self._ask("change", source=self._source.value)

    def _attack_chosen(self) -> Awaitable[bool] | None:
        return None if self._syncing else self._ask("change", attack=self._attack.value)

    async def _use_prompt(self) -> None:
        await self._ask("change", prompt=self._prompt.value or "")

    def _mark(self) -> None:
        if not self._syncing:
            self._edited = True

    def _target_chosen(self) -> None:
        if not self._syncing:
            self._edited = True
            splits = self._catalogue.splits.get(self._target.value, [])
            self._split.set_options(splits, value=splits[len(splits) // 2] if splits else None)

    def _defense_chosen(self) -> None:
        self._offer(self._defense.value, None)
        self._mark()

    def _offer(self, key: str, step: int | None) -> None:
        """The strengths of a defence."""
        self._typed.set_visibility(key == _OTHER)
        strength = DEFENSES.get(key)
        values = {} if strength is None else {i: f"{v:g} {strength.unit}" for i, v in enumerate(strength.values)}
        self._strength.set_visibility(len(values) > 1)
        self._strength.set_options(values, value=(step or 0) if values else None)

    async def _apply_all(self) -> None:
        key = self._defense.value
        defense = self._typed.value if key == _OTHER else DEFENSES[key].at(self._strength.value or 0)
        done = await self._ask(
            "change", target=self._target.value, split=self._split.value, threat=self._threat.value, defense=defense
        )
        self._edited = self._edited and not done

    async def _take_frame(self) -> None:
        await self._ask("sweep", quiet=True)

    async def _confirm_stop(self) -> None:
        with ui.dialog() as dialog, ui.card():
            ui.label("Stop the stream, and write the report?")
            with ui.element("div").classes("row"):
                _button("Stop", lambda: dialog.submit(True))
                _button("Go on", lambda: dialog.submit(False))
        if await dialog:
            await self._ask("stop")

    # ---------------------------------------------------------------- what is so

    @property
    def _status(self) -> Any:
        return self._run.board.status

    def _update(self) -> None:
        """Show the state of the processes; what somebody is choosing meanwhile is left alone."""
        s = self._status
        if not s:
            return
        self._syncing = True
        try:
            self._told(s)
            if time.monotonic() > self._held:
                self._chosen(s)
        finally:
            self._syncing = False
        self._plots.update()

    def _told(self, s: Any) -> None:
        prompt = f", prompt “{s['prompt']}”" if s["prompt"] else ""
        defense = "no defence" if s["defense"] == "identity" else f"defence {s['defense']}"
        what = f"{s['target']} split at {s['split']} · {s['threat']} · attack {s['attack']}{prompt} · {defense}"
        _say(self._what, what if s["target"] else "nothing yet")
        paused = ", paused" if s["paused"] else "" if s["speed"] == 1 else f", {s['speed']:g} × as fast"
        frames = f" · {s['frames']} frames" if "frames" in s else ""
        _say(self._phase, f"{s['phase']}{paused}{frames}")
        _say(self._problem, " ".join(filter(None, [s["problem"], s.get("warning", "")])))
        _say(self._words, _sentence(s))
        names = {"cloud": "Cloud server", "adversary": "Adversary", "edge": "Edge"}
        for label, (role, how) in zip(self._processes, s["processes"].items(), strict=False):
            _say(label, f"{names[role]} {how['says']}")
        _say(self._attack_says, "another engine is being made ready" if s["busy"] else s.get("attack_problem", ""))
        _say(self._where, f"Everything is in {s['out']}; the report is written there at the end.")
        _say(self._exporting, s["export"])
        # names of folders that this process made
        links = "".join(f'<li><a href="/reports/{name}/index.html">{name}</a></li>' for name in s["reports"])
        if self._reports.content != (listed := links and f"<p>Reports, newest first</p><ul>{links}</ul>"):
            self._reports.set_content(listed)
        _say(self._sweep_says, s.get("sweep", ""))
        self._pause.set_text("Go on" if s["paused"] else "Pause")
        self._step.set_enabled(s["paused"] and "edge" not in self._cannot)

    def _chosen(self, s: Any) -> None:
        _set(self._speed, s["speed"])
        sources = {"": "the clip it was started with"}
        sources |= {r["folder"]: f"recording {r['about']}" for r in s.get("recordings", [])}
        source = s["source"] if s["source"] in sources else ""
        if self._source.options != sources:
            self._source.set_options(sources)
        _set(self._source, source)
        attacks = {a: f"{a}: {words}" for a, words in ATTACKS_LIVE.items()}
        attacks.setdefault(s["attack"], s["attack"])
        if self._attack.options != attacks:
            self._attack.set_options(attacks)
        if not s["busy"]:
            _set(self._attack, s["attack"])
        if self._edited:
            return
        targets = list(self._catalogue.splits) or [s["target"]]
        splits = self._catalogue.splits.get(s["target"], [s["split"]])
        if s["target"] not in targets:
            targets = [s["target"], *targets]
        if s["split"] not in splits:
            splits = [s["split"], *splits]
        for element, options, value in ((self._target, targets, s["target"]), (self._split, splits, s["split"])):
            if element.options != options:
                element.set_options(options, value=value)
            _set(element, value)
        _set(self._threat, s["threat"])
        key, step = strength_of(s["defense"]) or (_OTHER, 0)
        if (self._defense.value, self._strength.value) != (key, step):
            _set(self._defense, key)
            self._offer(key, step)
        if key == _OTHER:
            _set(self._typed, s["defense"])


def _section(title: str) -> Any:
    section = ui.element("section")
    with section:
        ui.html(f"<h2>{title}</h2>", sanitize=False)
    return section


def _button(text: str, act: Callable[..., Any]) -> ui.button:
    return ui.button(text, on_click=act).props('outline no-caps color="none"').classes("plain")


def _say(label: ui.label, words: str) -> None:
    """Only what has changed: every update of an element has the browser render the page's tree again."""
    if label.text != words:
        label.set_text(words)


def _set(element: Any, value: Any) -> None:
    if element.value != value:
        element.set_value(value)


def _sentence(s: Any) -> str:
    """What can be seen, in one sentence."""
    for tier, name in (("window", "refined"), ("preview", "immediate")):
        if (q := s.get("quality", {}).get(tier)) is None:
            continue
        said = f"Of the last {q['judged']} {name} reconstructions {q['recognised']} are recognised as the original is"
        if q["first"] is not None:
            said += f"; for {q['first']} the original is found first among {q['gallery']:,} images"
        return said + "."
    return ""
