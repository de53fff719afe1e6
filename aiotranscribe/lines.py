"""The lines of the log: for people, or as JSON for programs."""

import asyncio
import errno
import json
import logging
import math
import warnings
from datetime import UTC, datetime
from typing import Any

# What a record may carry beside its words: see what `conductor.py` gives as `extra`.
_FIELDS = ("job_id", "status", "code")
_SILENCE_S = 10.0


class JsonLines(logging.Formatter):
    """Formats each record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in _FIELDS if name in vars(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(style: str) -> None:
    """Write the log to standard error, in the style ``text`` or ``json``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if style == "json":
        logging.getLogger().handlers[0].setFormatter(JsonLines())
    logging.getLogger("aiohttp.server").addFilter(_hide_request)
    logging.captureWarnings(capture=True)
    # These would show what a client has written, control characters and all.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="aiohttp.multipart")


def _hide_request(record: logging.LogRecord) -> bool:
    """Make one calm line of what is no mistake of ours: a peer that has gone, or speaks no HTTP.

    aiohttp would show a piece of such a request, in which a token may be.
    """
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415 - slow to import
    from aiohttp.web import RequestPayloadError  # noqa: PLC0415

    theirs = (HttpProcessingError, RequestPayloadError, ConnectionError, TimeoutError)
    if record.exc_info and isinstance(record.exc_info[1], theirs):
        record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
    return True


class Calm:
    """Handles what goes wrong in the loop: as asyncio does, but once in a while for a full table.

    When no descriptor is left for a connection, asyncio (Python 3.11) says so for every one that
    could be waiting, some thousand times a second.
    """

    def __init__(self) -> None:
        self._said_at = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log ``context``, or not."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            if loop.time() - self._said_at < _SILENCE_S:
                return
            self._said_at = loop.time()
        loop.default_exception_handler(context)
