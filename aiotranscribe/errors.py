"""Every error that a caller may have to handle.

::

    AiotranscribeError
    ├── InvalidRequest          the request makes no sense as a whole
    ├── InvalidOption           an option that does not exist or cannot be
    ├── UnsupportedBody         the body is of a type that holds no recording
    ├── JobNotFound
    ├── ModelNotFound           a model that this server does not have
    ├── QueueFull               there are as many jobs as there may be; come back later
    ├── JobCancelled            somebody stopped the job that an answer waits for
    ├── NotFinished             the transcript is asked for before the end
    ├── Closed                  the transcriber is going away
    ├── StorageUnavailable      the data folder cannot be written: full, or read-only
    ├── DataFolderInUse         another transcriber has the data folder
    ├── UnusableStore           the database is damaged, or not one of ours
    ├── ServerError             a server answered a client with an error
    └── WorkError               a piece of work failed; becomes the job's ``error``
        ├── Undecodable         the recording is not audio or video we can read
        ├── ModelNotAvailable   the model is not here and could not be had
        └── WorkerDied          the worker process ended in the middle of the work
"""

import math
from collections.abc import Mapping

import msgspec


class Problem(msgspec.Struct, frozen=True):
    """What went wrong, as it appears in a frame's ``error``."""

    #: Stable and machine-readable: the ``code`` of one of this module's classes.
    code: str
    #: A sentence for people, saying what to do where something can be done.
    message: str


class AiotranscribeError(Exception):
    """Base of all errors raised on purpose."""

    #: Stable name of the error, the same in HTTP answers, frames and exceptions.
    code = "internal_error"
    #: Status of the HTTP answer that reports it.
    http_status = 500
    #: Headers of that answer.
    http_headers: Mapping[str, str] = {}

    def problem(self) -> Problem:
        """Return the error as plain data."""
        return Problem(self.code, str(self))


class InvalidRequest(AiotranscribeError):
    """The request makes no sense as a whole: no file, an empty body, broken multipart."""

    code = "invalid_request"
    http_status = 400


class InvalidOption(AiotranscribeError):
    """An option does not exist, or its value is impossible."""

    code = "invalid_option"
    http_status = 422


class UnsupportedBody(AiotranscribeError):
    """The body's media type cannot hold a recording."""

    code = "unsupported_body"
    http_status = 415


class JobNotFound(AiotranscribeError):
    """There is no such job: never was, or it has been deleted."""

    code = "job_not_found"
    http_status = 404


class ModelNotFound(AiotranscribeError):
    """There is no such model here; the message has those that there are."""

    code = "model_not_found"
    http_status = 404


class QueueFull(AiotranscribeError):
    """As many jobs wait or are at work as there may be."""

    code = "queue_full"
    http_status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.http_headers = {"Retry-After": str(math.ceil(retry_after_s))}


class JobCancelled(AiotranscribeError):
    """Somebody stopped the job whose text an answer waits for."""

    code = "job_cancelled"
    http_status = 409


class NotFinished(AiotranscribeError):
    """The whole transcript is asked for while the job is still at work."""

    code = "not_finished"
    http_status = 409


class Closed(AiotranscribeError):
    """The transcriber is shutting down and takes no more work."""

    code = "closed"
    http_status = 503


class StorageUnavailable(AiotranscribeError):
    """The data folder cannot be written: the disk is full, or read-only, or gone."""

    code = "storage_unavailable"
    http_status = 507


class DataFolderInUse(AiotranscribeError):
    """Another transcriber works with the data folder."""

    code = "data_folder_in_use"


class UnusableStore(AiotranscribeError):
    """The database is damaged, of a newer version, or not ours. It is left as it is."""

    code = "unusable_store"


class ServerError(AiotranscribeError):
    """A server answered with an error; ``code`` and ``http_status`` are the server's."""

    def __init__(self, message: str, *, code: str, http_status: int) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = http_status


class WorkError(AiotranscribeError):
    """A piece of work failed. The job fails with this error and keeps its text so far."""

    code = "work_failed"


class Undecodable(WorkError):
    """The recording is not audio or video that FFmpeg can read."""

    code = "undecodable"
    http_status = 415


class ModelNotAvailable(WorkError):
    """The model is not on this machine and could not be fetched."""

    code = "model_not_available"
    http_status = 503


class WorkerDied(WorkError):
    """The worker process ended in the middle of the work."""

    code = "worker_died"
