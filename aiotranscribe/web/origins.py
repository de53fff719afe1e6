"""Which web pages may use the server.

Any page of any site can make a browser send requests here; it is merely kept from reading
the answers, and with a socket not even that (RFC 6455, section 10.2). But the browser says, in
``Origin``, whose page it is. Programs that are no browser send none, and are not meant here.
"""

from collections.abc import Awaitable, Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from yarl import URL

from aiotranscribe.errors import HostRefused, InvalidOption, OriginRefused
from aiotranscribe.web import proxies

#: Origins whose pages are welcome besides the server's own.
ALLOWED = web.AppKey("allowed", frozenset[str])

_PREFLIGHT = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, DELETE",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, Last-Event-ID, X-Keep-Job",
    hdrs.ACCESS_CONTROL_MAX_AGE: "600",
}


def parse(origins: Iterable[str]) -> frozenset[str]:
    """Return origins as browsers write them, or raise :class:`InvalidOption`."""
    allowed = frozenset(origin.rstrip("/").lower() for origin in origins)
    for origin in allowed:
        url = proxies.to_url(origin)
        if url.scheme not in {"http", "https"} or not url.host or str(url.origin()) != origin:
            raise InvalidOption(
                f"allow_origin: {origin!r} is no origin such as https://app.example"
            )
    return allowed


@web.middleware
def guard(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
    """Refuse pages of other sites; answer the preflight requests of those that are welcome.

    Not a coroutine, of which every watcher would keep one in memory.
    """
    if _is_rebound(request):
        raise HostRefused(f"this server is not {request.host}; use localhost")
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or _is_same(origin, request):
        return handler(request)
    if not _is_welcome(origin, request):
        raise OriginRefused(f"pages from {origin!r} may not use this server")
    if hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return _agree()
    return handler(request)


async def let_read(request: web.Request, response: web.StreamResponse) -> None:
    """Let a welcome page read the answer (signal ``on_response_prepare``)."""
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN, "")
    if _is_welcome(origin, request):
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Location, Retry-After, X-Job-Id"


async def _agree() -> web.Response:
    """Answer a preflight request."""
    return web.Response(status=204, headers=_PREFLIGHT)


def _is_same(origin: str, request: web.Request) -> bool:
    """Whether the page is of this very server.

    A proxy may have changed the scheme, without saying from what.
    """
    scheme, _, host = origin.lower().partition("://")
    return host == proxies.host(request).lower() and scheme == (proxies.scheme(request) or scheme)


def _is_welcome(origin: str, request: web.Request) -> bool:
    return origin.lower() in request.app[ALLOWED] or _is_neighbour(origin, request)


def _is_neighbour(origin: str, request: web.Request) -> bool:
    """Whether page and server are both on the reader's own machine.

    The origin ``null`` is not: a page opened from disk has it, but so has any site's page in a
    sandboxed frame, and nothing tells them apart.
    """
    ours = proxies.to_url(f"http://{proxies.host(request)}")
    theirs = proxies.to_url(origin)
    return theirs.scheme in {"http", "https"} and _is_loopback(ours) and _is_loopback(theirs)


def _is_rebound(request: web.Request) -> bool:
    """Whether a site has given its own name our loopback address, to pass for us (DNS rebinding).

    Its page then calls us by that name and at our port. A proxy in front of us may call us by
    any name too, but its visitors come to its port.
    """
    address = request.get_extra_info("sockname")
    if not isinstance(address, tuple):  # a Unix socket, which no browser can reach
        return False
    called = proxies.to_url(f"http://{request.host}")
    ours = URL.build(scheme="http", host=address[0], port=address[1])
    return _is_loopback(ours) and not _is_loopback(called) and called.port == ours.port


def _is_loopback(url: URL) -> bool:
    return proxies.is_loopback(url.host or "")
