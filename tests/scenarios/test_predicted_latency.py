import numpy as np
import pytest
import torch

from scenarios.halves import CODECS, Halves, Timing, frame_bytes, time_halves
from scenarios.link import UNSHAPED, Setup, bench_link, overhead, summarise
from splitsight.errors import UserError
from splitsight.network import NetworkProfile, predict
from splitsight.pipeline import EdgePipeline
from splitsight.wire.tensors import CodecSpec


def halves(edge, cloud):
    return Halves(Timing(edge, edge, edge, 9), Timing(cloud, cloud, cloud, 9), 10_000.0, 100.0, 1)


def rows(split, network, latencies):
    zero = dict.fromkeys(("head_ms", "encode_ms", "rtt_ms", "queue_ms", "compute_ms"), 0.0)
    return [{"split": split, "network": network, "latency_ms": x, **zero} for x in latencies]


def test_the_overhead_is_what_loopback_takes_beyond_the_halves():
    assert overhead(rows("A", UNSHAPED, [10.0, 11.0, 90.0]), halves(4.0, 5.0)) == pytest.approx(2.0)


def test_predictions_add_up_and_ratios_are_of_medians():
    net = NetworkProfile(name="net", uplink_mbps=8, downlink_mbps=8, latency_ms=20)
    parts = {"A": halves(4.0, 5.0), "B": halves(1.0, 9.0)}
    took = predict(net, 10_000, 100).median_ms
    measured = rows("A", UNSHAPED, [11.0] * 20) + rows("A", "net", [took + 11] * 20)
    measured += rows("B", "net", [2 * (took + 12)] * 19 + [9e9])
    found = summarise([("A", net), ("B", net)], parts, measured, "A")
    assert found["overhead_ms"] == pytest.approx(2) and found["disturbed"] is False
    a, b = found["pairs"]
    assert a["predicted"]["total_ms"] == pytest.approx(took + 11) and a["ratio"]["ratio"] == pytest.approx(1)
    assert a["within"] is True and b["within"] is False and found["within"] == [1, 2]
    assert b["ratio"]["ratio"] == pytest.approx(2) and b["ratio"]["low"] <= 2 <= b["ratio"]["high"]
    assert summarise([("A", net)], {"A": halves(9.0, 9.0)}, measured, "A")["disturbed"] is True


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"networks": ["wify"]}, "unknown network"),
        ({"splits": ["L5"]}, "L5"),
        ({"splits": []}, "one split"),
        ({"frames": 3}, "at least 10 frames"),
        ({"networks": ["wifi", "wifi"]}, "same name"),
        ({"calibrate": "L99"}, "L99"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(tmp_path, changes, match):
    options = {"splits": ["L8"], "networks": ["wifi"], "frames": 10, "out": tmp_path / "out"} | changes
    with pytest.raises(UserError, match=match):
        bench_link(Setup(), **options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (24, 32, 3), np.uint8) for _ in range(3)]


def test_halves_are_timed_by_the_clock_that_is_given(tiny_target, images):
    ticks = iter(range(10_000))
    found = time_halves(EdgePipeline(tiny_target, "S1"), images, rounds=2, clock=lambda: float(next(ticks)))
    # four readings a frame, one second apart
    assert found.edge == Timing(1000.0, 1000.0, 1000.0, 6) and found.cloud == found.edge
    assert found.up_bytes > 4 * 8 * 8 * 8 and 0 < found.down_bytes < 200 and found.threads == 1


def test_sizes_are_those_that_are_sent(tiny_target, images):
    sizes = frame_bytes(EdgePipeline(tiny_target, "S1"), images)
    assert (
        list(sizes)
        == list(CODECS)
        == [f"{dtype}{packed}" for dtype in ("float32", "float16", "int8") for packed in ("", "+zstd")]
    )
    for name, codec in CODECS.items():
        sent = time_halves(EdgePipeline(tiny_target, "S1", codec=codec), images, rounds=1).up_bytes
        assert sizes[name] == pytest.approx(sent, abs=2.5)  # sequence numbers from 0 take no byte, later ones two
    numbers = 8 * 8 * 8
    assert numbers * 4 < sizes["float32"] < numbers * 4 + 60 and numbers < sizes["int8"] < numbers + 110


def test_a_codec_that_cannot_hold_the_features_has_no_size(tiny_target, images):
    tiny_target.model[0].bias.data += 1e6
    tiny_target.model[1] = torch.nn.Identity()  # a tanh would bring them back
    sizes = frame_bytes(EdgePipeline(tiny_target, "S1"), images)
    assert sizes["float16"] is None and sizes["float16+zstd"] is None and sizes["float32"] > 0 and sizes["int8"] > 0
    assert CodecSpec() == CODECS["float32"]
