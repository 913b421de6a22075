import math
import re
from pathlib import Path

import pytest

from splitsight.errors import UserError
from splitsight.network import NETWORKS, load_profile

GOOD = "uplink_mbps: 10\ndownlink_mbps: 20\n"


@pytest.mark.parametrize("name", NETWORKS.names())
def test_shipped_profiles_say_where_their_figures_are_from(name):
    profile = load_profile(name)
    assert profile.name == name and profile.about and profile.source
    assert profile.shaped == (name != "loopback")


def test_what_ships():
    assert {"wifi", "lte", "5g", "wan", "loopback"} <= set(NETWORKS.names())


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "barn.yaml"
    file.write_text(GOOD + "latency_ms: 12\njitter_ms: 2\nloss: 1e-3\n")
    profile = load_profile(file)
    assert (profile.name, profile.uplink_mbps, profile.rtt_ms, profile.loss) == ("barn", 10, 24, 0.001)
    assert profile.summary() == "10 Mbit/s up, 20 down, 12 ms one way (± 2), 0.1 % lost"
    file.write_text("name: stable\nuplink_mbps: .inf\ndownlink_mbps: .inf\n")
    assert load_profile(str(file)).name == "stable" and math.isinf(load_profile(file).uplink_mbps)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("uplink_mbps: -3\ndownlink_mbps: 1\n", "uplink_mbps: -3, which should be greater than 0"),
        ("uplink_mbps: 0\ndownlink_mbps: 1\n", "uplink_mbps: 0, which should be greater than 0"),
        ("uplink_mbps: .nan\ndownlink_mbps: 1\n", "uplink_mbps: nan"),
        (GOOD + "loss: 1\n", "loss: 1, which should be less than 1"),
        (GOOD + "loss: -0.1\n", "loss: -0.1, which should be greater"),
        (GOOD + "latency_ms: -1\n", "latency_ms: -1"),
        (GOOD + "latency_ms: .inf\n", "latency_ms: inf"),
        (GOOD + "jitter_ms: fast\n", "jitter_ms: fast, which should be a valid number"),
        (GOOD + "bandwidth: 3\n", "unknown key 'bandwidth': it may have name, .*uplink_mbps"),
        ("uplink_mbps: 3\n", "lacks the key 'downlink_mbps'"),
        ("- 1\n", "must hold keys such as"),
        ("uplink_mbps: [\n", "is not YAML"),
        (b"\xff\xfe\x00", "YAML"),
    ],
)
def test_what_no_network_is_takes_one_sentence(tmp_path, text, match):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=match) as error:
        load_profile(file)
    assert "\n" not in str(error.value) and "bad.yaml" in str(error.value)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="unknown network 'wify': choose one of 5g, loopback, lte, wan, wifi"):
        load_profile("wify")
    with pytest.raises(UserError, match="cannot be read"):
        load_profile(tmp_path / "none.yaml")


def test_the_page_says_what_is(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "network-profiles.md").read_text(encoding="utf-8")
    (tmp_path / "barn.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert load_profile(tmp_path / "barn.yaml").latency_ms == 8
    for name in NETWORKS.names():
        profile = load_profile(name)
        if profile.shaped:
            row = f"| `{name}` | {profile.uplink_mbps} / {profile.downlink_mbps} | {profile.latency_ms:g} |"
            assert row in page
