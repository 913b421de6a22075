"""The demonstration: cloud, adversary and edge as three processes, a live display, and a report at the end.

Order of starting: the cloud with its tap, then the adversary once the tap answers, then the edge, so that
the adversary sees the first frame. Order of ending: the edge, the adversary (which still refines its last
window), the cloud. Whatever ends the run early, the children are gone and what exists is reported.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from edge_client.budget import SPENT, Spending
from scenarios.interrupt import interruptible
from scenarios.join import TIERS, FrameRow, Join, left_out
from scenarios.launch import READY_S, adversary_command, cloud_command, cores, edge_command
from scenarios.priority import step_back
from scenarios.processes import Supervisor, peak_rss_mb, terminate_as_interrupt
from scenarios.warm import Warm
from splitsight.errors import UserError, unknown_name
from splitsight.network import load_profile
from splitsight.wire.sessions import UNDEFENDED

if TYPE_CHECKING:
    from rich.console import RenderableType

    from scenarios.report import RunInfo
    from splitsight.evaluators import Evaluator
    from splitsight.metrics.gallery import Gallery
    from splitsight.pipeline import EdgePipeline
    from splitsight.wire.sessions import SessionDescription

__all__ = [
    "DemoOptions",
    "DemoRun",
    "check",
    "load_report",
    "prepare_folder",
    "report",
    "run_demo",
    "run_info",
    "with_split",
]

THREATS = ("white-box", "black-box")
"""What the adversary runs under each threat model."""
ATTACK, UNAIDED = "window:live", "window:denoised"
"""What solves the windows where nothing else is asked for, with previews to start from and without."""
_SECONDS = 30.0
_STALL_S = 90.0
_DRAIN_S = 120.0
_OURS = frozenset(
    [
        "truth",
        "preview",
        "window",
        "undefended",
        "recording",
        "logs",
        "edge.jsonl",
        "edge.summary.json",
        "live.jsonl",
        "rows.parquet",
        "summary.json",
        "demo.mp4",
        "grid.png",
        "index.html",
    ]
)
_PART = re.compile(r"part-\d{2,}")
"""What a demo writes, and all that ``--overwrite`` removes."""


@dataclass(frozen=True)
class DemoOptions:
    """What to demonstrate.

    Attributes:
        out: folder of the run; ``None`` for ``runs/demo-TIMESTAMP``.
        seconds: length of the stream, > 0; ``None`` for until it is stopped with a page, else 30 s.
        fps: frames a second, > 0.
        video: file, image folder, camera index or URL; ``None`` for the default clip.
        target: the split network; see :mod:`splitsight.specification`.
        split: name of the split point; ``auto`` is resolved by :func:`with_split`.
        weights: of the target; those that come with it by default.
        prior: name or folder of the generative prior.
        inversion: file of an inversion network; the embedded one by default.
        threat: ``white-box``, the adversary has F1, or ``black-box``, it has a network that learnt from an oracle.
        network: for ``black-box``, file of that network; the package's or the cache's by default.
        attack: that solves the windows, ``NAME[:SETTING]``; by default :data:`ATTACK`, or without previews
            :data:`UNAIDED`.
        preview: whether single frames are shown at once, by an inversion network; there has to be one then.
        defense: what the edge does to the features.
        epsilon_budget: largest ε of the stream, as for the edge.
        epsilon_ledger: file that carries what was spent between sessions, as for the edge.
        compare: play the same frames without the defence first, and show both.
        frames: K, frames of a window, ≥ 1.
        stride: seconds between the frames of a window, > 0.
        seed: of the adversary's draws.
        threads: compute threads of the adversary; ``None`` for all cores (it runs at low priority).
        dtype: of the features on the wire.
        compression: of the features on the wire.
        edge_network: the edge's connection is shaped like this network, a name or a YAML file; ``None`` leaves it as it
            is.
        gallery: distractors, a folder of PNG/JPEG or a Parquet file: how often is the right frame found among them? By
            default the package's.
        gallery_size: images that a frame is found among, itself included.
        gallery_features: where they are compared, a name out of :data:`splitsight.metrics.gallery.SPACES`.
        evaluators: names or folders of independent classifiers that look at the reconstructions; ``none`` for none, by
            default the package's.
        prompt: text prior of the attacker; empty for none.
        command: that the report names as the one to repeat this run.
        web: show it live on a page in a browser, where it can be changed; runs until it is stopped unless there is a
            ``seconds``.
        host: address of that page; other than loopback it needs token, certificate and key.
        port: of that page; 0 for a free one.
        token_file: file of the token that the page asks for; ``None`` asks for none.
        cert: PEM certificate chain of the page; ``None`` for no TLS.
        key: PEM private key that belongs to it.
        overwrite: replace an earlier run in ``out``.
    """

    out: Path | None = None
    seconds: float | None = None
    fps: float = 2.0
    video: str | None = None
    target: str = "resnet18"
    split: str = "L8"
    weights: Path | None = None
    prior: str = "small"
    inversion: Path | None = None
    threat: str = "white-box"
    network: Path | None = None
    attack: str = ""
    preview: bool = True
    defense: str = "identity"
    epsilon_budget: float | None = None
    epsilon_ledger: Path | None = None
    compare: bool = False
    frames: int = 4
    stride: float = 0.5
    seed: int = 0
    threads: int | None = None
    dtype: str = "float32"
    compression: str = "none"
    edge_network: str | None = None
    gallery: Path | None = None
    gallery_size: int = 1000
    gallery_features: str = "pixels"
    evaluators: tuple[str, ...] = ()
    prompt: str = ""
    command: str = ""
    web: bool = False
    host: str = "127.0.0.1"
    port: int = 0
    token_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    overwrite: bool = False

    @property
    def solver(self) -> str:
        """What solves the windows, ``NAME[:SETTING]``."""
        return self.attack or (ATTACK if self.preview or self.threat == "black-box" else UNAIDED)


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make ``out`` an empty folder that can be written.

    Args:
        out: made with its parents.
        overwrite: remove what an earlier run left there; other files stay.

    Raises:
        UserError: it is a file, holds something, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not overwrite:
            raise UserError(f"{out} is not empty: give another --out, or --overwrite to replace the run in it")
        for entry in out.iterdir():
            if entry.name in _OURS or _PART.fullmatch(entry.name):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        probe = out / ".writable"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another folder with --out") from error


def check(options: DemoOptions) -> tuple[EdgePipeline, Gallery, list[Evaluator]]:
    """Refuse what cannot work, before any process is started.

    Returns:
        What the edge is going to do, the gallery, and the evaluators.

    Raises:
        UserError: says which option, and what it may be.
    """
    for name, value in (("--seconds", options.seconds), ("--fps", options.fps), ("--stride", options.stride)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name} must be more than 0, not {value:g}")
    if options.frames < 1 or (options.threads is not None and options.threads < 1):
        raise UserError("--frames and --threads must be at least 1")
    if options.threat not in THREATS:
        raise unknown_name("threat", options.threat, list(THREATS))
    if options.threat == "black-box" and options.inversion is not None:
        raise UserError("--inversion is a network that had F1 at hand: give --network for --threat black-box")
    if options.threat == "white-box" and options.network is not None:
        raise UserError("--network is a black-box network: give --threat black-box with it, or leave it out")
    if options.edge_network is not None:
        load_profile(options.edge_network)
    from splitsight.video import open_source

    with open_source(options.video, fps=options.fps, seconds=1 / options.fps) as source:
        if next(iter(source), None) is None:
            raise UserError(f"{options.video} holds no frames: give another --video")
        if options.compare and source.live:
            raise UserError("--compare plays the same frames twice, which a camera or a stream cannot: give a file")
    from adversary.priors import PRIORS, prior_options
    from splitsight import targets
    from splitsight.pipeline import EdgePipeline

    target = targets.load(options.target, options.weights)
    pipeline = EdgePipeline(target, options.split, options.defense)
    if options.compare and not pipeline.defense:
        raise UserError("--compare shows a defence beside none: name one with --defense")
    Spending(
        pipeline.defense.mechanism,
        str(pipeline.defense),
        budget=options.epsilon_budget,
        ledger=options.epsilon_ledger,
    ).close()
    # the adversary loads it; asking its loader here would cost seconds for an answer that is nearly always yes
    place, _ = prior_options(options.prior)
    if place not in PRIORS.names() and not Path(place).is_dir():
        raise unknown_name("prior", place, PRIORS.names())
    for file in (options.inversion, options.network):
        if file is not None and not file.is_file():
            raise UserError(f"no such file: {file}")
    _check_attack(options, pipeline.description())
    from scenarios.evaluation import load_evaluators
    from scenarios.headline import default_evaluators, default_gallery

    names = default_evaluators(options.evaluators, target.name)
    judges = load_evaluators(names, target.synonyms, target.digest, target.name)
    from splitsight.metrics.gallery import Gallery

    # with one to spare: which frames there are is known only at the end
    gallery = Gallery.draw(
        options.gallery or default_gallery(),
        target,
        size=options.gallery_size,
        features=options.gallery_features,
        seed=options.seed,
        spare=True,
    )
    return pipeline, gallery, judges


def with_split(options: DemoOptions) -> DemoOptions:
    """With a split point in place of ``auto``: where previews are asked for, one that has a network for them."""
    from adversary.blackbox.inversion import inversion_kept
    from adversary.priors import prior_options
    from scenarios.splits.auto import AUTO, auto_split
    from splitsight import targets

    if options.split != AUTO:
        return options
    target, prior = targets.load(options.target, options.weights), Path(prior_options(options.prior)[0]).name

    def kept(point: str) -> bool:
        return inversion_kept(target.name, point, prior, head_digest=target.cut(point).head_digest)

    previewed = options.preview and options.threat == "white-box" and options.inversion is None
    split, says = auto_split(target, kept if previewed else None)
    print(f"splitsight: {says}", file=sys.stderr)
    return replace(options, split=split)


def _check_attack(options: DemoOptions, about: SessionDescription) -> None:
    """Refuse an attack that is not there, or previews without a network that makes them."""
    from adversary.attacks import ATTACKS
    from adversary.blackbox.inversion import inversion_kept
    from adversary.priors import prior_options

    name, _, setting = options.solver.partition(":")
    attack = ATTACKS.get(name).configured(setting or None, target=about.target, split=about.split)
    if options.threat == "black-box" or options.inversion is not None:
        return
    prior = Path(prior_options(options.prior)[0]).name
    network = f"an inversion network for {about.target} at {about.split} with prior '{prior}'"
    make = f"make one with `splitsight train inversion --target {options.target} --split '{about.split}'"
    make += f" --weights {options.weights}" if options.weights is not None else ""
    make += f" --prior '{options.prior}'" if options.prior != "small" else ""
    make += f" --defense '{about.defense}'" if about.defense != UNDEFENDED else ""
    make += " --data DIR --minutes 30`, DIR being a folder of images"
    if not options.preview:
        if "initial" in attack.needs:
            raise UserError(
                f"{options.solver} starts from previews: leave --no-preview out, or give --attack {UNAIDED}"
            )
        return
    if not inversion_kept(about.target, about.split, prior, head_digest=about.head_digest, defense=about.defense):
        raise UserError(f"previews need {network}, and there is none: {make}, or go on without, with --no-preview")


class DemoRun:
    """One run: its folder, its children, its join."""

    def __init__(
        self,
        options: DemoOptions,
        out: Path,
        pipeline: EdgePipeline,
        gallery: Gallery | None,
        evaluators: list[Evaluator],
    ) -> None:
        self.options, self.out, self.gallery, self.evaluators = options, out, gallery, evaluators
        self.pipeline = pipeline
        self.session, self.accounting = pipeline.description(), pipeline.accounting()
        self.warning = ""
        self.weights: dict[str, str] = {}
        self.join = Join(out)
        self.undefended: Join | None = None
        self.stopped: UserError | None = None
        self.streaming_s = 0.0
        self.status = "starting"
        self.solvers = [options.solver]
        self.seconds = options.seconds or _SECONDS
        self._started: float | None = None
        self.threads = options.threads or cores()

    @property
    def solving(self) -> str:
        """What refines windows now."""
        return self.solvers[-1]

    def stream(self, children: Supervisor, draw: Callable[[], None]) -> None:
        """Start all three, wait for the end of the stream, stop all three.

        Raises:
            UserError: a child failed or stalled.
        """
        o = self.options
        self.status = "starting the cloud server"
        draw()
        one = {"OMP_NUM_THREADS": "1"}
        cloud = children.start("cloud", "cloud server", cloud_command(o, defense=o.defense), environment=one)
        ready = cloud.wait_event("ready", READY_S, tick=draw)
        self.status = "starting the adversary"
        adversary = children.start(
            "adversary",
            "adversary",
            adversary_command(o, self.out, ready["tap_port"], self.threads),
            environment={"OMP_NUM_THREADS": str(self.threads)},
        )
        self.hear(adversary.wait_event("ready", READY_S, tick=draw))
        # it may end with the session, before it is told to
        adversary.expected_to_end = True
        self.status = "starting the edge"
        command = edge_command(o, self.out, ready["port"], self.seconds)
        edge = children.start("edge", "edge", command, environment=one, expected_to_end=True, accepted={SPENT})
        self._follow(children, edge.process, draw)
        if edge.process.returncode == SPENT:
            self.stopped = edge.failure()
        self.status = "refining the last window"
        self._drain(children, draw)
        self.status = "stopping"
        draw()
        # from its ready event on it answers SIGTERM itself, but for the last moments of an interpreter that exits
        if children.stop("adversary", grace=10) not in (0, -signal.SIGTERM):
            raise children.children["adversary"].failure()
        if (code := children.stop("cloud", grace=10)) != 0:
            raise UserError(f"the cloud server did not end cleanly (exit code {code}): see {cloud.log}", code=1)
        self.join.poll()

    def _follow(self, children: Supervisor, edge: Popen[str], draw: Callable[[], None]) -> None:
        last_news = time.monotonic()
        while edge.poll() is None:
            children.check()
            now = time.monotonic()
            if self.join.poll():
                last_news = now
                if self._started is None:
                    self._started, self.status = now, "streaming"
                    load_report()
            if self._started is not None:
                self.streaming_s = now - self._started
            if now - last_news > _STALL_S + self.options.stride * self.options.frames:
                raise UserError(
                    f"nothing has been answered for {_STALL_S:.0f} s: see {children.logs} for what each process says",
                    code=1,
                )
            draw()
            time.sleep(0.2)
        children.check()
        self.join.poll()

    def _drain(self, children: Supervisor, draw: Callable[[], None]) -> None:
        """Tell the adversary that this is all, and give it time for what it holds."""
        child = children.children["adversary"]
        deadline = time.monotonic() + _DRAIN_S
        # the end of the session reaches it through the tap; SIGTERM is for a tap that is slow to say so
        nudge = time.monotonic() + 2.0
        while child.alive and time.monotonic() < deadline:
            if nudge is not None and time.monotonic() > nudge:
                child.process.terminate()
                nudge = float("inf")
            self.join.poll()
            draw()
            time.sleep(0.2)
        self.join.poll()

    def hear(self, ready: Mapping[str, Any]) -> None:
        """What the adversary says when it is ready: its models' digests, and whether it can keep up."""
        self.weights, self.warning = ready.get("weights", {}), ready.get("warning", "")
        if self.warning:
            print(f"warning: {self.warning}", file=sys.stderr, flush=True)

    def privacy(self) -> str:
        """ε so far, in words."""
        known = [r.epsilon for r in self.join.rows() if r.answered and not math.isnan(r.epsilon)]
        if self.accounting.get("epsilon") is None:
            return "no guarantee"
        o, said = self.options, f"ε {self.accounting['epsilon']:.4g} a frame"
        if known:
            said += f", {known[-1]:.4g} so far over the stream"
        return said + (f" (budget {o.epsilon_budget:g})" if o.epsilon_budget is not None else "")

    def panel(self) -> RenderableType:
        """The state of the run, for the terminal."""
        from rich.panel import Panel
        from rich.table import Table

        rows = self.join.rows()
        answered = [r for r in rows if r.answered]
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", justify="right", min_width=12)
        table.add_column()
        total = round(self.seconds * self.options.fps)
        bar = min(1.0, len(answered) / total) if total else 0.0
        table.add_row(
            "frames", f"{'━' * round(30 * bar)}[dim]{'─' * (30 - round(30 * bar))}[/] {len(answered)} of {total}"
        )
        if answered:
            newest = answered[-1]
            rate = (len(answered) - 1) / self.streaming_s if self.streaming_s > 0 else 0.0
            rtts = sorted(r.rtt_ms for r in answered)
            table.add_row(
                "edge", f"{rate:.2f} fps · round trip {newest.rtt_ms:.1f} ms (median {rtts[len(rtts) // 2]:.1f} ms)"
            )
            table.add_row("cloud says", newest.says or "nothing")
        for tier in TIERS:
            known = [r for r in rows if tier in r.psnr]
            if known:
                table.add_row(
                    f"adversary, {tier}", f"{_quality(known, tier)} · lag {known[-1].lag_ms[tier] / 1e3:.2f} s"
                )
                if self.undefended is not None:
                    same = [o for r in known if (o := self.undefended.frames.get(r.sequence)) and tier in o.psnr]
                    table.add_row("undefended", _quality(same, tier) if same else "nothing yet")
        if self.session.defense != UNDEFENDED:
            table.add_row("defence", self.session.defense)
            table.add_row("privacy", self.privacy())
            if self.undefended is not None and (agrees := self.join.agreement(self.undefended)):
                table.add_row("answers", f"{sum(agrees)} of {len(agrees)} as without the defence")
        if self.join.windows:
            done = self.join.windows
            on_time = sum(bool(w.get("on_time")) for w in done.values())
            table.add_row(
                "windows", f"{on_time} of {len(done) + self.join.skipped_windows} before the next was complete"
            )
        if left := left_out(self.join.skipped()):
            table.add_row("too slow here", left)
        o = self.options
        title = f"splitsight demo · {self.session.target} at {o.split} · {o.threat} · {o.solver}"
        return Panel(table, title=title, subtitle=self.status, title_align="left", subtitle_align="left", width=96)


def _quality(rows: Sequence[FrameRow], tier: str) -> str:
    """The newest frame's PSNR, and the mean."""
    mean = sum(r.psnr[tier] for r in rows) / len(rows)
    return f"{rows[-1].psnr[tier]:.1f} dB (mean {mean:.1f} dB over {len(rows)} frames)"


@contextmanager
def _display(demo: DemoRun) -> Iterator[Callable[[], None]]:
    """A redrawn panel on a terminal, else a line whenever the state changes (at most one a second)."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=5, get_renderable=demo.panel, auto_refresh=False) as live:
            yield live.refresh
            live.refresh()
        return
    said: list[Any] = [0.0, ""]

    def line() -> None:
        answered = [r for r in demo.join.rows() if r.answered]
        text = demo.status
        if answered:
            r = answered[-1]
            text += f" · {len(answered)} frames · {r.rtt_ms:.1f} ms · {r.says}"
            for tier in TIERS:
                known = [x for x in demo.join.rows() if tier in x.psnr]
                if known:
                    text += f" · {tier} {known[-1].psnr[tier]:.1f} dB, lag {known[-1].lag_ms[tier] / 1e3:.2f} s"
            if left := left_out(demo.join.skipped()):
                text += f" · too slow here: {left}"
            if demo.accounting.get("epsilon") is not None:
                text += f" · {demo.privacy()}"
        if text != said[1] and (time.monotonic() - said[0] > 1.0 or demo.status not in said[1]):
            said[:] = time.monotonic(), text
            print(text, file=sys.stderr, flush=True)

    yield line


def run_demo(options: DemoOptions) -> Path:
    """Run the demonstration.

    Args:
        options: what to demonstrate.

    Returns:
        ``index.html`` of the run.

    Raises:
        UserError: bad input, a process that failed, or (exit status 3) a budget that is spent; whatever exists is
            reported before.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the children are gone and whatever exists is reported before.
    """
    # a black-box adversary has nothing that could build a target
    also = ["adversary.live.whitebox", "splitsight.targets"] if options.threat == "white-box" else []
    with Warm("adversary", {"OMP_NUM_THREADS": str(options.threads or cores())}, also) as warm:
        return _run(options, warm)


def _run(options: DemoOptions, warm: Warm) -> Path:
    options = with_split(options)
    out = options.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    out = out.expanduser().absolute()
    if options.web and not options.compare:
        from scenarios.web.app import run_with_page

        return run_with_page(options, out, warm)
    pipeline, gallery, evaluators = check(options)
    prepare_folder(out, overwrite=options.overwrite)
    demo = DemoRun(options, out, pipeline, gallery, evaluators)
    if options.compare:
        # first, so that both can be seen side by side while the defended one runs
        before = _undefended(options, out / "undefended", pipeline, gallery)
        where = " (both streams are shown here and in the report: the live page shows one)" if options.web else ""
        print(f"playing the frames without the defence{where}", file=sys.stderr)
        _play(before, warm)
        demo.undefended = before.join
        print(f"playing the frames with {pipeline.defense}", file=sys.stderr)
    _play(demo, warm)
    page = out / "index.html"
    if demo.stopped is not None:
        raise UserError(f"{demo.stopped}; the report is {page}", code=demo.stopped.code)
    return page


def _undefended(options: DemoOptions, out: Path, pipeline: EdgePipeline, gallery: Gallery | None) -> DemoRun:
    """The same run without its defence."""
    from splitsight.pipeline import EdgePipeline

    plain = replace(options, defense=UNDEFENDED, epsilon_budget=None, epsilon_ledger=None, network=None, out=out)
    out.mkdir()
    return DemoRun(plain, out, EdgePipeline(pipeline.target, pipeline.split), gallery, [])


def _play(demo: DemoRun, warm: Warm) -> None:
    """Run it to its end, or to whatever ends it early, and report what there is."""
    out = demo.out
    with interruptible(), terminate_as_interrupt():
        children = Supervisor(out / "logs", warm)
        try:
            with children, _display(demo) as draw:
                try:
                    demo.stream(children, draw)
                except KeyboardInterrupt:
                    # the recording is closed and the last answers are written; a second Ctrl-C skips this
                    demo.status = "interrupted: stopping"
                    draw()
                    for key in ("edge", "adversary", "cloud"):
                        if (child := children.children.get(key)) is not None:
                            # one that is still loading has nothing to put in order
                            children.stop(key, grace=5 if child.events or key == "edge" else 0)
                    raise
        except (KeyboardInterrupt, UserError):
            _report_remains(demo, children)
            raise
        report(demo, children, complete=True)


def load_report() -> threading.Thread:
    """Load what writes reports, in a thread of low priority: seconds that nobody waits for while a run streams.

    Returns:
        The thread, started.
    """

    def load() -> None:
        step_back()

        import scenarios.report  # noqa: F401

    thread = threading.Thread(target=load, name="report-libraries", daemon=True)
    thread.start()
    return thread


def report(
    demo: DemoRun,
    children: Supervisor,
    *,
    complete: bool,
    join: Join | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write the report of a run into its folder; see :func:`scenarios.report.write_report`.

    Args:
        demo: the run.
        children: its processes.
        complete: whether it went to its end.
        join: of its folder, where the run's own is still in use.
        progress: called with a word for each step.
    """
    from scenarios.report import write_report

    if complete:
        print(f"writing the report to {demo.out}", file=sys.stderr)
    info = run_info(demo, children, complete=complete)
    gallery, evaluators = demo.gallery, demo.evaluators
    write_report(demo.out, join or demo.join, info, gallery=gallery, evaluators=evaluators, progress=progress)


def run_info(demo: DemoRun, children: Supervisor, *, complete: bool) -> RunInfo:
    """What the report says of the run; arguments as for :func:`report`."""
    from scenarios.report import RunInfo

    o = demo.options
    memory = {**children.peak_rss_mb(), "demo": round(peak_rss_mb(os.getpid()), 1)}
    return RunInfo(
        target=demo.session.target,
        split=o.split,
        video=o.video or "default clip",
        threat=o.threat,
        solver=" then ".join(dict.fromkeys(demo.solvers)),
        fps=o.fps,
        frames=o.frames,
        stride=o.stride,
        seed=o.seed,
        prior=o.prior,
        complete=complete,
        seconds=demo.streaming_s,
        peak_rss_mb=memory,
        previews=o.preview,
        weights=demo.weights,
        session=demo.session.to_dict(),
        accounting=demo.accounting,
        network=None if o.edge_network is None else load_profile(o.edge_network),
        options=asdict(o),
        undefended=demo.undefended,
        command=o.command,
        classes=len(demo.pipeline.target.labels),
        points=list(demo.pipeline.target.aliases),
        warning=demo.warning,
    )


def _report_remains(demo: DemoRun, children: Supervisor) -> None:
    """A report of an unfinished run, where there is anything to report; its own problems must not hide the cause."""
    with suppress(Exception):
        demo.join.poll()
        if any(r.answered for r in demo.join.rows()):
            report(demo, children, complete=False)
            print(f"what was recorded until then is in {demo.out}", file=sys.stderr)
