"""What a browser may ask for: the latest, once; and who may ask."""

import time

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from scenarios.web.guard import COOKIE, Guard
from scenarios.web.server import routes
from scenarios.web.state import Board, Picture

TOKEN = "0123456789abcdef"


@pytest.fixture
def board():
    return Board()


def client(board, token=None, *, local=True, base="http://127.0.0.1:8000"):
    app = FastAPI()
    routes(app, board)

    @app.websocket("/socket")
    async def socket(ws: WebSocket):
        await ws.accept()
        await ws.send_text("hello")

    return TestClient(Guard(app, token, local=local, secure=False), base_url=base, follow_redirects=False)


def test_only_the_latest_and_only_when_it_is_new(board):
    asked = client(board)
    assert asked.get("/live/a.jpg").status_code == 404
    board.show(a=Picture(b"old", "one"))
    board.show(a=Picture(b"new", "two", "more"))
    said = asked.get("/live/changed?after=-1").json()
    assert said["version"] == 2 and said["pictures"]["a"]["title"] == "two"
    answer = asked.get("/live/a.jpg")
    assert (answer.content, answer.headers["content-type"]) == (b"new", "image/jpeg")
    assert answer.headers["etag"] == f'"{said["pictures"]["a"]["tag"]}"'
    again = asked.get("/live/a.jpg", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_who_has_seen_everything_waits_a_moment(board):
    begun = time.monotonic()
    assert client(board).get("/live/changed?after=0").json() == {"version": 0, "pictures": {}}
    assert time.monotonic() - begun > 0.5


def test_the_status_is_plain_json(board):
    board.status = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": "x"}}
    assert client(board).get("/live/status.json").json() == {"a": None, "b": [1.5, None], "c": {"d": "x"}}


@pytest.mark.parametrize("path", ["/live/status.json", "/live/changed", "/static/live.js"])
def test_another_site_cannot_use_the_visitors_browser(board, path):
    asked = client(board)
    assert asked.get(path).status_code == 200
    for headers in (
        {"Host": "evil.example"},  # a name that was pointed at this machine
        {"Host": "evil.example:8000"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
    ):
        assert asked.get(path, headers=headers).status_code == 403, headers
    assert asked.get(path, headers={"Host": "localhost:8000", "Origin": "http://localhost:8000"}).status_code == 200


def test_nor_by_a_web_socket(board):
    asked = client(board)
    with asked.websocket_connect("ws://127.0.0.1:8000/socket") as socket:
        assert socket.receive_text() == "hello"
    with (
        pytest.raises(WebSocketDisconnect),
        asked.websocket_connect("ws://127.0.0.1:8000/socket", headers={"Origin": "http://evil.example"}),
    ):
        pass


@pytest.mark.parametrize("given", ["", "wrong", TOKEN + "x", TOKEN[:-1], "é"])
def test_without_the_token_nothing_answers(board, given):
    asked = client(board, TOKEN, local=False)
    for path in ("/live/status.json", "/live/changed", "/static/live.js", "/"):
        assert asked.get(path).status_code == 401
        assert asked.get(path, params={"token": given}).status_code == 401
        assert asked.get(path, headers={"Authorization": f"Bearer {given}".encode()}).status_code == 401
        assert asked.get(path, headers={"Cookie": f"{COOKIE}={given}".encode()}).status_code == 401
    with pytest.raises(WebSocketDisconnect), asked.websocket_connect(f"ws://127.0.0.1:8000/socket?token={TOKEN}"):
        pass


def test_the_token_is_taken_once_and_leaves_the_address(board):
    asked = client(board, TOKEN, local=False)
    answer = asked.get("/live/changed", params={"token": TOKEN, "after": -1})
    assert (answer.status_code, answer.headers["location"]) == (303, "/live/changed?after=-1")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert asked.get("/live/changed").status_code == 200
    with asked.websocket_connect("ws://127.0.0.1:8000/socket") as socket:
        assert socket.receive_text() == "hello"
    assert client(board, TOKEN).get("/live/changed", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
