"""Keys: a file of random bytes that both ends hold, and what is drawn from it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from pydantic import Field

from splitsight.artifacts import home
from splitsight.defenses._base import Parameters
from splitsight.errors import UserError

__all__ = ["KeyParameters", "generator"]

_LEAST = 16
"""Bytes; fewer could be tried out."""


class KeyParameters(Parameters):
    """Parameters of a defence with a key."""

    key: str = Field(
        min_length=1,
        description="file of at least 16 secret random bytes, or its name in $SPLITSIGHT_HOME/keys; both ends hold it",
    )


def generator(key: str, purpose: str) -> np.random.Generator:
    """Numbers that a key and a purpose determine, for each purpose others.

    Raises:
        UserError: no such file, or too short a key.
    """
    path = Path(key).expanduser()
    path = path if path.is_file() else home() / "keys" / key
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"there is no key {key} ({error.strerror}): make one with `head -c 32 /dev/urandom > {key}` and give both "
            "ends a copy"
        ) from error
    if len(secret) < _LEAST:
        raise UserError(f"the key {key} has {len(secret)} bytes: give at least {_LEAST} random ones")
    state = hashlib.sha256(purpose.encode() + b"\0" + secret).digest()
    return np.random.default_rng(np.frombuffer(state, np.uint32).tolist())
