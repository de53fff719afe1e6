"""Who may use the server: whoever sends one of its tokens, if it has any.

A token comes in ``Authorization: Bearer``. Browsers cannot send that with a WebSocket, but they
can offer subprotocols: ``aiotranscribe.v1`` and ``bearer.`` with the token in base64url. A token
is never part of an address, since addresses are logged, kept and passed on.
"""

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from aiotranscribe.config import Config
from aiotranscribe.errors import InvalidOption, InvalidRequest, Unauthorized
from aiotranscribe.web import proxies

#: The subprotocol that the server answers with.
PROTOCOL = "aiotranscribe.v1"
_BEARER = "bearer."
# RFC 6750, section 2.1; no colon, so that a name can stand before it.
_LINE = re.compile(r"(?:([^:\s]{1,64}):)?([A-Za-z0-9\-._~+/]+=*)")
# 16 characters of base64 are 96 bits, if they are random.
_SHORTEST = 16


class Tokens:
    """The tokens of a server and the names of those who have them; keeps only their digests.

    Raises:
        InvalidOption: one is no token, or too short; the message does not show it.
    """

    def __init__(self, config: Config) -> None:
        self._names: dict[bytes, str] = {}
        for place, text in _lines(config):
            found = _LINE.fullmatch(text)
            if not found:
                raise InvalidOption(
                    f"{place} is neither TOKEN nor NAME:TOKEN, of the characters A-Z a-z 0-9 -._~+/"
                )
            if len(found[2]) < _SHORTEST:
                raise InvalidOption(
                    f"{place} has {len(found[2])} characters, fewer than {_SHORTEST}; "
                    "'openssl rand -hex 32' prints a good one"
                )
            self._names[_digest(found[2].encode())] = found[1] or f"token {len(self._names) + 1}"

    def __bool__(self) -> bool:
        return bool(self._names)

    def name(self, token: bytes) -> str | None:
        """Return whose token this is; takes as long for a wrong one as for a right one."""
        given, found = _digest(token), None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found


TOKENS = web.AppKey("tokens", Tokens)
_OPEN: set[Handler] = set()


def open_to_all(handler: Handler) -> Handler:
    """Mark a handler that needs no token (a decorator)."""
    _OPEN.add(handler)
    return handler


@web.middleware
def ask(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """Refuse requests without a token of ours.

    Not a coroutine, of which every watcher would keep one in memory; nor does it note anything.
    """
    if request.app[TOKENS] and not (is_open(request) or is_known(request)):
        raise Unauthorized(
            "this server wants a token that it knows, in the header 'Authorization: Bearer TOKEN'"
        )
    return handler(request)


def is_open(request: web.Request) -> bool:
    """Whether everybody may make this request."""
    return request.match_info.handler in _OPEN


def client_of(request: web.Request) -> str:
    """Return whose request this is: the name of a token, or else an address."""
    return _name(request) or _network(proxies.address(request))


def is_known(request: web.Request) -> bool:
    """Whether the request came with a token of this server."""
    return _name(request) is not None


def protocols(request: web.Request) -> tuple[str, ...]:
    """Return the subprotocol to open a WebSocket with, if the peer offers any.

    Raises:
        InvalidRequest: it offers only others. aiohttp would log them, and a token is one.
    """
    offered = _offered(request)
    if offered and PROTOCOL not in offered:
        raise InvalidRequest(f"the subprotocol of this server is {PROTOCOL!r}; offer it, or none")
    return (PROTOCOL,) if offered else ()


def check_listening(config: Config) -> None:
    """Refuse to let everybody in by mistake.

    Raises:
        InvalidOption: others can reach the server, and no token keeps them out.
    """
    if config.allow_anonymous or proxies.is_loopback(config.host) or Tokens(config):
        return
    raise InvalidOption(
        f"host: at {config.host!r} others can reach this server, and there is no token to keep "
        "them out. Run: AIOTRANSCRIBE_TOKEN=$(openssl rand -hex 32) aiotranscribe serve --host "
        f"{config.host or '0.0.0.0'}; or, to let everybody read and erase all, --allow-anonymous"
    )


def _lines(config: Config) -> Iterable[tuple[str, str]]:
    """Every token as it is written, and where."""
    for number, text in enumerate(config.token, 1):
        yield f"token: number {number}", text
    if config.token_file:
        lines = config.token_file.read_text("utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            if (text := line.strip()) and not text.startswith("#"):
                yield f"token_file: line {number}", text


def _name(request: web.Request) -> str | None:
    """Whose token came with a request."""
    return request.app[TOKENS].name(_given(request))


def _given(request: web.Request) -> bytes:
    """The token that came with a request, or nothing."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip().encode(errors="surrogateescape")
    for offer in _offered(request):
        if offer.startswith(_BEARER):
            code = offer.removeprefix(_BEARER)
            try:
                return base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))
            except ValueError:
                break
    return b""


def _offered(request: web.Request) -> list[str]:
    headers = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return [offer.strip() for offer in ",".join(headers).split(",") if offer.strip()]


def _network(address: str) -> str:
    """Who an address stands for: with IPv6, whoever has one has the 2 ** 64 beside it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
