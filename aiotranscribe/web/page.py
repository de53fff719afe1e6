"""The page at ``/``, and the files that it is made of."""

from pathlib import Path

from aiohttp import web

from aiotranscribe.exports import FORMATS
from aiotranscribe.web import auth
from aiotranscribe.web.describe import Description, describes

_STATIC = Path(__file__).parent / "static"
# Browsers run a module only if it says what it is, which is not left to the system's tables.
_MEDIA_TYPES = {
    "aiotranscribe.js": "text/javascript",
    "page.js": "text/javascript",
    "en.js": "text/javascript",
    "pt.js": "text/javascript",
    "page.css": "text/css",
    "sample.ogg": "audio/ogg",
}
# Nothing but the server's own files and data, no script or style within the page, and no text
# that becomes markup: what a recording is called or says cannot do anything.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


@auth.open_to_all
@describes(Description(answers={200: ["text/html"]}))
async def page(request: web.Request) -> web.Response:
    """``GET /``: the page, which is told the formats of transcripts."""
    html = (_STATIC / "index.html").read_text("utf-8").replace("{formats}", " ".join(FORMATS))
    headers = _HEADERS | {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer"}
    return web.Response(text=html, content_type="text/html", headers=headers)


@auth.open_to_all
@describes(Description(answers={200: ["text/javascript", "text/css", "audio/ogg"]}))
async def static(request: web.Request) -> web.FileResponse:
    """``GET /static/{name}``: the page's parts, and the module for pages of your own."""
    name = request.match_info["name"]
    if name not in _MEDIA_TYPES:
        raise web.HTTPNotFound
    return web.FileResponse(_STATIC / name, headers=_HEADERS | {"Content-Type": _MEDIA_TYPES[name]})
