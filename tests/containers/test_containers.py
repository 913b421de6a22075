"""The lock fits the package, the compose file starts what the command line takes, health and page say what is."""

import json
import subprocess
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import distributions, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scenarios.containers import health, lock, metadata, prove
from scenarios.docs_commands.found import ROOT, parsed
from splitsight.errors import UserError

SERVICES = prove.services({})
DOCKERFILE = (lock.HERE / "Dockerfile").read_text(encoding="utf-8")


def test_the_lock_satisfies_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for torch in ("torch-cpu.txt", "torch-gpu.txt"):
        there = {canonicalize_name(n): v for n, v in (lock.locked("packages.txt") | lock.locked(torch)).items()}
        for needed in map(Requirement, project["dependencies"]):
            version = there.get(canonicalize_name(needed.name))
            assert version is not None, f"{needed} is not locked: run python -m scenarios.containers.lock"
            assert needed.specifier.contains(Version(version).public), needed


@pytest.mark.parametrize("name", ["packages.txt", "torch-cpu.txt", "torch-gpu.txt"])
def test_every_locked_file_has_a_hash(name):
    text = (lock.HERE / name).read_text(encoding="utf-8")
    entries = [entry for entry in text.split("\n") if entry and not entry.startswith("#")]
    for line, following in zip(entries, [*entries[1:], ""], strict=True):
        if not line.startswith(" "):
            assert line.endswith("\\") and following.startswith("    --hash=sha256:"), line


def test_only_the_gpus_lock_brings_cuda():
    assert lock.locked("torch-cpu.txt") == {name: f"{version}+cpu" for name, version in lock.TORCH.items()}
    assert any("nvidia" in name for name in lock.locked("torch-gpu.txt"))
    assert not any(n.startswith(("nvidia", "cuda", "triton", "torch=")) for n in lock.locked("packages.txt"))


def test_the_package_is_known_by_its_version(tmp_path):
    metadata.write_metadata(ROOT / "pyproject.toml", tmp_path)
    (found,) = distributions(path=[str(tmp_path)])
    assert found.name == "splitsight" and found.version == version("splitsight")


def test_hashes_are_read_from_an_index():
    a, b = "a" * 64, "b" * 64
    links = "".join(
        f'<a href="/whl/cpu/{name}#sha256={digest}">x</a>\n'
        for name, digest in [
            ("torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl", a),
            ("torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_aarch64.whl", b),
            ("torch-2.13.0%2Bcpu-cp311-cp311-win_amd64.whl", "c" * 64),
            ("torch-2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl", "d" * 64),
            ("torch-2.13.01%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl", "e" * 64),
        ]
    )
    assert lock.cpu_builds(links, "torch", "2.13.0") == [a, b]
    with pytest.raises(UserError, match="no CPU build"):
        lock.cpu_builds(links, "torch", "9")


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if s.get("command")])
@pytest.mark.parametrize("added", ["", "OPEN", "SECURED"])
def test_a_service_starts_a_command_that_there_is(name, added):
    options = SERVICES[name].get("environment", {}).get(added, "").split()
    assert parsed([*map(str, SERVICES[name]["command"]), *options]) is None


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add", []) == (["NET_ADMIN"] if name == "netem" else [])


def test_roles_see_what_they_may():
    volumes = {name: {v.split(":")[0]: v for v in s.get("volumes", [])} for name, s in SERVICES.items()}
    assert "frames" not in volumes["adversary"] and "frames" not in volumes["cloud"]
    assert "tapped" not in volumes["edge"] and "tapped" not in volumes["cloud"]
    assert all(volumes["page"][name].endswith(":ro") for name in ("frames", "tapped"))
    assert SERVICES["adversary"]["network_mode"] == "service:cloud" and "--tap-host" not in SERVICES["cloud"]["command"]
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    stages = DOCKERFILE.split("\nFROM ")
    copied = {
        stage.split()[-1] if " AS " not in stage.split("\n")[0] else stage.split("\n")[0].split()[-1]: stage
        for stage in stages
    }
    assert "/src/adversary" not in copied["edge"] and "/all/adversary" not in copied["edge"]
    assert "/src/adversary" not in copied["cloud"] and "/src/edge_client" not in copied["adversary"]
    assert "/opt/prior" not in copied["edge"] and "/opt/prior" not in copied["cloud"]
    assert set(prove._ROLES) <= set(copied)


def test_what_is_not_set_has_a_default():
    assert prove.interpolated("${A:-x:y} ${B:-} ${C:-z}", {"A": "1", "C": ""}) == "1  z"
    assert prove.services({"SPLIT": "L4"})["edge"]["command"].count("L4") == 1


def _entry(tmp_path, *arguments, certificates=False, **environment):
    """What the entry point would run."""
    script = (lock.HERE / "splitsight.sh").read_text(encoding="utf-8").replace("/certs", f"{tmp_path}/certs")
    script = script.replace("/results", f"{tmp_path}/results").replace("exec python3", "echo python3")
    (tmp_path / "certs").mkdir(exist_ok=True)
    if certificates:
        (tmp_path / "certs" / "ca.pem").touch()
    done = subprocess.run(
        ["sh", "-c", script, "splitsight", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_certificates_are_used_where_they_are(tmp_path):
    options = {"OPEN": "--insecure", "SECURED": "--cert x", "ROLE_OPTIONS": "--max-batch 2 *"}
    assert _entry(tmp_path, "cloud", "--port", "1", **options)[2:] == [
        "scenarios",
        "cloud",
        "--port",
        "1",
        "--insecure",
        "--max-batch",
        "2",
        "*",
    ]
    said = _entry(tmp_path, "cloud", certificates=True, **options)
    assert "--insecure" not in said and said[4:6] == ["--cert", "x"]
    assert "there" in _entry(tmp_path, "certs", "--out", "/certs")


def test_an_earlier_recording_is_kept(tmp_path):
    (tmp_path / "results" / "run").mkdir(parents=True)
    (tmp_path / "results" / "run" / "live.jsonl").touch()
    _entry(tmp_path, "adversary")
    assert not (tmp_path / "results" / "run").exists()
    assert list((tmp_path / "results").glob("run-*/live.jsonl"))


def test_health_of_an_edge(tmp_path):
    assert "no frame" in (health.edge(tmp_path) or "")
    line = {"sequence": 0, "answered_us": 1_000_000_000}
    (tmp_path / "edge.jsonl").write_text(json.dumps(line) + "\n" + '{"sequ')
    assert health.edge(tmp_path, now=1010.0) is None
    assert "40 s" in (health.edge(tmp_path, now=1040.0) or "")


def test_health_of_an_adversary(tmp_path):
    assert "loaded" in (health.adversary(tmp_path) or "")
    events = []
    for event, well in [("session", True), ("tap_lost", False), ("preview", False), ("tap_back", True)]:
        events.append(json.dumps({"event": event}) + "\n")
        (tmp_path / "live.jsonl").write_text("".join(events))
        assert (health.adversary(tmp_path) is None) is well


def test_health_of_what_is_not_there(tmp_path):
    assert "no answer" in (health.cloud("127.0.0.1:1", certs=tmp_path) or "")
    assert "no answer" in (health.page("127.0.0.1:1", certs=tmp_path) or "")


@pytest.mark.parametrize(("status", "well"), [(200, True), (401, True), (500, False)])
def test_health_of_a_page_that_may_ask_for_its_token(tmp_path, status, well):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert (health.page(f"127.0.0.1:{server.server_port}", certs=tmp_path) is None) is well
        server.shutdown()


def test_the_page_reaches_who_it_steers():
    page, certs = SERVICES["page"]["command"], SERVICES["operator"]["command"]
    for name, option in (("edge", "--edge"), ("adversary", "--adversary")):
        command = SERVICES[name]["command"]
        host, port = page[page.index(option) + 1].split(":")
        assert port == command[command.index("--operator-port") + 1]
        # by a name that its certificate has
        assert host in [certs[i + 1] for i, word in enumerate(certs) if word == "--host"]
        assert "operator" in SERVICES[name]["depends_on"]
