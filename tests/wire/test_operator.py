"""The operator's port: a token or nothing, one sentence for what cannot be."""

import grpc
import pytest

from splitsight.errors import UserError
from splitsight.wire.channels import Address
from splitsight.wire.credentials import ClientCredentials
from splitsight.wire.operator import OperatorClient, OperatorOptions, only, served
from splitsight.wire.v1 import operator_pb2 as pb
from splitsight.wire.v1 import operator_pb2_grpc as rpc

TOKEN = "0123456789abcdef"


class Edge:
    def __init__(self):
        self.speed = 1.0

    def status(self):
        return pb.OperatorStatus(role="edge", speed=self.speed)

    def change(self, wanted):
        only(wanted, {"speed"}, "edge")
        self.speed = wanted.speed


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


def test_status_and_changes(token_file, capfd):
    edge = Edge()
    with served(edge, OperatorOptions(token_file=token_file)) as port:
        assert capfd.readouterr().out == f'{{"event": "operator", "port": {port}}}\n'
        client = OperatorClient(Address("127.0.0.1", port), ClientCredentials(TOKEN))
        assert client.status().speed == 1
        assert client.change(speed=2.0).speed == 2 and edge.speed == 2
        with pytest.raises(UserError, match="an edge has no prompt to change: it takes speed"):
            client.change(speed=3.0, prompt="a cat")
        with pytest.raises(UserError, match=r"between 0\.05 and 20"):
            client.change(speed=0.0)
        assert edge.speed == 2
    assert client.status() is None
    with pytest.raises(UserError, match="does not answer"):
        client.change(speed=1.0)
    client.close()


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", TOKEN[:-1]])
def test_strangers_see_and_change_nothing(token_file, token):
    edge = Edge()
    with served(edge, OperatorOptions(token_file=token_file)) as port:
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = rpc.OperatorStub(channel)
            for call, message in ((stub.Status, pb.StatusRequest()), (stub.Change, pb.ChangeRequest(speed=9))):
                with pytest.raises(grpc.RpcError) as refused:
                    call(message, metadata=metadata, timeout=10)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
                assert "asks for a token" in refused.value.details()
    assert edge.speed == 1


def test_no_port_without_token_nor_an_open_one_for_others(token_file):
    with pytest.raises(UserError, match="needs a token"):
        OperatorOptions()
    with pytest.raises(UserError, match="would let anyone steer this process"):
        OperatorOptions(host="0.0.0.0", token_file=token_file)
    with pytest.raises(UserError, match="not a port"):
        OperatorOptions(port=70000, token_file=token_file)
    with served(Edge(), None) as port:
        assert port is None


def test_overlong_names():
    with pytest.raises(UserError, match="more than 4096 characters"):
        only(pb.ChangeRequest(prompt="x" * 5000), {"prompt"}, "adversary")
