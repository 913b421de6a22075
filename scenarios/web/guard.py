"""Who may open the page.

On loopback without a token: browsers of this machine, but no other site in them. A page elsewhere could else have the
visitor's browser call this server (by a name that it points at 127.0.0.1, or by a WebSocket, which no same-origin
policy holds back), so the ``Host`` must be a name of loopback and an ``Origin``, where there is one, the page's own.

With a token: whoever has it, as ``Authorization: Bearer``, or once as ``?token=`` in the address, which is answered by
a cookie (HttpOnly, SameSite=Strict, Secure over TLS) and the address without it. Compared in constant time.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from splitsight.wire.channels import is_loopback

__all__ = ["COOKIE", "Guard"]

COOKIE = "splitsight"
_REFUSED = "the page asks for a token: open it with ?token=TOKEN, or send 'Authorization: Bearer TOKEN'\n"
_ELSEWHERE = "this page answers its own address only\n"


class Guard:
    """ASGI middleware; WebSockets are guarded like everything else.

    Args:
        app: what is guarded.
        token: that callers must present; ``None`` asks for none.
        local: whether the server listens on loopback alone.
        secure: whether it speaks TLS.
    """

    def __init__(self, app: ASGIApp, token: str | None, *, local: bool, secure: bool) -> None:
        self._app, self._token, self._local, self._secure = app, token, local, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._own(headers):
            await self._refuse(scope, receive, send, 403, _ELSEWHERE)
        elif self._token is None or self._known(headers):
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and self._same(self._asked(scope)):
            await self._admit(scope, receive, send)
        else:
            await self._refuse(scope, receive, send, 401, _REFUSED)

    def _own(self, headers: Headers) -> bool:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._local and not is_loopback(name):
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc == host

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    def _known(self, headers: Headers) -> bool:
        cookie: SimpleCookie = SimpleCookie()
        try:
            cookie.load(headers.get("cookie", ""))
        except CookieError:
            cookie.clear()
        kept = cookie[COOKIE].value if COOKIE in cookie else ""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        return self._same(kept) or (scheme.lower() == "bearer" and self._same(bearer))

    @staticmethod
    def _asked(scope: Scope) -> str:
        return parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = parse_qs(scope["query_string"].decode("latin-1"))
        left.pop("token", None)
        query = urlencode(left, doseq=True)
        response = RedirectResponse(scope["path"] + (f"?{query}" if query else ""), status_code=303)
        response.set_cookie(COOKIE, self._token or "", httponly=True, samesite="strict", secure=self._secure, path="/")
        await response(scope, receive, send)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, sentence: str) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": sentence.strip()[:120]})
            return
        await PlainTextResponse(sentence, status_code=status)(scope, receive, send)
