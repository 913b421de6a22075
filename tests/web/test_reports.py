"""When the report of a part that still runs is made again."""

from dataclasses import replace
from types import SimpleNamespace

from scenarios.demo import DemoOptions
from scenarios.web import export


class Streamed:
    """What has come so far."""

    def __init__(self):
        self.frames, self.windows = [], {}

    def again(self):
        return self

    def poll(self):
        return False

    def rows(self):
        return self.frames


def test_a_report_is_made_again_only_where_something_came(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(export, "report", lambda part, *_, **__: made.append(part.options.solver))
    part = SimpleNamespace(out=tmp_path, join=Streamed(), options=DemoOptions(), children=None)
    reports = export.Reports(SimpleNamespace(parts=[part]))
    assert not reports.of(part) and not made  # nothing to report
    part.join.frames.append(SimpleNamespace(answered=True, lag_ms={}))
    assert reports.of(part) and len(made) == 1
    assert reports.of(part) and len(made) == 1
    part.join.frames[0].lag_ms["preview"] = 20.0
    assert reports.of(part) and len(made) == 2
    # another attack within the same part: the report names it
    part.options = replace(part.options, attack="window:map")
    assert reports.of(part) and made[2:] == ["window:map"]
    part.reported = True  # its own, final one is there already
    (tmp_path / "index.html").touch()
    part.join.windows[0] = {}
    assert reports.of(part) and len(made) == 3
