"""What a proxy in front of the server says of its visitors, if that proxy is trusted.

Anybody can send ``X-Forwarded-*``: from everybody else they mean nothing.
"""

import ipaddress
from collections.abc import Iterable

from aiohttp import hdrs, web
from yarl import URL

from aiotranscribe.errors import InvalidOption

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What proxies add; the least of them leave the name by which the visitor called.
_FORWARDED = (
    *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"),
    *(hdrs.FORWARDED, hdrs.VIA),
)
TRUSTED = web.AppKey("trusted", list[Network])


def parse(proxies: Iterable[str]) -> list[Network]:
    """Return addresses and networks, or raise :class:`InvalidOption`."""
    try:
        return [ipaddress.ip_network(text, strict=False) for text in proxies]
    except ValueError as error:
        raise InvalidOption(f"trusted_proxy: {error}") from error


def address(request: web.Request) -> str:
    """Return the visitor's address: the last one that no trusted proxy has."""
    found = request.remote or ""
    for before in reversed(_list(request, "X-Forwarded-For")):
        if not _is_trusted(request, found):
            break
        found = before
    return found


def host(request: web.Request) -> str:
    """Return the name and port by which the visitor calls the server."""
    return _told(request, "X-Forwarded-Host") or request.host


def scheme(request: web.Request) -> str | None:
    """Return ``http`` or ``https``, as the visitor has it, where that is known."""
    return _told(request, "X-Forwarded-Proto")


def is_local(request: web.Request) -> bool:
    """Whether the request was made on this machine, and not handed on by a proxy on it."""
    called = to_url(f"http://{request.host}").host or ""
    is_forwarded = any(name in request.headers for name in _FORWARDED)
    return is_loopback(request.remote or "") and is_loopback(called) and not is_forwarded


def is_loopback(name: str) -> bool:
    """Whether a name or address is that of the very machine that uses it."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761, section 6.3


def to_url(text: str) -> URL:
    """Return what a stranger says as a URL, an empty one if it is none."""
    try:
        return URL(text)
    except ValueError:
        return URL()


def _told(request: web.Request, header: str) -> str | None:
    """The word of the proxy nearest to us, which stands last."""
    words = _list(request, header) if _is_trusted(request, request.remote or "") else []
    return words[-1] if words else None


def _list(request: web.Request, header: str) -> list[str]:
    words = ",".join(request.headers.getall(header, [])).split(",")
    return [word.strip() for word in words if word.strip()]


def _is_trusted(request: web.Request, peer: str) -> bool:
    try:
        ip = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return any(ip in network for network in request.app[TRUSTED])
