"""Ray: a local cluster of two nodes, one of which is killed half-way, and what cannot be used in one sentence."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from scenarios.run import cluster
from scenarios.run.run import RunOptions, run_scenario
from splitsight.errors import UserError

IMAGES = 10


def command(path, out, *options):
    code = "import sys; from scenarios.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code, "run", path, "--out", str(out), "--threads", "1", *options]


@pytest.fixture
def two_nodes(environment, monkeypatch):
    """A cluster of two nodes with one core each, as two machines that share this file system would be."""
    pytest.importorskip("ray", reason="the extra ray is not installed, or has no wheels for this Python")
    from ray.cluster_utils import Cluster

    # Ray gives its control store half a minute to start, which a machine busy with other tests may exceed
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_gcs_server_port_wait_time_s": "180"}
    for name, value in {**environment, **ray}.items():
        monkeypatch.setenv(name, value)
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    try:
        yield made, made.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    finally:
        made.shutdown()


def test_a_node_killed_half_way_loses_no_row_and_repeats_none(two_nodes, scenario, parquet, environment, tmp_path):
    nodes, second = two_nodes
    cells = [{"split": "L16", "method": "fake", "with": {"sleep": 0.5}, "batch": 1}]
    path, out = scenario(cells=cells, data={"path": str(parquet), "count": IMAGES, "gallery": 12}), tmp_path / "out"
    process = subprocess.Popen(
        command(path, out, "--ray", nodes.address), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 150

        def workers():
            """Processes that have taken a unit."""
            return {int(f.read_text() or 0) for f in out.glob("claims/c*")} - {0}

        while len(workers()) < 2 or len(list(out.glob("parts/*.parquet"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        before = {part.name: part.stat().st_mtime_ns for part in out.glob("parts/*.parquet")}
        assert len(before) < IMAGES
        nodes.remove_node(second, allow_graceful=False)
        _, said = process.communicate(timeout=150)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    assert [row["index"] for row in rows] == list(range(IMAGES))
    assert all((out / "parts" / name).stat().st_mtime_ns == at for name, at in before.items())
    # at most what the dead node had in hand was begun twice
    begun = [int(line.split()[1]) for line in (tmp_path / "fake.log").read_text().splitlines()]
    assert set(begun) == set(range(IMAGES)) and len(begun) <= IMAGES + 1
    assert (out / "index.html").is_file()


def test_no_cluster_is_one_sentence_before_anything_is_loaded():
    pytest.importorskip("ray", reason="the extra ray is not installed, or has no wheels for this Python")
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 .*ray start --head"):
        run_scenario(RunOptions(scenario="no-such-scenario", ray="127.0.0.1:1"))


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"splitsight\[ray\]"), cluster.connected("auto"):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.1"), "other versions.*Ray: 2.1"),
        (RuntimeError("the socket is gone"), "does not connect to auto: the socket is gone"),
        (ConnectionError("Could not find any running Ray instance."), "no Ray cluster at auto"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_sentence(monkeypatch, error, words):
    def refuse(**_):
        raise error

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=refuse))
    with pytest.raises(UserError, match=words), cluster.connected("auto"):
        pass


def test_a_node_says_what_it_lacks(tmp_path, monkeypatch):
    own = cluster._version()
    said, code = cluster._work(str(tmp_path), 1, "cpu", "0.0")
    assert f"splitsight {own}, not 0.0" in said and code == 2
    said, code = cluster._work(str(tmp_path), 1, "cpu", own)
    assert f"does not see {tmp_path}" in said and code == 2
