"""The live page in a browser: processes that serve one, and tabs that write down what a browser complains of."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from splitsight.wire.ports import free_port

__all__ = ["CHROMIUM", "PATIENCE", "Demo", "Served", "Tab", "watched"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240.0


class Served:
    """A ``splitsight`` command that serves a page."""

    def __init__(self, *arguments: object) -> None:
        self.port = free_port()
        env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scenarios", *map(str, arguments), "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**env, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as answer:
            return answer.read()

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/live/status.json"))

    def until(self, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first status for which it holds."""
        end, status = time.monotonic() + PATIENCE, None
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.communicate()
            try:
                status = self.status()
            except (urllib.error.URLError, ConnectionError):
                status = None
            if status is not None and what(status):
                return status
            time.sleep(0.1)
        raise AssertionError(status)

    def close(self) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait(10)


class Demo(Served):
    """``splitsight demo`` with its page."""

    def __init__(self, out: Path, *options: str) -> None:
        self.out = out
        super().__init__("demo", "--out", out, "--threads", 1, *options)

    def streaming(self, part: int) -> dict[str, Any]:
        return self.until(lambda s: s["part"] == part and s["phase"] == "streaming" and s.get("frames", 0) > 2)


class Tab:
    """A tab that writes down what a browser complains of, and whom it asks."""

    def __init__(self, browser: Any, served: Served, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 844})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(served.address)
        self.drawn()

    def drawn(self, name: str = "reconstruction") -> None:
        """Wait until a picture is on the page."""
        self.page.wait_for_function(
            f"""(i => i && i.naturalWidth > 0 && i.src.startsWith('blob:'))(
                document.querySelector('img[data-picture$="-{name}"]'))"""
        )

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, words: str) -> None:
        self.page.get_by_label(label, exact=True).click()
        self.page.get_by_role("option", name=re.compile(re.escape(words))).first.click()


@contextmanager
def watched(browser: Any, served: Served) -> Iterator[Tab]:
    """A tab on a served page; nothing may be complained of, and nothing loaded from elsewhere."""
    made = Tab(browser, served)
    yield made
    made.page.close()
    assert made.complaints == []
    assert [url for url in made.asked if not url.startswith((served.address, "blob:", "data:"))] == []
