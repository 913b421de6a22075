"""The relay beside the kernel's token bucket, `tc tbf` on a veth pair into a network namespace; needs root for it."""

import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time

import pytest

from splitsight.network import NetworkProfile
from splitsight.network.prediction import SEGMENT
from splitsight.network.relay import Relay
from splitsight.wire.channels import Address

_SINK = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        peer, _ = listener.accept()
        with peer:
            while peer.recv(1 << 16):
                pass
            peer.sendall(b"!")
"""
_MBPS = 20.0
_SIZE = 500_000
# what tbf counts of a full packet: the segment, 52 bytes of TCP and IP, 14 of Ethernet
_PACKET = SEGMENT + 52 + 14


@pytest.fixture
def tbf():
    """Address behind a link of 20 Mbit/s."""
    name, link = f"splitsight-{os.getpid()}", f"ss{os.getpid() % 10**6}"
    near, far = f"10.231.{os.getpid() % 250}.1", f"10.231.{os.getpid() % 250}.2"
    if sys.platform != "linux" or shutil.which("tc") is None or shutil.which("ip") is None:
        pytest.skip("no `ip` and `tc` here")

    def run(*words, check=True):
        return subprocess.run(words, capture_output=True, text=True, check=check)

    sink = None
    try:
        try:
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"{link}a", "type", "veth", "peer", "name", f"{link}b", "netns", name)
            run("ip", "address", "add", f"{near}/30", "dev", f"{link}a")
            run("ip", "link", "set", f"{link}a", "up")
            run("ip", "-n", name, "address", "add", f"{far}/30", "dev", f"{link}b")
            run("ip", "-n", name, "link", "set", f"{link}b", "up")
            rate = ("rate", f"{_MBPS:g}mbit", "burst", "1540", "latency", "500ms")
            run("tc", "qdisc", "add", "dev", f"{link}a", "root", "tbf", *rate)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"`{' '.join(map(str, error.cmd))}` is not allowed here ({error.stderr.strip()})")
        sink = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", _SINK, far], stdout=subprocess.PIPE, text=True
        )
        yield Address(far, int(sink.stdout.readline()))
    finally:
        if sink is not None:
            sink.kill()
            sink.wait()
            sink.stdout.close()
        run("ip", "link", "delete", f"{link}a", check=False)
        run("ip", "netns", "delete", name, check=False)


@pytest.fixture
def plain():
    sink = subprocess.Popen([sys.executable, "-c", _SINK, "127.0.0.1"], stdout=subprocess.PIPE, text=True)
    yield Address("127.0.0.1", int(sink.stdout.readline()))
    sink.kill()
    sink.wait()
    sink.stdout.close()


def seconds(address):
    """Until the other side has everything and says so."""
    with socket.create_connection(address, timeout=20) as s:
        start = time.monotonic()
        sender = threading.Thread(target=lambda: (s.sendall(bytes(_SIZE)), s.shutdown(socket.SHUT_WR)))
        sender.start()
        assert s.recv(1) == b"!"
        took = time.monotonic() - start
        sender.join()
    return took


def test_the_relay_carries_as_much_as_tbf(tbf, plain):
    profile = NetworkProfile(name="tbf", uplink_mbps=_MBPS * SEGMENT / _PACKET, downlink_mbps=_MBPS * SEGMENT / _PACKET)
    with Relay(plain, profile) as relay:
        # in turn, so that whatever else the machine does falls on both
        pairs = [(seconds(tbf), seconds(relay.address)) for _ in range(3)]
    kernel, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert ours >= 8 * _SIZE / (1e6 * profile.uplink_mbps)
    assert ours == pytest.approx(kernel, rel=0.1)
