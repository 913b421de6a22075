"""Asking an oracle: what is kept whatever happens, what is asked again, what is refused."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_oracle import FakeOracle, features
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversary.blackbox.command import default_pairs
from adversary.blackbox.pictures import draw_groups, pan
from adversary.blackbox.queries import OracleClient, Picture, QueryStore, collect, victim_of
from splitsight.data import image_hash, load_images, write_png
from splitsight.errors import UserError
from splitsight.features import FeatureSpec
from splitsight.wire.credentials import ClientCredentials
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, encode
from splitsight.wire.v1 import tensor_pb2

VICTIM = victim_of(
    SessionDescription("net", "L1", (FeatureSpec("z0", (3, 4, 4)),), head_digest="a" * 64, input_size=16)
)


def pictures(count, seed=0, size=16):
    rng = np.random.default_rng(seed)
    return [(Picture(rng.integers(0, 256, (size, size, 3), np.uint8), f"picture {i}"),) for i in range(count)]


def gather(oracle, folder, groups, count, role="train", **options):
    frames = options.pop("frames", 1)
    with OracleClient(oracle.address, patience=0.3, **options) as client:
        store = QueryStore.open(folder, client.connect())
        return store, collect(client, store, role, groups, count, frames=frames)


@pytest.mark.parametrize("codec", [CodecSpec(), CodecSpec("float16", "zstd"), CodecSpec("int8")], ids=str)
def test_pairs_are_what_was_asked_and_answered(tmp_path, codec):
    groups = pictures(19)
    with FakeOracle(codec=codec, slow_down=2) as oracle:
        store, done = gather(oracle, tmp_path / "q", groups, 19)
    assert done.asked == 19 and done.stopped is None and len(oracle.asked) == 19
    for opened in (store, QueryStore.open(tmp_path / "q")):
        pairs = opened.pairs("train", 18)
        assert len(pairs) == 18 and opened.count("train") == 19 and opened.count("test") == 0
        np.testing.assert_array_equal(pairs.images, np.stack([g[0].image for g in groups[:18]]))
        wanted = np.stack([features(g[0].image) for g in groups[:18]])
        np.testing.assert_allclose(
            pairs.features[0], wanted, atol={"float32": 0, "float16": 1e-3, "int8": 4e-3}[codec.dtype]
        )
        assert pairs.captions[3] == "picture 3" and pairs.hashes[0] == image_hash(groups[0][0].image)
    # any reader of images reads it too
    assert len(load_images(sorted((tmp_path / "q").glob("*.parquet"))[0], 16)) == 8


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_store_gives_back_any_features_in_any_codec(tmp_path_factory, data):
    shapes = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3))
    codec = CodecSpec(
        data.draw(st.sampled_from(["float32", "float16", "int8"])), data.draw(st.sampled_from(["none", "zstd"]))
    )
    number = st.floats(-100, 100, width=16)
    arrays = [np.array(data.draw(st.lists(number, min_size=int(np.prod(s)), max_size=int(np.prod(s))))) for s in shapes]
    specs = tuple(FeatureSpec(f"z{i}", s) for i, s in enumerate(shapes))
    answer = [encode(a.reshape(s.shape), codec, s) for a, s in zip(arrays, specs, strict=True)]
    victim = replace(VICTIM, features=specs, input_size=4)
    store = QueryStore.open(tmp_path_factory.mktemp("s"), victim)
    picture = Picture(np.full((4, 4, 3), data.draw(st.integers(0, 255)), np.uint8))
    store.add("test", [picture], [answer])
    again = QueryStore.open(store.folder)
    assert again.victim == victim and picture in again
    for found, array, spec in zip(again.pairs("test").features, arrays, specs, strict=True):
        wanted = array.reshape(spec.shape)
        # one scale a channel, or one in all, as the layout says
        axes = None if spec.scale_axis is None else tuple(i for i in range(wanted.ndim) if i != spec.scale_axis)
        scale = np.abs(wanted).max(axes, keepdims=True) / 254 if codec.dtype == "int8" else 0
        assert (np.abs(found[0] - wanted) <= scale + 1e-5).all()


@pytest.mark.parametrize(
    ("trouble", "kept", "words"),
    [
        ({"budget": 11}, 11, "the budget of 11 queries is spent"),
        ({"die_after": 16}, 16, "was lost and did not come back within 0.3 s"),
        ({"change_after": 8}, 8, "no longer answers as it announced: a tensor of shape 3×2×4 came where 3×4×4"),
        ({"max_side": 8}, 0, "a picture is too large"),
    ],
    ids=str,
)
def test_what_was_answered_is_kept_and_the_next_run_goes_on(tmp_path, trouble, kept, words):
    groups = pictures(20)
    with FakeOracle(**trouble) as oracle:
        store, done = gather(oracle, tmp_path, groups, 20)
    assert words in done.stopped and store.count("train") == kept == done.asked
    with FakeOracle() as oracle:
        store, done = gather(oracle, tmp_path, groups, 20)
    assert done.stopped is None and store.count("train") == 20
    assert len(oracle.asked) == 20 - kept
    np.testing.assert_array_equal(
        store.pairs("train", 20).features[0], np.stack([features(g[0].image) for g in groups])
    )


def test_an_oracle_that_comes_back_is_asked_on_and_another_one_is_not(tmp_path):
    groups = pictures(20)
    for digest, words in (("a" * 64, None), ("b" * 64, "came back with weights of F1 with digest bbbb")):
        first = FakeOracle()
        with OracleClient(first.address, patience=10) as client:
            store = QueryStore.open(tmp_path / digest[0], client.connect())
            assert collect(client, store, "train", groups, 8).stopped is None
            first.stop()
            with FakeOracle(port=first.port, digest=digest):
                done = collect(client, store, "train", groups, 20)
        assert (done.stopped is None) if words is None else words in done.stopped
        assert store.count("train") == (20 if words is None else 8)


def test_a_defence_named_by_a_path_is_no_path_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path))
    with FakeOracle(defense="aware:weights=runs/../../x") as made, OracleClient(made.address) as client:
        victim = client.connect()
    assert default_pairs(victim).parent == tmp_path / "queries"


@pytest.mark.parametrize(
    ("oracle", "words"),
    [
        ({"token": "secret"}, "asks for a token"),
        ({"target": "../../x"}, "'../../x' as the name of its target"),
        ({"split": ""}, "'' as the name of its split"),
        ({"digest": "beef"}, "weights of F1 without a SHA-256"),
        ({"features": [tensor_pb2.TensorSpec(name="z", shape=(1 << 20, 1 << 10))]}, "features of shape 1048576×1024"),
        ({"features": []}, "no features"),
        ({"features": [tensor_pb2.TensorSpec(name="z", shape=(3, 4), layout="map")]}, "features that cannot be"),
        ({"defense": "../x"}, "'../x' as the name of its defense"),
        ({"size": 0}, "images of 0 pixels"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_what_an_oracle_may_not_be(oracle, words):
    with (
        FakeOracle(**oracle) as made,
        OracleClient(made.address, credentials=ClientCredentials(token="wrong")) as client,
        pytest.raises(UserError, match=words),
    ):
        client.connect()


@pytest.mark.parametrize(
    ("address", "options", "words"),
    [
        ("localhost", {}, "is not HOST:PORT"),
        ("localhost:1", {"ca": Path("/nowhere.pem")}, "certificate authority /nowhere.pem cannot be read"),
        ("elsewhere:1", {"token": "secret"}, "in the clear"),
    ],
)
def test_bad_addresses_are_one_sentence(address, options, words):
    with pytest.raises(UserError, match=words):
        OracleClient(address, credentials=ClientCredentials(**options))


def test_an_oracle_that_is_not_there():
    with OracleClient("127.0.0.1:9", patience=0.1) as client, pytest.raises(UserError, match="nothing answers"):
        client.connect()


def test_training_and_test_queries_share_no_picture(tmp_path):
    groups = pictures(12)
    with FakeOracle() as oracle:
        store, _ = gather(oracle, tmp_path, groups, 5, "test")
        # the same picture again, under another caption, is still the same picture
        groups.insert(0, (Picture(groups[2][0].image, "again"),))
        store, done = gather(oracle, tmp_path, groups, 20)
    assert "no more than 7 different pictures" in done.stopped and len(oracle.asked) == 12
    assert not store.hashes("train") & store.hashes("test")


def test_windows_are_whole_or_not_used(tmp_path):
    stills = pictures(5)
    windows = [tuple(Picture(p.image, "", i, k) for k, (p,) in enumerate(pictures(3, 10 + i))) for i in range(3)]
    with FakeOracle(budget=13) as oracle:
        gather(oracle, tmp_path, stills, 5)
        store, done = gather(oracle, tmp_path, windows, 9, frames=3)
        assert "budget of 13" in done.stopped
    assert store.count("train", 3) == 6 and store.count("train") == 5
    pairs = store.pairs("train", 6, frames=3)
    np.testing.assert_array_equal(pairs.images, np.stack([p.image for w in windows[:2] for p in w]))
    with pytest.raises(UserError, match="6 pairs in whole windows of 3 frames for training, fewer than 9"):
        store.pairs("train", 9, frames=3)


def test_other_networks_and_damage_are_named(tmp_path):
    store = QueryStore.open(tmp_path / "q", VICTIM)
    answer = [encode(np.zeros((3, 4, 4)), CodecSpec(), VICTIM.features[0])]
    for group in pictures(2):
        store.add("train", group, [answer])
    for change, words in (
        ({"split": "L9"}, "split point L1, not L9"),
        ({"head_digest": "c" * 64}, "weights of F1 with digest"),
        ({"features": (FeatureSpec("z0", (3, 2, 2)),)}, r"features z0 3×4×4 \(map\), not z0 3×2×2"),
        ({"defense": "gaussian:sigma=0.5"}, "defence identity, not gaussian:sigma=0.5"),
    ):
        with pytest.raises(UserError, match=words):
            QueryStore.open(tmp_path / "q", replace(VICTIM, **change))
    # what comes behind the features changes no answer
    QueryStore.open(tmp_path / "q", victim_of(replace(VICTIM, tail_digest="d" * 64, task="embed")))
    part = tmp_path / "q" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    again = QueryStore.open(tmp_path / "q", VICTIM)
    assert again.count("train") == 1
    with pytest.raises(UserError, match=r"1 pairs for training, fewer than 2 \(part-00001.parquet is damaged"):
        again.pairs("train", 2)
    # a damaged part is not written over
    again.add("train", pictures(1, 9)[0], [answer])
    assert sorted(p.name for p in part.parent.glob("part-*")) == [f"part-0000{i}.parquet" for i in range(3)]
    with pytest.raises(UserError, match="holds no query pairs"):
        QueryStore.open(tmp_path / "nowhere")
    (tmp_path / "q" / "oracle.json").write_text("{}")
    with pytest.raises(UserError, match="does not describe an oracle"):
        QueryStore.open(tmp_path / "q")


def test_a_pan_is_a_square_that_moves_over_the_picture():
    # one linear ramp in each direction: what a crop shows is then known everywhere but at the border
    y, x = np.mgrid[:64, :64].astype(np.float32)
    image = np.stack([60 + 2 * x, 60 + 2 * y, np.zeros_like(x)], -1).astype(np.uint8)
    shown = pan(image, 4, np.random.default_rng(3))
    steps = []
    for frame in shown:
        red, green = (frame[4:-4, 4:-4, c].astype(float) for c in (0, 1))
        assert np.abs(np.diff(red, axis=0)).max() <= 1 and np.abs(np.diff(green, axis=1)).max() <= 1
        side = (red[:, -1] - red[:, 0]).mean() / 2 / (red.shape[1] - 1)
        assert 0.66 < side < 0.98
        steps.append([red.mean(), green.mean()])
    moved = np.diff(steps, axis=0)
    assert np.abs(moved - moved.mean(0)).max() < 1.5 and 0 < np.abs(moved).max() <= 0.15 * 128


def _video(path, frames, shade):
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 8, (32, 32))
    rng = np.random.default_rng(shade)
    for _ in range(frames):
        writer.write(cv2.resize(rng.integers(0, 255, (4, 4, 3), np.uint8), (32, 32)))
    writer.release()
    return path


def test_pictures_to_ask_about(tmp_path):
    for i in range(6):
        write_png(tmp_path / f"{i}.png", pictures(1, i)[0][0].image)
    drawn = draw_groups(tmp_path, 16, {"test": 2, "train": 3}, seed=1)
    assert [len(g) for g in drawn["train"]] == [1] * 6
    more = draw_groups(tmp_path, 16, {"test": 2, "train": 100}, seed=1)
    assert [g[0].key for g in more["train"]][:6] == [g[0].key for g in drawn["train"]]
    windows = draw_groups(tmp_path, 16, {"test": 4, "train": 4}, frames=4)["train"]
    assert all([p.frame for p in w] == [0, 1, 2, 3] and len({p.clip for p in w}) == 1 for w in windows)
    with pytest.raises(UserError, match="no such file"):
        draw_groups(tmp_path / "nowhere", 16, {"train": 1})


def test_windows_of_videos_hold_a_file_out_and_share_no_frame(tmp_path):
    videos = [_video(tmp_path / "v" / f"{i}.mp4", 9, i) for i in range(3)]
    with pytest.raises(UserError, match="--frames of at least 2"):
        draw_groups(tmp_path / "v", 16, {"train": 1})
    with pytest.raises(UserError, match="at least two are needed"):
        draw_groups(videos[0], 16, {"train": 1}, frames=2)
    drawn = draw_groups(tmp_path / "v", 16, {"train": 1, "test": 1}, frames=2)
    assert [len(drawn[role]) for role in ("train", "test")] == [8, 4]  # 8 frames of 9 in pairs half a second apart
    hashes = [[p.key[0] for w in drawn[role] for p in w] for role in ("train", "test")]
    assert len(set(hashes[0])) == 16 and len(set(hashes[1])) == 8 and not set(hashes[0]) & set(hashes[1])
    assert len({w[0].clip for role in drawn.values() for w in role}) == 12
    with pytest.raises(UserError, match=r"holds 4 frames 0\.5 s apart"):
        draw_groups(tmp_path / "v", 16, {"train": 1, "test": 1}, frames=4)
