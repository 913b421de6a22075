"""``python -m scenarios.containers.prove``: build the images and run all roles, on a machine without a Docker engine.

``podman build`` makes the images from the Dockerfile; the roles run as ``compose.yaml`` says, each from its image's
own file system, mounted read-only, as the image's user, without capabilities and with the image's environment, entry
point and health check. Edge, cloud and page have a network namespace of their own, the adversary shares the cloud's,
and virtual cables join them. Then the page is looked at, and where there are playwright and Chromium its buttons are
pressed. That is what an engine does, with ``unshare``, ``mount``, ``chroot`` and
``setpriv`` from util-linux in its place; what it does not show is resource limits, seccomp, and the published port.

Needs root, and ``apt-get install podman iproute2`` (``mmdebstrap`` where no ``--base`` is given; ``patchelf`` and a C
compiler where PyTorch's index of CPU builds cannot be reached).
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from scenarios.containers.lock import CPU_INDEX, HERE, TORCH
from scenarios.containers.without_cuda import without_cuda
from splitsight.errors import UserError

__all__ = ["Container", "interpolated", "main", "services"]

_ROLES = ("cloud", "edge", "adversary", "page")
_PODMAN = ("podman", "--storage-driver=overlay")
_CABLES = (
    {"cloud": "192.0.2.1", "edge": "192.0.2.2"},
    {"cloud": "192.0.2.5", "page": "192.0.2.6"},
    {"edge": "192.0.2.9", "page": "192.0.2.10"},
)
"""Between two namespaces each: addresses for documentation (RFC 5737), where nothing else is."""

_INDEX_PORT = 38431
"""The same each time: layers are kept by the address that they were made with."""

_INSIDE = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o size=512m,mode=1777 tmpfs "$ROOT/tmp"
mount --bind "$HOSTS" "$ROOT/etc/hosts"
eval "$VOLUMES"
exec chroot "$ROOT" setpriv --reuid="$OWNER" --regid="$OWNER" --clear-groups --no-new-privs --bounding-set=-all \\
    --inh-caps=-all env -i -C "$WORKDIR" "$@"
"""


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Compose's ``${NAME:-default}``, where the name is not set."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: environment.get(m[1]) or m[2], text)


def services(environment: Mapping[str, str]) -> dict[str, Any]:
    """The services of ``compose.yaml``."""
    return yaml.safe_load(interpolated((HERE / "compose.yaml").read_text(encoding="utf-8"), environment))["services"]


def _run(*command: str | Path, **more: Any) -> str:
    done = subprocess.run(command, text=True, capture_output=True, **more)
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout).strip()[-2000:]}", code=1)
    return done.stdout


class Container:
    """One service of the compose file, run from its image.

    Args:
        name: of the service.
        service: what the compose file says of it.
        work: folder for volumes and logs.
        namespace: of the network.
    """

    def __init__(self, name: str, service: Mapping[str, Any], work: Path, namespace: str) -> None:
        self.name, self.service, self.work, self.namespace = name, service, work, namespace
        (image,) = json.loads(_run(*_PODMAN, "image", "inspect", f"localhost/{service['image']}"))
        self.config, self.size = image["Config"], image["Size"]
        self.health = image.get("Healthcheck") or self.config.get("Healthcheck")
        self.root = _run(*_PODMAN, "image", "mount", f"localhost/{service['image']}").strip()
        self.process: subprocess.Popen[str] | None = None
        self.peak_mb = 0.0
        self.log = work / f"{name}.log"

    def command(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """What runs ``arguments`` inside, and the environment that says how."""
        volumes = []
        for volume in self.service.get("volumes", []):
            source, inner, *mode = volume.split(":")
            folder = self.work / "volumes" / source
            folder.mkdir(parents=True, exist_ok=True)
            owner = int(self.config["User"].split(":")[0])
            os.chown(folder, owner, owner)
            where = f'"$ROOT{inner}"'
            volumes.append(f"mount --bind '{folder}' {where}")
            if mode == ["ro"]:
                volumes.append(f"mount -o remount,bind,ro {where}")
        own = self.namespace.removeprefix("splitsight-")
        others = [(n, a) for cable in _CABLES if own in cable for n, a in cable.items() if n != own]
        hosts = self.work / f"hosts-{own}"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in others))
        settings = {
            "ROOT": self.root,
            "HOSTS": str(hosts),
            "VOLUMES": "\n".join(volumes),
            "OWNER": self.config["User"].split(":")[0],
            "WORKDIR": self.config.get("WorkingDir") or "/",
            "PATH": os.environ["PATH"],
        }
        inside = [*self.config["Env"], *(f"{k}={v}" for k, v in self.service.get("environment", {}).items())]
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", "-c", _INSIDE, "sh"]
        return [*enter, *inside, *arguments], settings

    def run(self, arguments: Sequence[str], seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run something else inside, to its end, within so many seconds."""
        command, environment = self.command(arguments)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)

    def start(self) -> None:
        """Start what the service runs."""
        command, environment = self.command([*self.config["Entrypoint"], *map(str, self.service["command"])])
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.log.open("w"), stderr=subprocess.STDOUT, text=True
        )

    def healthy(self) -> tuple[bool, str]:
        """What the image's health check says."""
        done = self.run(self.health["Test"][1:])
        return done.returncode == 0, (done.stdout or done.stderr).strip()

    def wait_healthy(self, seconds: float = 300.0) -> str:
        """Ask until it is.

        Raises:
            UserError: it ended or never was.
        """
        end = time.monotonic() + seconds
        while True:
            well, said = self.healthy()
            if well:
                return said
            if self.process is None or self.process.poll() is not None or time.monotonic() > end:
                raise UserError(f"{self.name} is not healthy ({said}): {self.log.read_text()[-2000:]}", code=1)
            time.sleep(1)

    def confined(self) -> str:
        """How it is confined, as seen from inside.

        Raises:
            UserError: it can write where it must not, or is root.
        """
        probe = (
            'id -u; for d in / /app /usr /etc; do [ -w $d ] && echo "writable $d"; done; touch /app/x 2>&1; '
            "grep -E 'CapEff|NoNewPrivs' /proc/self/status"
        )
        said = self.run(["sh", "-c", probe]).stdout.split()
        if said[0] == "0" or "writable" in said or "0000000000000000" not in said:
            raise UserError(f"{self.name} is not confined: {' '.join(said)}", code=1)
        return f"user {said[0]}, root file system read-only, no capability"

    def look(self) -> None:
        """Note the most memory that it has had so far."""
        with suppress(OSError, AttributeError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()  # type: ignore[union-attr]
            # a process that is just ending has none
            for kilobytes in re.findall(r"VmHWM:\s+(\d+)", status):
                self.peak_mb = max(self.peak_mb, int(kilobytes) / 1e3)

    def ended(self, seconds: float) -> int:
        """Wait for its own end; its exit code.

        Raises:
            UserError: it goes on.
        """
        end = time.monotonic() + seconds
        while self.process is not None and self.process.poll() is None:
            if time.monotonic() > end:
                raise UserError(f"{self.name} does not end: {self.log.read_text()[-2000:]}", code=1)
            self.look()
            time.sleep(0.3)
        return self.stop()

    def stop(self, grace: float = 120.0) -> int:
        """SIGTERM, and its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(grace)


@contextmanager
def _network() -> Iterator[None]:
    """A namespace each for edge, cloud and page, and a cable between any two."""
    names = {role: f"splitsight-{role}" for role in ("cloud", "edge", "page")}
    try:
        for name in names.values():
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        for number, cable in enumerate(_CABLES):
            (one, at), (other, elsewhere) = cable.items()
            port, peer = f"eth{number}", names[other]
            _run("ip", "-n", names[one], *f"link add {port} type veth peer name {port} netns {peer}".split())
            for role, address in ((one, at), (other, elsewhere)):
                _run("ip", "-n", names[role], "address", "add", f"{address}/30", "dev", port)
                _run("ip", "-n", names[role], "link", "set", port, "up")
        yield
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextmanager
def _cpu_index(work: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An index of CPU builds: PyTorch's own, or one on loopback with what can be had; its hashes by file name."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--python-version",
        "3.11",
    ]
    reach = [*pip, "--isolated", "--dry-run", "-d", work, "--index-url", CPU_INDEX, f"torch=={TORCH['torch']}+cpu"]
    if subprocess.run(reach, capture_output=True).returncode == 0:
        yield CPU_INDEX, {}
        return
    print(f"{CPU_INDEX} cannot be reached: PyTorch from where pip has a CPU build, torchvision from PyPI, CUDA cut off")
    index = work / "index"
    for name in TORCH:
        (index / name).mkdir(parents=True, exist_ok=True)
    if not list((index / "torch").glob("*.whl")):
        _run(*pip, "-d", index / "torch", f"torch=={TORCH['torch']}+cpu")
        _run(*pip, "-d", work, f"torchvision=={TORCH['torchvision']}")
        (plain,) = work.glob(f"torchvision-{TORCH['torchvision']}-*.whl")
        without_cuda(plain, index / "torchvision")
    hashes = {w.name.split("-")[0]: sha256(w.read_bytes()).hexdigest() for w in index.glob("*/*.whl")}
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(index))
    handler.func.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", _INDEX_PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", hashes
        server.shutdown()


def _context(work: Path, hashes: Mapping[str, str]) -> Path:
    """A copy of what the images are made of, with the hashes of the wheels that stand in for PyTorch's."""
    context, root = work / "context", HERE.parents[1]
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    shutil.copy(root / "pyproject.toml", context)
    unused = shutil.ignore_patterns("__pycache__", "results", "images")
    for package in ("splitsight", "edge_client", "cloud_server", "adversary", "scenarios"):
        shutil.copytree(root / package, context / package, ignore=unused)
    lock = context / "scenarios" / "containers" / "torch-cpu.txt"
    text = lock.read_text()
    for name, digest in hashes.items():
        if digest not in text:
            print(f"{name}: its own hash {digest[:12]}… stands in for that of PyTorch's build")
            text = text.replace(
                f"{name}=={TORCH[name]}+cpu \\\n", f"{name}=={TORCH[name]}+cpu \\\n    --hash=sha256:{digest} \\\n"
            )
    lock.write_text(text)
    return context


def _base(work: Path) -> str:
    """A Debian with Python, as an image, where no base can be pulled."""
    name = "localhost/splitsight-base:1"
    if subprocess.run([*_PODMAN, "image", "exists", name]).returncode:
        packages = "python3,python3-pip,ca-certificates"
        _run("mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", work / "base.tar")
        _run(*_PODMAN, "import", work / "base.tar", name)
        (work / "base.tar").unlink()
    return name


def build(work: Path, base: str | None) -> None:
    """Build the images of all roles."""
    with _cpu_index(work) as (index, hashes):
        context = _context(work, hashes)
        certificates = "/etc/ssl/certs/ca-certificates.crt"
        options = ["--isolation=chroot", "--network=host", "--format=docker", "-v", f"{certificates}:{certificates}:ro"]
        arguments = ["--build-arg", f"BASE_IMAGE={base or _base(work)}", "--build-arg", f"TORCH_INDEX={index}"]
        for role in _ROLES:
            began = time.monotonic()
            image = [
                "-f",
                str(context / "scenarios/containers/Dockerfile"),
                "--target",
                role,
                "-t",
                f"localhost/splitsight-{role}",
            ]
            with (work / f"build-{role}.log").open("w") as log:
                done = subprocess.run(
                    [*_PODMAN, "build", *options, *arguments, *image, str(context)], stdout=log, stderr=log
                )
            if done.returncode:
                raise UserError(f"the image of {role} does not build: see {log.name}", code=1)
            print(f"built {role} in {time.monotonic() - began:.0f} s", flush=True)


def stream(work: Path, seconds: int, *, tls: bool) -> None:
    """All roles against each other, as ``compose up`` would start them; prints what came of it.

    Raises:
        UserError: anything that is not as it should be.
    """
    found = services({"STREAM_SECONDS": str(seconds)})
    where = {
        "cloud": "cloud",
        "adversary": "cloud",
        "operator": "edge",
        "certs": "edge",
        "edge": "edge",
        "page": "page",
    }
    made = {n: Container(n, found[n], work, f"splitsight-{where[n]}") for n in where}
    print(f"\n{'mutual TLS and tokens' if tls else 'without certificates'}, {seconds} s of video")
    with ExitStack() as stack:
        for name in ("operator", "certs") if tls else ("operator",):
            done = made[name].run([*made[name].config["Entrypoint"], *found[name]["command"]])
            if done.returncode:
                raise UserError(f"{name}: {done.stderr}", code=1)
        for name in ("page", "cloud", "adversary", "edge"):
            container = made[name]
            container.start()
            stack.callback(container.stop)
            print(f"  {name:10} {container.wait_healthy()}: {container.confined()}", flush=True)
        elsewhere = made["edge"].run(["python3", "-c", _KNOCK.format(port=50052)])
        print(f"  the tap from the edge's machine: {elsewhere.stdout.strip()}")
        looked = made["page"].run(["python3", "-c", _LOOK], seconds=300)
        if looked.returncode:
            raise UserError(f"the page does not show the stream: {looked.stderr.strip()[-2000:]}", code=1)
        print(f"  the page: {looked.stdout.strip()}", flush=True)
        print(f"  its buttons: {_pressed(made['page'], work, tls=tls)}", flush=True)
        codes = {name: made[name].ended(seconds + 240) for name in ("edge", "adversary")}
        reported = _report(made["page"])
        for name in ("cloud", "page"):
            made[name].look()
        codes |= {name: made[name].stop() for name in ("cloud", "page")}
    print(f"  exit codes: {codes}")
    peaks = ", ".join(f"{n} {made[n].peak_mb:.0f} of {found[n]['mem_limit']}" for n in _ROLES)
    print(f"  most memory, MB: {peaks}")
    if any(codes.values()):
        raise UserError(f"a role failed: {codes}, see {work}", code=1)
    summary = json.loads((reported / "summary.json").read_text())
    frames, tiers = summary["serving"]["frames"], summary["live"]["tiers"]
    print(
        f"  {frames} frames answered; "
        + "; ".join(f"{t}: {v['n']} at {v['psnr']['mean']:.1f} dB" for t, v in tiers.items())
    )
    if frames < seconds or not tiers["window"]["n"]:
        raise UserError(f"too little came of it: see {reported}", code=1)
    print(f"  report: {reported / 'index.html'}")


_KNOCK = """
import socket
try:
    socket.create_connection(("cloud", {port}), 3); print("open")
except OSError as error: print("refused" if error.errno == 111 else error)
"""


_LOOK = """
import json, ssl, time, urllib.request
from pathlib import Path

ca, token = Path("/certs/ca.pem"), Path("/certs/operator.token")
context = ssl.create_default_context(cafile=str(ca)) if ca.exists() else None
headers = {"Authorization": "Bearer " + token.read_text().strip()} if ca.exists() else {}

def get(path):
    url = f"{'https' if ca.exists() else 'http'}://127.0.0.1:8080{path}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context) as answer:
        return answer.read()

while True:
    status = json.loads(get("/live/status.json"))
    states = {role: how["state"] for role, how in status["processes"].items()}
    if set(states.values()) == {"running"} and status.get("windows", {}).get("done"):
        break
    time.sleep(0.5)
kinds = ("original", "features", "reconstruction")
pictures = {kind: len(get(f"/live/newest-{kind}.jpg")) for kind in kinds}
print(f"{states}, {status['frames']} frames; JPEG bytes: {pictures}")
"""

_PRESS = """
import sys
from playwright.sync_api import sync_playwright

address, chromium, picture = sys.argv[1:]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1280, "height": 844}, ignore_https_errors=True)
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Go on", exact=True).wait_for()
    page.screenshot(path=picture, full_page=True)
    page.get_by_role("button", name="Go on", exact=True).click()
    page.get_by_role("button", name="Pause", exact=True).wait_for()
"""


def _pressed(page: Container, work: Path, *, tls: bool) -> str:
    """Pause and go on in a browser beside the page's container; what came of it.

    Raises:
        UserError: the edge did not do it.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or find_spec("playwright") is None:
        return "not pressed, Chromium and playwright are not both here"
    token = (work / "volumes" / "certs" / "operator.token").read_text().strip() if tls else ""
    address = f"https://127.0.0.1:8080/?token={token}" if tls else "http://127.0.0.1:8080/"
    picture = work / f"page{'-tls' if tls else ''}.png"
    inside = ["ip", "netns", "exec", page.namespace, sys.executable, "-c", _PRESS, address, chromium, str(picture)]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise UserError(f"the page's buttons do nothing: {done.stderr.strip()[-2000:]}", code=1)
    return f"the edge paused, and went on; see {picture}"


def _report(page: Container, seconds: float = 120.0) -> Path:
    """The folder of the newest report, as soon as it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in reversed(page.log.read_text().splitlines()):
            if '"report"' in line:
                return page.work / "volumes" / "results" / Path(json.loads(line)["folder"]).name
        time.sleep(1)
    raise UserError(f"no report: {page.log.read_text()[-2000:]}", code=1)


def main(arguments: list[str] | None = None) -> int:
    """Build, run, print."""
    parser = argparse.ArgumentParser(prog="prove", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--base", help="image to build on, where one can be pulled; default: one made by mmdebstrap")
    parser.add_argument("--work", type=Path, default=Path("/tmp/splitsight-prove"), help="folder for volumes and logs")
    parser.add_argument("--seconds", type=int, default=60, help="of video in each stream")
    parser.add_argument("--built", action="store_true", help="the images are there: only run them")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        if os.getuid():
            raise UserError("namespaces and mounts need root")
        if missing := [tool for tool in ("podman", "ip", "unshare", "setpriv") if shutil.which(tool) is None]:
            raise UserError(f"{', '.join(missing)} not found: apt-get install podman iproute2 util-linux")
        if not options.built:
            build(options.work, options.base)
        shutil.rmtree(options.work / "volumes", ignore_errors=True)
        with _network():
            stream(options.work, options.seconds, tls=False)
            stream(options.work, options.seconds, tls=True)
        print("\nimage sizes, as `podman image ls` counts them (packages and PyTorch are layers that all share)")
        for role in _ROLES:
            (image,) = json.loads(_run(*_PODMAN, "image", "inspect", f"localhost/splitsight-{role}"))
            print(f"  {role:10} {image['Size'] / 1e9:.2f} GB")
    except UserError as error:
        print(f"prove: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
