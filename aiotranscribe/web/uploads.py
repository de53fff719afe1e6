"""Recordings as they come in: a form with a file, or the bare bytes. Streamed, never held."""

from collections.abc import Callable

from aiohttp import BodyPartReader, ClientPayloadError, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from aiotranscribe.errors import InvalidOption, InvalidRequest, UnsupportedBody
from aiotranscribe.job import Options
from aiotranscribe.spool import Arrival

_PIECE_BYTES = 1 << 20
# Prompts are limited to 2,000 characters of at most 4 bytes.
_LONGEST_FIELD_BYTES = 8 << 10
_MOST_FIELDS = 100
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
            InvalidOption: it is given twice.
        """
        if name in self.fields:
            raise InvalidOption(f"{name}: given twice")
        self.fields[name] = value

    def options(self) -> Options:
        """Return the options of the job, or raise :class:`InvalidOption`."""
        return Options.parse(self.fields)


async def receive(
    request: web.Request, arrival: Arrival, upload: Upload, check: Callable[[Options], object]
) -> None:
    """Stream the request's recording into ``arrival``, and what comes with it into ``upload``.

    Options may stand in the query, and in a form before or after the file. One that is known
    to be wrong before the recording is read saves reading it.

    Args:
        request: The request.
        arrival: Where to write the recording.
        upload: Takes everything else.
        check: Raises :class:`InvalidOption` for options that this server cannot serve.

    Raises:
        InvalidRequest: the form has no file, or is no form, or ends too early.
        InvalidOption: an option is unknown, impossible or given twice.
        UnsupportedBody: the body cannot be a recording.
    """
    for name, value in request.query.items():
        if name == FILENAME:
            upload.name = value
        elif name != LANGUAGE:
            upload.add(name, value)
    check(upload.options())
    if request.content_type == "application/json":
        raise UnsupportedBody("send the recording itself, or a multipart form with a file field")
    try:
        if request.content_type.startswith("multipart/"):
            await _read_form(request, upload, arrival, check)
        else:
            await _copy(request.content, arrival)
    except (RequestPayloadError, ClientPayloadError, ConnectionError, EOFError) as error:
        raise InvalidRequest(f"the upload was cut off ({error})") from error


async def _read_form(
    request: web.Request, upload: Upload, arrival: Arrival, check: Callable[[Options], object]
) -> None:
    has_file, fields = False, 0
    try:
        form = await request.multipart()
        while part := await form.next():
            if not isinstance(part, BodyPartReader):
                raise InvalidRequest("a form within a form is not understood")
            if part.name != FILE and part.filename:
                raise InvalidRequest(f"the file belongs in the field 'file', not {part.name!r}")
            if part.name != FILE:
                fields += 1
                if fields > _MOST_FIELDS:
                    raise InvalidRequest(f"the form has more than {_MOST_FIELDS} fields")
                upload.add(part.name or "", await _text(part))
                continue
            if has_file:
                raise InvalidRequest("there is more than one file; send one request for each")
            check(upload.options())
            has_file, upload.name = True, part.filename or upload.name
            await _copy(part, arrival)
    except _MALFORMED as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}") from error
    if not has_file:
        raise InvalidRequest("the form has no field named 'file' with the recording")


async def _copy(source: BodyPartReader | StreamReader, arrival: Arrival) -> None:
    """Stream a body, or a part of one, to the spool."""
    while piece := await _read(source):
        await arrival.write(piece)


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
