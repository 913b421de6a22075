"""The codec under atheris, which looks for inputs that reach new branches: ``python tests/fuzz/codec.py -runs=200000``.

Further arguments are libFuzzer's: a folder of inputs that is kept, ``-seed=N``, ``-max_total_time=SECONDS``. Needs
``pip install atheris`` (extra ``fuzz``). What breaks is written to ``crash-…`` by libFuzzer; put it into test_fuzz.py.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["splitsight.wire", "splitsight.int8", "splitsight.features"]):
    from google.protobuf.message import DecodeError
    from messages import CODECS, SPECS, Mutator
    from services import decoded

    from splitsight.wire.fields import fields


def one(data: bytes) -> None:
    """One input: the first byte chooses what was agreed on, the rest is a tensor."""
    if not data:
        return
    try:
        decoded(data[1:], data[0] % len(SPECS))
    except DecodeError:
        return
    for _ in fields(data[1:]):  # whatever protobuf takes has fields
        pass


def seeds(folder: Path) -> None:
    """Valid tensors of every kind, as a start."""
    folder.mkdir(parents=True, exist_ok=True)
    m = Mutator(0)
    for i in range(len(SPECS)):
        for n, codec in enumerate(CODECS):
            (folder / f"seed-{i}-{n}").write_bytes(bytes([i]) + m.tensor(codec, i, 0))


if __name__ == "__main__":
    for folder in [Path(a) for a in sys.argv[1:] if not a.startswith("-")][:1]:
        seeds(folder)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
