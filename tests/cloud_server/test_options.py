"""Settings are checked before anything is opened."""

from pathlib import Path

import pytest

from cloud_server.__main__ import _HELP, main
from cloud_server.options import CloudOptions
from splitsight.errors import UserError

_FILES = {"cert", "key", "token_file", "tap_token_file"}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"port": 70000}, "port 70000"),
        ({"tap_port": -1}, "tap_port"),
        ({"threads": 0}, "threads"),
        ({"max_batch": 0}, "max_batch"),
        ({"batch_window_ms": -1}, "batch_window_ms"),
        ({"batch_window_ms": float("nan")}, "batch_window_ms"),
        ({"max_message_mb": 0}, "max_message_mb"),
        ({"host": "unix:/tmp/s"}, "local socket"),
        ({"host": "http://0.0.0.0"}, "--host 127.0.0.1"),
        ({"host": "127.0.0.1:50051"}, "holds a port"),
        ({"tap_port": 0, "tap_host": "unix:/tmp/s"}, "--tap-host 127.0.0.1"),
        ({"cert": "c.pem"}, "both or neither"),
        ({"tap_port": 0, "tap_host": "0.0.0.0"}, "a tap on 0.0.0.0 .* token, a certificate and a key"),
        ({"tap_port": 0, "tap_host": "::", "cert": "c", "key": "k", "insecure": True}, "a tap on :: .* token"),
        ({"host": "0.0.0.0"}, "a cloud server on 0.0.0.0 .* token, a certificate and a key"),
        ({"tap_port": 0, "tap_token_file": "/none"}, "the tap's token file /none cannot be read"),
        ({"token_file": "/none"}, "the cloud server's token file /none cannot be read"),
    ],
)
def test_bad_settings_are_one_sentence(settings, text):
    with pytest.raises(UserError, match=text) as caught:
        CloudOptions(**{k: Path(v) if k in _FILES else v for k, v in settings.items()})
    assert "\n" not in str(caught.value)


def test_ports_may_be_open_on_loopback_and_guarded_elsewhere(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    CloudOptions(tap_port=0)
    for host in ("::1", "[::1]", "localhost"):
        CloudOptions(host=host, tap_port=0, tap_host=host)
    CloudOptions(tap_port=0, tap_host="0.0.0.0", tap_token_file=token, cert=Path("c"), key=Path("k"))
    CloudOptions(host="0.0.0.0", token_file=token, cert=Path("c"), key=Path("k"))
    CloudOptions(host="0.0.0.0", insecure=True)
    CloudOptions(tap_host="0.0.0.0")  # off


def test_command_line_has_every_setting_and_prints_one_sentence(capsys):
    assert set(_HELP) == set(CloudOptions.__dataclass_fields__)
    assert main(["--tap-port", "0", "--tap-host", "0.0.0.0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "token" in captured.err
