"""Recordings as they come in: a form with a file, or the bare bytes. Streamed, never held."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from aiohttp import (
    BodyPartReader,
    ClientPayloadError,
    HttpVersion11,
    MultipartReader,
    StreamReader,
    hdrs,
    web,
)
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from aiotranscribe.config import Config
from aiotranscribe.errors import (
    InvalidOption,
    InvalidRequest,
    UnsupportedBody,
    UploadTooLarge,
    UploadTooSlow,
)
from aiotranscribe.job import Options
from aiotranscribe.spool import Arrival

_PIECE_BYTES = 1 << 20
# Prompts are limited to 2,000 characters of at most 4 bytes.
_LONGEST_FIELD_BYTES = 8 << 10
# There are fewer options than that.
_MOST_FIELDS = 100
# Of a form, besides what is in its parts: each field has four or five.
_MOST_LINES = 2000
# Each second must bring so much, on average; the slowest of telephone lines does.
_SLOWEST_BYTES_PER_S = 512
# aiohttp's ways to say that a form is malformed.
_MALFORMED = (ValueError, AssertionError, LookupError, HttpProcessingError)

#: The form field, and the query's name, that are not options.
FILE, FILENAME, LANGUAGE = "file", "filename", "lang"


class Upload:
    """What comes with a recording."""

    def __init__(self) -> None:
        #: The recording's file name.
        self.name: str | None = None
        self.fields: dict[str, str] = {}

    def add(self, name: str, value: str) -> None:
        """Take a field of the form or the query.

        Raises:
            InvalidOption: it is given twice, or nothing that we do.
        """
        if name == "url":
            raise InvalidOption("url: this server fetches nothing; send the recording itself")
        if name in self.fields:
            raise InvalidOption(f"{name}: given twice")
        self.fields[name] = value

    def options(self) -> Options:
        """Return the options of the job, or raise :class:`InvalidOption`."""
        return Options.parse(self.fields)


async def receive(
    request: web.Request,
    arrival: Arrival,
    upload: Upload,
    check: Callable[[Options], object],
    config: Config,
) -> None:
    """Stream the request's recording into ``arrival``, and what comes with it into ``upload``.

    Options may stand in the query, and in a form before or after the file. One that is known
    to be wrong before the recording is read saves reading it.

    Args:
        request: The request.
        arrival: Where to write the recording.
        upload: Takes everything else.
        check: Raises :class:`InvalidOption` for options that this server cannot serve.
        config: The limits.

    Raises:
        InvalidRequest: the form has no file, or is no form, or ends too early.
        InvalidOption: an option is unknown, impossible or given twice.
        UnsupportedBody: the body cannot be a recording.
        UploadTooLarge: there is more of it than this server takes.
        UploadTooSlow: it hardly comes.
    """
    for name, value in request.query.items():
        if name == FILENAME:
            upload.name = value
        elif name != LANGUAGE:
            upload.add(name, value)
    check(upload.options())
    if request.content_type == "application/json":
        raise UnsupportedBody("send the recording itself, or a multipart form with a file field")
    if hdrs.CONTENT_ENCODING in request.headers:  # a few bytes could become any number
        raise UnsupportedBody("send the recording as it is, without Content-Encoding")
    is_form = request.content_type.startswith("multipart/")
    most_bytes = config.max_upload_bytes()
    if not is_form:  # a form is larger than what is in it
        _measure(request.content_length or 0, most_bytes)
    try:
        await _invite(request)
        async with _pace(request.content, config.idle_s):
            if is_form:
                await _read_form(request, upload, arrival, check, most_bytes)
            else:
                await _copy(request.content, arrival, most_bytes)
    except TimeoutError as error:
        raise UploadTooSlow(
            f"less than {_SLOWEST_BYTES_PER_S * config.idle_s:.0f} bytes of the upload came within "
            f"{config.idle_s:g} s; see --idle-s"
        ) from error
    except (RequestPayloadError, ClientPayloadError, ConnectionError, EOFError) as error:
        raise InvalidRequest(f"the upload was cut off ({error})") from error


async def expect(request: web.Request) -> None:
    """Invite nobody yet to send a body: an ``expect_handler`` for every route.

    Whoever is refused need not have sent a recording (RFC 9110, section 10.1.1). And of what is
    no ``100-continue`` aiohttp 3.14 makes an answer that it cannot always encode.
    """


async def _invite(request: web.Request) -> None:
    """Have the recording sent by somebody who waits for that."""
    is_waiting = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    if is_waiting and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # none of this is the answer's


@contextlib.asynccontextmanager
async def _pace(body: StreamReader, idle_s: float) -> AsyncIterator[None]:
    """Raise :class:`TimeoutError` when a body comes too slowly, drop by drop too."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look(before_bytes: int) -> None:
        nonlocal timer
        if not body.is_eof() and body.total_bytes < before_bytes + _SLOWEST_BYTES_PER_S * idle_s:
            timeout.reschedule(loop.time())
        else:
            timer = loop.call_later(idle_s, look, body.total_bytes)

    async with asyncio.timeout(None) as timeout:
        timer = loop.call_later(idle_s, look, 0)
        try:
            yield
        finally:
            timer.cancel()


async def _read_form(
    request: web.Request,
    upload: Upload,
    arrival: Arrival,
    check: Callable[[Options], object],
    most_bytes: int,
) -> None:
    has_file, fields = False, 0
    try:
        form = MultipartReader(request.headers, cast(StreamReader, _Lines(request.content)))
        while part := await form.next():
            if not isinstance(part, BodyPartReader):
                raise InvalidRequest("a form within a form is not understood")
            if part.name != FILE and part.filename:
                raise InvalidRequest(f"the file belongs in the field 'file', not {part.name!r}")
            if part.name != FILE:
                fields += 1
                if fields > _MOST_FIELDS:
                    raise InvalidRequest(f"there are over {_MOST_FIELDS} fields")
                upload.add(part.name or "", await _text(part))
                continue
            if has_file:
                raise InvalidRequest("there is more than one file; send one request for each")
            check(upload.options())
            has_file, upload.name = True, part.filename or upload.name
            await _copy(part, arrival, most_bytes)
    except _MALFORMED as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}") from error
    if not has_file:
        raise InvalidRequest("the form has no field named 'file' with the recording")


class _Lines:
    """A form's body, of which only so many lines are read: recordings are read in pieces.

    aiohttp looks for a part's beginning line by line, and lets nothing else run meanwhile.
    """

    def __init__(self, body: StreamReader) -> None:
        self._body = body
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    async def readline(self, **how: Any) -> bytes:
        self._count += 1
        if self._count > _MOST_LINES:
            raise InvalidRequest(f"the form has over {_MOST_LINES} lines besides what is in it")
        return await self._body.readline(**how)


async def _copy(source: BodyPartReader | StreamReader, arrival: Arrival, most_bytes: int) -> None:
    """Stream a body, or a part of one, to the spool."""
    while piece := await _read(source):
        _measure(arrival.size_bytes + len(piece), most_bytes)
        await arrival.write(piece)


def _measure(size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise UploadTooLarge(
            f"the recording has at least {size_bytes} bytes; the limit is {most_bytes} "
            f"({most_bytes / (1 << 20):.0f} MiB), see --max-upload"
        )


async def _read(source: BodyPartReader | StreamReader) -> bytes:
    if isinstance(source, BodyPartReader):
        return await source.read_chunk(_PIECE_BYTES)
    return await source.readany()


async def _text(part: BodyPartReader) -> str:
    value = bytearray()
    while piece := await part.read_chunk():
        value += piece
        if len(value) > _LONGEST_FIELD_BYTES:
            raise InvalidOption(f"{part.name}: over {_LONGEST_FIELD_BYTES} bytes")
    return value.decode()
