"""What all tests rely on."""

import os
import signal
from pathlib import Path

import pytest

_PROCESSES = {"cloud_server", "containers", "edge_client", "extend", "network", "run", "system", "web"}
"""Folders of tests that start processes, servers and browsers."""

# a shell starts what it puts in the background with Ctrl-C ignored, and children would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _home_of_their_own(tmp_path_factory):
    """Tests neither find what their user trained, nor leave anything there."""
    before = os.environ.get("SPLITSIGHT_HOME")
    os.environ["SPLITSIGHT_HOME"] = str(tmp_path_factory.mktemp("home"))
    yield
    if before is None:
        del os.environ["SPLITSIGHT_HOME"]
    else:
        os.environ["SPLITSIGHT_HOME"] = before


def pytest_collection_modifyitems(items):
    """What a busy machine makes of real processes is tried a second time; the summary counts and names reruns."""
    here = Path(__file__).parent
    for item in items:
        if _PROCESSES & set(item.path.relative_to(here).parts[:-1]):
            item.add_marker(pytest.mark.flaky(reruns=1))
