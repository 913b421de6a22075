"""What all tests rely on."""

import os
import signal

import pytest

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
