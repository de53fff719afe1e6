"""Recordings that are none, or mean harm: they cost their own job, and nothing else."""

import asyncio
import http.server
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest

from aiotranscribe import Config, Transcriber
from aiotranscribe.engine import audio, bounds
from aiotranscribe.engine.messages import Died, Done, Ended, Message, Transcribe, Work
from aiotranscribe.engine.pool import Slot
from aiotranscribe.engine.spans import SAMPLE_RATE, Span
from aiotranscribe.engine.whisper import Settings
from aiotranscribe.errors import Undecodable
from tests import scripted
from tests.conftest import ROOT
from tests.scripted import Script
from tests.waiting import LONG_S, to_end, until

MakeWav = Callable[[float], Path]

#: What names other files instead of holding sound; ``{}`` stands for the name.
PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "hls-key": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n'
    "#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="audio/wav">'
    '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    "smil": '<smil><body><audio src="{}"/></body></smil>',
    "vobsub": "# VobSub index file, v7\nid: en, index: 0\n# {}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=audio 5004 RTP/AVP 0\n",
}


class _Site(http.server.ThreadingHTTPServer):
    """A web server on this machine that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Visit)


class _Visit(http.server.BaseHTTPRequestHandler):
    server: _Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[_Site]:
    """A site that nobody should visit."""
    with _Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        site.shutdown()


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_recording_cannot_open_anything_else(
    kind: str, tmp_path: Path, make_wav: MakeWav, site: _Site
) -> None:
    """An upload could read other people's recordings, or call services of the server's network."""
    (tmp_path / "other").write_bytes(make_wav(2.0).read_bytes())
    there = f"http://127.0.0.1:{site.server_port}/other"
    for name in ("other", "other.wav", str(tmp_path / "other"), f"file:{tmp_path}/other", there):
        path = tmp_path / "recording.wav"
        path.write_text(PLAYLISTS[kind].format(name))
        with pytest.raises(Undecodable), audio.Recording(path) as recording:
            list(recording.blocks())
    assert not site.asked


def test_ffmpeg_would_open_another_file_if_it_could(tmp_path: Path, make_wav: MakeWav) -> None:
    """The test above could not fail."""
    (tmp_path / "other").write_bytes(make_wav(2.0).read_bytes())
    path = tmp_path / "recording.wav"
    path.write_text(PLAYLISTS["concat"].format("other"))
    with av.open(str(path)) as container:
        assert next(container.decode(audio=0)).samples


async def test_a_playlist_is_a_job_that_fails(tmp_path: Path, make_wav: MakeWav) -> None:
    """A job would read the decoded sound of its folder, or of another's."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path / "data")
    async with Transcriber(config, loader=scripted.load) as transcriber:
        path = tmp_path / "list.wav"
        path.write_text(PLAYLISTS["concat"].format("pcm"))
        job = await transcriber.submit(path)
        *_, last = await to_end(transcriber.watch(job.id))
        assert last.error
        assert last.error.code == "undecodable"
        job = await transcriber.submit(make_wav(2.0), options=Script().options())
        assert (await to_end(transcriber.watch(job.id)))[-1].status == "completed"


async def test_a_recording_that_never_ends_is_given_up(tmp_path: Path, make_wav: MakeWav) -> None:
    """A small file could fill the disk with silence, and keep the workers for days."""
    config = Config(model=("scripted",), workers=1, data_dir=tmp_path, max_duration="1s")
    async with Transcriber(config, loader=scripted.load) as transcriber:
        job = await transcriber.submit(make_wav(20.0), options=Script().options())
        *_, last = await to_end(transcriber.watch(job.id))
        assert last.error
        assert last.error.code == "recording_too_long"
        assert "--max-duration" in last.error.message
        await until(lambda: not (tmp_path / "spool" / job.id / "pcm").exists())


def bounded(code: str) -> subprocess.CompletedProcess[str]:
    """Run some code in a process of its own, bounded as decoding is."""
    program = f"from aiotranscribe.engine import bounds\nwith bounds.bounded():\n    {code}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this limit means something else")
def test_decoding_cannot_take_all_memory() -> None:
    """One file that lies would have the system kill the server, or something else."""
    assert "MemoryError" in bounded(f"bytearray({2 * bounds._MEMORY_BYTES})").stderr
    assert not bounded(f"bytearray({bounds._MEMORY_BYTES // 2})").returncode


def test_decoding_cannot_turn_in_circles() -> None:
    """One file could keep a worker busy for ever."""
    done = bounded("bounds._BLOCK_CPU_S = 0; bounds.begin_block()\n    while True: pass")
    assert done.returncode == -signal.SIGXCPU


async def test_a_worker_that_says_nothing_is_replaced() -> None:
    """A worker that hangs would keep its job, and its place, for ever."""
    heard: asyncio.Queue[Message] = asyncio.Queue()

    def note(_: Slot, __: Work | None, message: Message) -> None:
        heard.put_nowait(message)

    async def end() -> Message:
        async with asyncio.timeout(LONG_S):
            while not isinstance(message := await heard.get(), Ended):
                pass
        return message

    loading = Settings("cpu", "int8", 1), scripted.load
    slot = Slot(0, "scripted", loading, note, silence_s=LONG_S)
    try:
        assert isinstance(await end(), Done)
        slot._silence_s = 1
        pcm = "/dev/zero"
        spans = (Span(0, ((0, SAMPLE_RATE),)),)
        slot.perform(Transcribe("job", pcm, spans, Script(hang=1000).options()))
        died = await end()
        assert isinstance(died, Died)
        assert "said nothing" in died.error.message
        assert isinstance(await end(), Done), "another one comes up"
    finally:
        await slot.close()
