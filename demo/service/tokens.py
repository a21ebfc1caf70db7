"""The token, the one key to page and API: in a header, or in a link that leaves it behind as a cookie."""

import base64
import hmac
import secrets
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from demo.service.problem import Problem
from runtime.errors import SajiError

LINK = "/"  # the one path that a token may stand behind
BLANKS = " \t"  # of HTTP; of a text in UTF-8 other bytes that look like some are a part
HERE = "./"  # the same without the token, also where a proxy has us below a path


class Token:
    """Compares what a request brings with the token, in a time that tells nothing of it. No token lets everybody in.

    Raises SajiError for a token that is no text.
    """

    def __init__(self, token: str) -> None:
        try:
            self._token = token.strip().encode()
        except UnicodeEncodeError:
            raise SajiError("the token is no text in UTF-8; give SAJI_TOKEN or --token another one") from None
        # A browser sends a cookie to every port of a host: what other services there see is not the token itself
        self._cookie = hmac.digest(self._token, b"saji cookie", "sha256").hex().encode()

    def check(self, scope: Scope, headers: Headers) -> Response | None:
        """None for who may come in; the answer to a link, which sets the cookie. Raises Problem 401 for all others."""
        if not self._token:
            return None
        if scope["method"] == "GET" and scope["path"] == LINK:
            query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
            if "token" in query:
                return self._welcome(scope, query["token"])
        right = secrets.compare_digest(_secret(headers.get("authorization", "")), self._token)
        for cookie in _cookies(headers, _name(scope)):
            right |= secrets.compare_digest(cookie, self._cookie)
        if not right:
            detail = "a token is needed; send it as Authorization: Bearer TOKEN, or as the password of any user"
            raise Problem(401, "unauthorized", detail, www_authenticate='Basic realm="saji", charset="UTF-8"')
        return None

    def _welcome(self, scope: Scope, token: str) -> Response:
        if not secrets.compare_digest(token.encode(), self._token):
            raise Problem(401, "old-link", "this link is of another start of the page; open the one that it shows now")
        # Not by 303: where a page of another site has the link, the browser would follow without a Strict cookie
        answer = Response(headers={"refresh": f"0; url={HERE}", "cache-control": "no-store"})
        secure = scope["scheme"] == "https"
        answer.set_cookie(_name(scope), self._cookie.decode(), httponly=True, samesite="strict", secure=secure)
        return answer


def _name(scope: Scope) -> str:
    """The cookie's name; two services of one host are told apart by their ports."""
    return f"saji_{(scope.get('server') or ('', ''))[1]}"


def _cookies(headers: Headers, name: str) -> list[bytes]:
    """The values under our name; what else is in the header is other programs' of this host, and of whatever form."""
    pairs = (pair.partition("=") for header in headers.getlist("cookie") for pair in header.split(";"))
    return [value.strip(BLANKS).encode("latin-1") for key, _, value in pairs if key.strip(BLANKS) == name]


def _secret(authorization: str) -> bytes:
    """The token of a Bearer header, or the password of a Basic one, which is what browsers ask their user for."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip(BLANKS).encode("latin-1")
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:  # no base64, or no ASCII even
        return b""
