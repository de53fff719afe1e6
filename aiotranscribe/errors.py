"""Every error that a caller may have to handle.

::

    AiotranscribeError
    ├── InvalidRequest          the request makes no sense as a whole
    ├── InvalidOption           an option that does not exist or cannot be
    ├── UnsupportedBody         the body is of a type that holds no recording
    ├── UploadTooLarge
    ├── UploadTooSlow
    ├── Unauthorized            a token is needed, and this is none of ours
    ├── OriginRefused           a page of another site asks
    ├── HostRefused             the server is called by a name that is not its own
    ├── TooMany                 a client has as many jobs or sockets as it may
    ├── ServerFull              the server has no descriptor for another connection
    ├── JobNotFound
    ├── ModelNotFound           a model that this server does not have
    ├── QueueFull               there are as many jobs as there may be; come back later
    ├── JobCancelled            somebody stopped the job that an answer waits for
    ├── NotFinished             the transcript is asked for before the end
    ├── RecordingLost           the recording of a job was not kept
    ├── Closed                  the transcriber is going away
    ├── StorageUnavailable      the data folder cannot be written: full, or read-only
    ├── DataFolderInUse         another transcriber has the data folder
    ├── UnusableStore           the database is damaged, or not one of ours
    ├── ServerError             a server answered a client with an error
    └── WorkError               a piece of work failed; becomes the job's ``error``
        ├── Undecodable         the recording is not audio or video we can read
        ├── TooLong             the recording is longer than this server transcribes
        ├── ModelNotAvailable   the model is not here and could not be had
        └── WorkerDied          the worker process ended in the middle of the work
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

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
    http_headers: Mapping[str, str] = MappingProxyType({})

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


class UploadTooLarge(AiotranscribeError):
    """The recording is larger than the server takes."""

    code = "upload_too_large"
    http_status = 413


class UploadTooSlow(AiotranscribeError):
    """The body comes so slowly that it may as well have stopped."""

    code = "upload_too_slow"
    http_status = 408


class Unauthorized(AiotranscribeError):
    """The request has no token, or none that this server knows."""

    code = "unauthorized"
    http_status = 401
    http_headers = MappingProxyType({"WWW-Authenticate": 'Bearer realm="aiotranscribe"'})


class OriginRefused(AiotranscribeError):
    """The request comes from a page that may not use this server."""

    code = "origin_refused"
    http_status = 403


class HostRefused(AiotranscribeError):
    """The server was called by a name that is not its own."""

    code = "host_refused"
    http_status = 403


class TooMany(AiotranscribeError):
    """A client has as many jobs or sockets as it may have at once."""

    code = "too_many"
    http_status = 429
    http_headers = MappingProxyType({"Retry-After": "10"})


class ServerFull(AiotranscribeError):
    """The process may open hardly any more files, of which a connection is one."""

    code = "server_full"
    http_status = 503
    http_headers = MappingProxyType({"Retry-After": "10"})


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


class RecordingLost(AiotranscribeError):
    """The recording of a job is not on the disk any more."""

    code = "recording_lost"
    http_status = 410


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


class TooLong(WorkError):
    """The recording is longer than this server transcribes."""

    code = "recording_too_long"
    http_status = 413


class ModelNotAvailable(WorkError):
    """The model is not on this machine and could not be fetched."""

    code = "model_not_available"
    http_status = 503


class WorkerDied(WorkError):
    """The worker process ended in the middle of the work."""

    code = "worker_died"
