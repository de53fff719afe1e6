"""Transcribe recordings and watch, live and truthfully, how far they are.

The public names are loaded on first use: a worker process imports this package too, and
must not pay for the web framework that it never uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiotranscribe.client import Client
    from aiotranscribe.config import Config
    from aiotranscribe.errors import AiotranscribeError
    from aiotranscribe.exports import Shape, export
    from aiotranscribe.frame import Frame
    from aiotranscribe.job import Job, Options, Status, Step
    from aiotranscribe.service import Transcriber
    from aiotranscribe.transcript import Segment, Transcript, Word
    from aiotranscribe.web.app import create_app

__version__ = "0.1.0"

_HOME = {
    "AiotranscribeError": "errors",
    "Client": "client",
    "Config": "config",
    "Frame": "frame",
    "Job": "job",
    "Options": "job",
    "Segment": "transcript",
    "Shape": "exports",
    "Status": "job",
    "Step": "job",
    "Transcriber": "service",
    "Transcript": "transcript",
    "Word": "transcript",
    "create_app": "web.app",
    "export": "exports",
}

__all__ = [
    "AiotranscribeError",
    "Client",
    "Config",
    "Frame",
    "Job",
    "Options",
    "Segment",
    "Shape",
    "Status",
    "Step",
    "Transcriber",
    "Transcript",
    "Word",
    "create_app",
    "export",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
