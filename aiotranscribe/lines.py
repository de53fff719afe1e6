"""The lines of the log: for people, or as JSON for programs."""

import json
import logging
from datetime import UTC, datetime

# What a record may carry beside its words: see what `service.py` gives as `extra`.
_FIELDS = ("job_id", "status", "code")


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


def _hide_request(record: logging.LogRecord) -> bool:
    """Make one calm line of what is no mistake of ours: a peer that has gone, or speaks no HTTP.

    aiohttp would show a piece of such a request, in which a token may be.
    """
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415 - slow to import
    from aiohttp.web import RequestPayloadError  # noqa: PLC0415

    theirs = (HttpProcessingError, RequestPayloadError, ConnectionError)
    if record.exc_info and isinstance(record.exc_info[1], theirs):
        record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
    return True
