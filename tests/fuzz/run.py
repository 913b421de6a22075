"""Malformed messages by the million: ``python tests/fuzz/run.py --out FOLDER``; see docs/untrusted-network.md.

Each block of messages has a seed of its own, made of ``--seed``, the name of the service and the number of the block,
and one line in ``FOLDER/blocks.jsonl``; a run that was interrupted goes on behind the last line. A block that broke is
written to ``FOLDER/broken.txt`` with its seed, and the run ends with exit code 1.

Most messages go to the servicers in this process, ``--grpc`` of them over connections to real server processes.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import traceback
import zlib
from collections import Counter
from pathlib import Path

import grpc
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from messages import CODECS, SPECS, Mutator, opening_of
from services import Cloud, Operator, Oracle, Tap, check_status, decoded

from splitsight.wire.v1 import split_inference_pb2 as pb

BLOCK = 5_000
SHARES = {"inference": 0.33, "codec": 0.30, "oracle": 0.22, "tap": 0.15, "operator": 0.02}
_TOGETHER = 100  # streams at once


def streams(m: Mutator, count: int) -> list[list[bytes]]:
    """What is sent over each of so many streams; the last message of each is malformed."""
    made = []
    for i in range(count):
        codec = m.r.choice(CODECS)
        spoil = m.r.random() < 0.5
        if i % 3 == 0:
            made.append([m.spoilt(m.opening(codec)) if spoil else m.opening(codec, m.r.randint(1, 3))])
            continue
        good = [m.frame(codec, n) for n in range(m.r.randrange(3))]
        bad = m.spoilt(m.frame(codec, len(good))) if spoil else m.frame(codec, len(good), m.r.randint(1, 3))
        made.append([m.opening(codec), *good, bad])
    return made


async def inference(m: Mutator, count: int) -> Counter:
    """Whole streams; every answer is in order, and nothing is left of any stream."""
    found, cloud, made = Counter(), Cloud(), streams(m, count)
    for at in range(0, count, _TOGETHER):
        for status, _ in await asyncio.gather(*map(cloud.stream, made[at : at + _TOGETHER])):
            found[status] += 1
    await cloud.close()
    return found


async def oracle(m: Mutator, count: int) -> Counter:
    """Queries."""
    found, service = Counter(), Oracle()
    for _ in range(count):
        raw = m.spoilt(m.query()) if m.r.random() < 0.5 else m.query(m.r.randint(1, 3))
        found[await service.call(raw)] += 1
    service.close()
    return found


async def tap(m: Mutator, count: int) -> Counter:
    """Subscriptions."""
    service = Tap()
    raws = (
        m.spoilt(m.subscription(m.r.randrange(2))) if m.r.random() < 0.9 else m.subscription(1) for _ in range(count)
    )
    return Counter(map(service.call, raws))


async def operator(m: Mutator, count: int) -> Counter:
    """Changes of what an edge plays."""
    found, service = Counter(), Operator()
    for _ in range(count):
        raw = m.change(m.r.randint(1, 3))
        found[service.call(m.spoilt(raw) if m.r.random() < 0.5 else raw)] += 1
    return found


async def codec(m: Mutator, count: int) -> Counter:
    """Tensors, each of a shape that was agreed on."""
    chosen = (m.r.randrange(len(SPECS)) for _ in range(count))
    return Counter(decoded(m.tensor(m.r.choice(CODECS), i, m.r.randint(1, 2)), i) for i in chosen)


SERVICES = {"inference": inference, "codec": codec, "oracle": oracle, "tap": tap, "operator": operator}


def block(service: str, number: int, seed: int, count: int) -> Counter:
    """How the messages of one block ended, by status."""
    return asyncio.run(SERVICES[service](Mutator(zlib.crc32(f"{seed} {service} {number}".encode())), count))


# -- over real connections ---------------------------------------------------------------------------------


class Servers:
    """A cloud server with its tap, and an oracle, as processes on loopback."""

    def __init__(self, log: Path) -> None:
        self.children, self.log = [], log
        (self.cloud, self.ready), (self.oracle, about) = (
            self._start("cloud_server", "--tap-port", "0", "--threads", "1", "--max-sessions", "64"),
            self._start("scenarios", "oracle", "--port", "0", "--budget", "1000000000", "--rate", "0"),
        )
        self.ready["oracle_port"] = about["port"]

    def _start(self, *arguments: str) -> tuple[subprocess.Popen, dict]:
        with self.log.open("ab") as errors:
            child = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=errors)
        self.children.append(child)
        assert child.stdout is not None
        return child, json.loads(child.stdout.readline())

    def memory(self) -> list[int]:
        """Resident MiB of each."""
        return [psutil.Process(c.pid).memory_info().rss >> 20 for c in self.children]

    def alive(self) -> bool:
        return all(c.poll() is None for c in self.children)

    def stop(self) -> list[int]:
        """Exit codes, of servers that were asked to end."""
        for child in self.children:
            child.terminate()
        return [child.wait(30) for child in self.children]


def over_grpc(servers: Servers, m: Mutator, count: int) -> Counter:
    """As in-process, against real servers: a third each of streams, queries and subscriptions."""
    found: Counter = Counter()

    def call(multi, raws: list[bytes]) -> None:
        try:
            for _ in multi(iter(raws), timeout=20):
                pass
            found["OK"] += 1
        except grpc.RpcError as error:
            # a subscription that was taken is one that has to be cut off
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and multi is subscribe_briefly:
                found["OK"] += 1
            else:
                found[check_status(error.code(), error.details())] += 1

    with (
        grpc.insecure_channel(f"127.0.0.1:{servers.ready['port']}") as to_cloud,
        grpc.insecure_channel(f"127.0.0.1:{servers.ready['tap_port']}") as to_tap,
        grpc.insecure_channel(f"127.0.0.1:{servers.ready['oracle_port']}") as to_oracle,
    ):
        infer = to_cloud.stream_stream("/splitsight.v1.SplitInference/Infer")
        subscribe = to_tap.unary_stream("/splitsight.v1.Tap/Subscribe")
        query = to_oracle.unary_unary("/splitsight.v1.Oracle/Query")
        described = pb.DescribeResponse.FromString(to_cloud.unary_unary("/splitsight.v1.SplitInference/Describe")(b""))

        def subscribe_briefly(raws, timeout):
            return subscribe(next(raws), timeout=0.02)

        def ask(raws, timeout):
            return [query(next(raws), timeout=timeout)]

        for i, messages in enumerate(streams(m, count)):
            if i % 3 == 0:
                if len(messages) > 1:  # behind an opening that the server takes
                    messages[0] = opening_of(described.session, f"{m.r.getrandbits(64):x}", m.r.choice(CODECS))
                call(infer, messages)
            elif i % 3 == 1:
                call(ask, [m.spoilt(m.query())])
            else:
                call(subscribe_briefly, [m.spoilt(m.subscription(1))])
    assert servers.alive()
    return found


# -- the command -------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; a run there goes on")
    parser.add_argument("--messages", type=int, default=1_200_000, help="to the servicers in this process")
    parser.add_argument("--grpc", type=int, default=30_000, help="to real processes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "blocks.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {(row["service"], row["block"]) for row in rows}
    wanted = [(s, n) for s, share in SHARES.items() for n in range(round(share * given.messages / BLOCK))]
    wanted.sort(key=lambda one: one[1])
    wanted += [("grpc", n) for n in range(round(given.grpc / BLOCK))]
    servers, me = None, psutil.Process()
    try:
        for service, number in wanted:
            if (service, number) in done:
                continue
            begin = time.monotonic()
            try:
                if service == "grpc":
                    servers = servers or Servers(given.out / "servers.log")
                    found = over_grpc(servers, Mutator(zlib.crc32(f"{given.seed} grpc {number}".encode())), BLOCK)
                else:
                    found = block(service, number, given.seed, BLOCK)
            except Exception:
                with (given.out / "broken.txt").open("a") as file:
                    file.write(f"--seed {given.seed}, {service}, block {number}\n{traceback.format_exc()}\n")
                print(f"{service}, block {number}: broken, see {given.out / 'broken.txt'}", file=sys.stderr)
                return 1
            memory = servers.memory() if servers else [me.memory_info().rss >> 20]
            row = {"service": service, "block": number, "seconds": round(time.monotonic() - begin, 2)}
            rows.append(row | {"statuses": dict(found), "rss_mib": memory})
            with lines.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        codes = servers.stop() if servers else []
    finally:
        for child in servers.children if servers else []:
            child.kill()
    assert not any(codes), codes
    for line in summary(rows):
        print(line)
    return 0


def summary(rows: list[dict]) -> list[str]:
    """One line a service: messages, how many were refused, statuses, memory at the start and at the end."""
    said = []
    for service in dict.fromkeys(row["service"] for row in rows):
        own = [row for row in rows if row["service"] == service]
        total: Counter = sum((Counter(row["statuses"]) for row in own), Counter())
        sent, memory = sum(total.values()), [row["rss_mib"] for row in own]
        early = memory[min(2, len(memory) - 1)]  # caches are full by then
        statuses = ", ".join(f"{n} {name}" for name, n in total.most_common())
        said.append(
            f"{service}: {sent} messages, {sent - total['OK']} refused ({statuses}); MiB {early} → {memory[-1]}"
        )
    return said


if __name__ == "__main__":
    sys.exit(main())
