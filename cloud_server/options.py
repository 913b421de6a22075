"""What a cloud server can be told, checked before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from splitsight.errors import UserError
from splitsight.wire.channels import host_of
from splitsight.wire.credentials import ServerCredentials, read_token

__all__ = ["CloudOptions"]


@dataclass(frozen=True)
class CloudOptions:
    """Settings of one server process.

    Args:
        target: registered name of the network.
        split: name of the split point; F2 is what comes after it.
        weights: safetensors or PyTorch file; ``None`` for the embedded weights.
        defense: what every session must do to its features, as ``--defense`` takes it; ``None`` takes any defence that
            leaves the features' shapes and F2 as they are.
        host: address to listen on.
        port: 0 … 65535; 0 takes a free one.
        tap_port: likewise; ``None`` leaves the tap off.
        tap_host: address of the tap; other than loopback it needs token, certificate and key.
        token_file: file of the token that edges must send as ``authorization: Bearer …``.
        tap_token_file: file of the one that subscribers of the tap must send.
        cert: PEM certificate chain, for both ports.
        key: PEM private key that belongs to it.
        client_ca: PEM certificates of the authority that must have signed the callers' own, for both ports.
        insecure: serve edges on other addresses than loopback without token and TLS, too; never the tap.
        tap_ring: frames kept for a subscriber that does not read, ≥ 1, unless it asks for fewer.
        max_subscribers: of the tap at once, ≥ 1.
        metrics_port: Prometheus metrics on loopback; ``None`` leaves them off.
        threads: for F2, ≥ 1; ``None`` leaves the choice to torch.
        batch_window_ms: longest that a frame waits for others to be computed with, ≥ 0.
        max_batch: frames computed together, ≥ 1.
        max_sessions: at once, ≥ 1.
        max_in_flight: frames of one session waiting for an answer, ≥ 1.
        max_streams_per_peer: at once from one network address, ≥ 1.
        max_frame_rate: frames a second from one network address, ≥ 0; 0 for no limit. More are read later.
        idle_seconds: after which a session without a new frame is ended, > 0.
        stream_hours: after which any stream is ended, > 0; its session may be taken up again on another.
        max_message_mb: largest message in MiB, > 0.
        drain_seconds: longest that a shutdown waits for frames under way, ≥ 0.
        resume_seconds: how long the tap waits for a lost session to come back before it reports its end, ≥ 0.

    Raises:
        UserError: a value out of range, or a tap that would be open to anyone.
    """

    target: str = "resnet18"
    split: str = "L8"
    weights: Path | None = None
    defense: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    tap_port: int | None = None
    tap_host: str = "127.0.0.1"
    token_file: Path | None = None
    tap_token_file: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False
    tap_ring: int = 64
    max_subscribers: int = 8
    metrics_port: int | None = None
    threads: int | None = None
    batch_window_ms: float = 2.0
    max_batch: int = 16
    max_sessions: int = 32
    max_in_flight: int = 8
    max_streams_per_peer: int = 16
    max_frame_rate: float = 0.0
    idle_seconds: float = 300.0
    stream_hours: float = 24.0
    max_message_mb: float = 16.0
    drain_seconds: float = 10.0
    resume_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("port", "tap_port", "metrics_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise UserError(f"{name} {value} is not a port: give 0 (any free one) … 65535")
        for name in (
            "threads",
            "tap_ring",
            "max_subscribers",
            "max_batch",
            "max_sessions",
            "max_in_flight",
            "max_streams_per_peer",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value} is too small: give at least 1")
        for name in ("idle_seconds", "stream_hours"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)} is no time to wait: give more than 0")
        for name in ("batch_window_ms", "drain_seconds", "resume_seconds", "max_frame_rate"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} {getattr(self, name)} is negative: give 0 or more")
        if not 0 < self.max_message_mb <= 1024:
            raise UserError(f"max_message_mb {self.max_message_mb} is out of range: give more than 0 and at most 1024")
        host_of(self.host, "--host")
        if self.tap_port is not None:
            host_of(self.tap_host, "--tap-host")
            self.tap_credentials.check("tap", "show every session to the network", self.tap_host)
        if not self.insecure:
            self.credentials.check("cloud server", "compute for anyone on the network", self.host)

    @cached_property
    def credentials(self) -> ServerCredentials:
        """What edges must present."""
        return ServerCredentials(read_token(self.token_file, "cloud server"), self.cert, self.key, self.client_ca)

    @cached_property
    def tap_credentials(self) -> ServerCredentials:
        """What subscribers of the tap must present."""
        return ServerCredentials(read_token(self.tap_token_file, "tap"), self.cert, self.key, self.client_ca)
