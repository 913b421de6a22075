"""The same frame, cut at each split point: what would the adversary see if the network were cut elsewhere?

A process of its own at low priority (``python -m scenarios.web.sweep``), so that neither the stream nor the page feels
it. It reads one JSON object a line: ``{"of": any, "frame": PNG, "target": …, "weights": …, "threat": …, "defense": …,
"prior": …}``; for each split point that has a network for previews it prints ``{"of": …, "split": …, "file": PNG}``,
then ``{"of": …, "done": N}``. It ends when its input does, and keeps what it has loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["Sweep", "reconstructions"]

_NICE = 5


@cache
def _engine(target: str, weights: str | None, threat: str, defense: str, prior: str, split: str) -> Any:
    """The edge at a split point, and who makes previews of what it sends; ``None`` where nobody can."""
    from adversary.live import blackbox, whitebox
    from adversary.live.options import LiveOptions
    from splitsight import targets
    from splitsight.errors import UserError
    from splitsight.pipeline import EdgePipeline

    file = None if weights is None else Path(weights)
    know = blackbox.know if threat == "black-box" else whitebox.know
    try:
        edge = EdgePipeline(targets.load(target, file), split, defense)
        # "preview" needs what makes previews, and nothing else
        attack = "net-best" if threat == "black-box" else "preview"
        options = LiveOptions(
            tap="",
            out=Path(),
            target=target,
            split=split,
            prior=prior,
            attack=attack,
            defense=defense,
            weights=None if threat == "black-box" else file,
        )
        return edge, know(options).engine
    except UserError:
        return None


def reconstructions(asked: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Reconstruct a frame at each split point.

    Args:
        asked: see above.
        folder: for the images.

    Yields:
        ``{"split": …, "file": …}``, shallow first.

    Raises:
        UserError: there is no such target.
    """
    import torch

    from adversary.live.windows import Observation
    from splitsight import targets
    from splitsight.data import decode_image, to_pixels, to_tensor, write_png

    image = decode_image(Path(asked["frame"]).read_bytes(), "the frame")
    given = [asked[key] for key in ("target", "weights", "threat", "defense", "prior")]
    target = targets.load(asked["target"], None if asked["weights"] is None else Path(asked["weights"]))
    for split in target.aliases:
        if (made := _engine(*given, split)) is None:
            continue
        edge, engine = made
        with torch.inference_mode():
            features = edge(to_tensor(image[None]))
            preview = engine.preview(Observation(0, 0, 0.0, features))
        if preview is not None:
            file = folder / f"{split}.png"
            write_png(file, to_pixels(preview))
            yield {"split": split, "file": str(file)}


class Sweep:
    """The page's side: asks the process, which is started when it is first needed.

    Args:
        tell: called from a thread with each answer, and with ``{"problem": sentence}``.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, **asked: Any) -> None:
        """Begin to reconstruct a frame; answers come one by one."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "scenarios.web.sweep"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                    text=True,
                )
                threading.Thread(target=self._read, args=(self._process,), name="sweep", daemon=True).start()
            assert self._process.stdin is not None
            with suppress(OSError):  # it is gone, which its reader says
                self._process.stdin.write(json.dumps(asked) + "\n")
                self._process.stdin.flush()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with suppress(ValueError):
                self._tell(json.loads(line))
        if process.wait() != 0:
            self._tell({"problem": "the comparison of split points ended unexpectedly: ask again"})

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def main() -> None:
    """Answer until the input ends."""
    from splitsight.errors import UserError

    with suppress(OSError):
        os.nice(_NICE)
    with TemporaryDirectory(prefix="splitsight-") as folder:
        for line in sys.stdin:
            asked = json.loads(line)
            found: dict[str, Any] = {"done": 0}
            try:
                for answer in reconstructions(asked, Path(folder)):
                    print(json.dumps(answer | {"of": asked["of"]}), flush=True)
                    found["done"] += 1
            except UserError as error:
                found = {"problem": str(error)}
            print(json.dumps(found | {"of": asked["of"]}), flush=True)


if __name__ == "__main__":
    main()
