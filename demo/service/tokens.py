"""The token, the one key to page and API: in a header, or in a link that leaves it behind as a cookie."""

import base64
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from demo.service.problem import Problem

LINK = "/"  # the one path that a token may stand behind
HERE = "./"  # the same without the token, also where a proxy has us below a path


class Token:
    """Compares what a request brings with the token, in a time that tells nothing of it. No token lets everybody in."""

    def __init__(self, token: str) -> None:
        self._token = token.strip().encode()
        # A browser sends a cookie to every port of a host: what other services there see is not the token itself
        self._cookie = hmac.digest(self._token, b"saji cookie", "sha256").hex()

    def check(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who may come in; the answer to a link, which sets the cookie. Raises Problem 401 for all others."""
        if not self._token:
            return None
        if scope["method"] == "GET" and scope["path"] == LINK:
            query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
            if "token" in query:
                return self._welcome(scope, query["token"])
        cookie = _cookies(headers).get(_name(scope), "")
        sent = _secret(headers.get("authorization", ""))
        if not (secrets.compare_digest(sent, self._token) | secrets.compare_digest(cookie, self._cookie)):
            detail = "a token is needed; send it as Authorization: Bearer TOKEN, or as the password of any user"
            raise Problem(401, "unauthorized", detail, www_authenticate='Basic realm="saji", charset="UTF-8"')
        return None

    def _welcome(self, scope: Scope, token: str) -> Response:
        if not secrets.compare_digest(token.encode(), self._token):
            raise Problem(401, "old-link", "this link is of another start of the page; open the one that it shows now")
        # Not by 303: where a page of another site has the link, the browser would follow without a Strict cookie
        answer = Response(headers={"refresh": f"0; url={HERE}", "cache-control": "no-store"})
        secure = scope["scheme"] == "https"
        answer.set_cookie(_name(scope), self._cookie, httponly=True, samesite="strict", secure=secure)
        return answer


def _name(scope: Scope) -> str:
    """The cookie's name; two services of one host are told apart by their ports."""
    return f"saji_{(scope.get('server') or ('', ''))[1]}"


def _cookies(headers: Headers) -> dict[str, str]:
    """The cookies of plain ASCII; of a header that cannot be read, none."""
    try:
        cookies = SimpleCookie("; ".join(headers.getlist("cookie")))
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in cookies.items() if morsel.value.isascii()}


def _secret(authorization: str) -> bytes:
    """The token of a Bearer header, or the password of a Basic one, which is what browsers ask their user for."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:  # no base64, or no ASCII even
        return b""
