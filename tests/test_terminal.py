"""Lines for a person at a terminal, and events for a program."""

import io
import json

import pytest

from splitsight.terminal import LiveLine, announce


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_line_is_written_again_and_again(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    line = LiveLine(stream)
    line.show("frame 1")
    line.show("frame 2 and more than fits")
    line.close()
    line.close()
    assert stream.getvalue() == "\rframe 1\x1b[K\rframe 2 and more th\x1b[K\n"


def test_elsewhere_there_is_none():
    stream = io.StringIO()
    line = LiveLine(stream)
    line.show("frame 1")
    line.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), "ready\n"), (io.StringIO(), '{"event": "ready"}\n')])
def test_words_for_people_events_for_programs(monkeypatch, stream, shown):
    monkeypatch.setattr("sys.stdout", stream)
    announce({"event": "ready"}, "ready")
    assert stream.getvalue() == shown and (shown == "ready\n" or json.loads(shown))
