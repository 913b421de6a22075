"""The operator's port: who is answered, and how what cannot be is told."""

import grpc
import pytest

from splitsight.errors import UserError
from splitsight.wire.channels import Address
from splitsight.wire.credentials import ClientCredentials
from splitsight.wire.operator import OperatorClient, OperatorOptions, served
from splitsight.wire.v1 import operator_pb2 as pb

TOKEN = "0123456789abcdef"
CHANGE = "/splitsight.v1.Operator/Change"


class Handler:
    def __init__(self):
        self.speed = 1.0

    def status(self):
        return pb.OperatorStatus(role="edge", speed=self.speed)

    def change(self, wanted):
        if wanted.source:
            raise RuntimeError("broken\ninside")
        if wanted.speed > 20:
            raise UserError("the speed is too high: give less")
        self.speed = wanted.speed


@pytest.fixture
def port(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with served(Handler(), OperatorOptions(token_file=tmp_path / "token")) as found:
        yield found


def _refused(port, raw, token=TOKEN):
    with ClientCredentials(token=token).channel(Address("127.0.0.1", port)) as channel:
        metadata = ClientCredentials(token=token).metadata
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(CHANGE)(raw, timeout=10, metadata=metadata)
        return caught.value.code(), caught.value.details()


def test_what_is_asked_for_is_done_or_refused_in_one_sentence(port):
    client = OperatorClient(Address("127.0.0.1", port), ClientCredentials(token=TOKEN), timeout=10)
    assert client.change(speed=2.0).speed == 2.0 and client.status().role == "edge"
    with pytest.raises(UserError, match="the speed is too high"):
        client.change(speed=21.0)
    client.close()
    assert _refused(port, b"\xff") == (
        grpc.StatusCode.INVALID_ARGUMENT, "a message is not a splitsight.v1.ChangeRequest",
    )  # fmt: skip
    code, said = _refused(port, pb.ChangeRequest(source="x").SerializeToString())
    assert code is grpc.StatusCode.INTERNAL and said == "the change failed (RuntimeError: broken\\ninside)"


def test_a_stranger_is_refused(port):
    assert _refused(port, b"", token=None)[0] is grpc.StatusCode.UNAUTHENTICATED
    assert _refused(port, b"", token=TOKEN[::-1])[0] is grpc.StatusCode.UNAUTHENTICATED
