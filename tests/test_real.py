"""Everything with the real model and real speech."""

import asyncio
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import jiwer
import psutil
import pytest
from aiohttp import ClientSession, FormData, WSMsgType
from whisper_normalizer.english import EnglishTextNormalizer

from aiotranscribe import Client, Config, Frame, Options, Transcriber
from aiotranscribe import frame as frames
from tests.conftest import ROOT, SAMPLE, Server
from tests.waiting import LONG_S, check, merge, text_of, to_end, until_frame, workers

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What examples/make_sample.sh says, as far as the model hears it without a mistake.
SAMPLE_SAYS = "this recording was made by a machine, so that you have something to try"

BEGINNING = (
    "One. From fairest creatures we desire increase, that thereby beauty's rose might never die."
)
SONNET = (
    "One. From fairest creatures we desire increase, that thereby beauty's rose might never die, "
    "but as the riper should by time decease, his tender heir might bear his memory: but thou "
    "contracted to thine own bright eyes, feed'st thy light's flame with self-substantial fuel, "
    "making a famine where abundance lies, thy self thy foe, to thy sweet self too cruel: thou "
    "that art now the world's fresh ornament, and only herald to the gaudy spring, within thine "
    "own bud buriest thy content, and tender churl mak'st waste in niggarding: pity the world, or "
    "else this glutton be, to eat the world's due, by the grave and thee."
)
JFK = (
    "And so, my fellow Americans, ask not what your country can do for you, ask what you can do "
    "for your country."
)
# The texts are those of shared/audio/README.md; each with the word error rate that is allowed.
# The smallest model stumbles over Shakespeare's English: faster-whisper by itself gets 0.105 of the
# sonnet wrong.
SPEECH = {
    "jfk.flac": (JFK, 11.0, 0.05),
    "sonnet1.mp3": (SONNET, 53.3, 0.16),
    "clip.mp4": (BEGINNING, 9.0, 0.08),
    "clip.webm": (BEGINNING, 9.0, 0.08),
    "clip.ogg": (BEGINNING, 9.0, 0.08),
}
# What becomes of each file of shared/audio/bad/: no text, by whichever status.
BAD = {
    "awful.wav": "completed",  # a few samples
    "bad.wav": "failed",
    "empty.wav": "completed",
    "evil.wav": "failed",
    "invalid.wav": "failed",
    "null.wav": "completed",  # not one sample
    "silence.mp3": "completed",
}

normalise = EnglishTextNormalizer()


def error_rate(reference: str, text: str) -> float:
    """Return the word error rate, with spelling and punctuation made alike."""
    return float(jiwer.wer(normalise(reference), normalise(text)))


async def transcribe(server: Server, recording: Path, **options: str) -> list[Frame]:
    """Submit a recording over HTTP, watch it over the socket, return all frames."""
    async with asyncio.timeout(LONG_S), ClientSession() as session:
        form = FormData(options)
        body = await asyncio.to_thread(recording.read_bytes)
        form.add_field("file", io.BytesIO(body), filename=recording.name)
        async with session.post(f"{server.url}/v1/jobs", data=form) as response:
            assert response.status == 202, await response.text()
            job_id = (await response.json())["job_id"]
        received = []
        async with session.ws_connect(f"{server.url}/ws/transcription/{job_id}") as socket:
            async for message in socket:
                assert message.type is WSMsgType.TEXT
                received.append(frames.decode(message.data))
        assert socket.close_code == 1000
    check(received)
    return received


async def next_job_works(server: Server) -> None:
    """Check that the server still understands what is said."""
    received = await transcribe(server, SAMPLE)
    assert received[-1].status == "completed"
    assert SAMPLE_SAYS in text_of(received)


# -- the sample, which is always at hand -------------------------------------------------------


async def test_the_sample_over_http_and_socket(real_server: Server) -> None:
    """Otherwise the server does not do the one thing that it is for."""
    received = await transcribe(real_server, SAMPLE)
    assert SAMPLE_SAYS in text_of(received)
    last = received[-1]
    assert last.status == "completed"
    assert last.duration_seconds == pytest.approx(18.3, abs=0.5)
    assert last.language == "en"
    assert last.speed
    assert last.speed > 0
    steps = [frame.current_step for frame in received]
    assert steps.index("transcribing") > 0
    assert len({frame.progress_percentage for frame in received}) > 3


async def test_the_sample_through_the_library() -> None:
    """Otherwise it cannot be built into a program of one's own."""
    async with Transcriber(Config(workers=1)) as transcriber:
        job = await transcriber.submit(SAMPLE)
        received = await to_end(transcriber.watch(job.id))
        assert SAMPLE_SAYS in text_of(received)
        assert (await transcriber.transcript(job.id)).text == text_of(received)


async def test_the_sample_on_the_command_line(real_server: Server, tmp_path: Path) -> None:
    """Otherwise the first command of the README does not work."""
    flags = ["--output_format", "srt", "--output_dir", str(tmp_path / "new")]
    local = run("transcribe", str(SAMPLE), *flags)
    remote = run("submit", str(SAMPLE), "--watch", "--url", real_server.url)
    for output in await asyncio.gather(local, remote):
        assert SAMPLE_SAYS in " ".join(output.split())
    cues = (tmp_path / "new" / "sample.srt").read_text()
    assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:\d\d,\d{3}\n", cues)


async def run(*arguments: str) -> str:
    """Run a command that has to succeed; return what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiotranscribe", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LONG_S):
        output, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return output.decode()


async def test_words_have_times_within_their_segments(real_server: Server) -> None:
    """Otherwise a player cannot show which word is being said."""
    received = await transcribe(real_server, SAMPLE, word_timestamps="true")
    segments = merge(received)
    for segment in segments:
        assert segment.words
        assert "".join(word.word for word in segment.words) == segment.text
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert segment.start - 0.01 <= times[0]
        assert times[-1] <= segment.end + 0.01
        assert all(0 <= word.probability <= 1 for word in segment.words)
    async with Client(real_server.url) as client:
        answer = await client.transcript(received[0].job_id, "json")
    assert '"words":[{"start":' in answer


async def test_prompts_and_parameters_reach_the_model(real_server: Server) -> None:
    """Otherwise an option is accepted and does nothing, or breaks the decoding."""
    options: dict[str, str] = {
        "language": "en",
        "vad_filter": "false",
        "beam_size": "1",
        "temperature": "0.2",
        "hotwords": "machine",
        "initial_prompt": "A greeting.",
    }
    text = text_of(await transcribe(real_server, SAMPLE, **options)).lower()
    assert "made by a machine" in text


@pytest.mark.parametrize("how", [{}, {"vad_filter": "false"}, {"parallel": "off"}], ids=str)
async def test_only_the_clips_are_heard(real_server: Server, how: dict[str, str]) -> None:
    """Otherwise whoever wants two minutes of ten hours waits for all, or gets other times."""
    received = await transcribe(real_server, SAMPLE, clip_timestamps="4,8.5,12", **how)
    text = text_of(received).lower()
    assert "you have something to try" in text
    assert "every word will still be here" in text
    assert "this recording" not in text, "before the first clip"
    assert "what it is doing" not in text, "between the clips"
    for segment in merge(received):
        assert 4 <= segment.start <= segment.end <= 8.51 or segment.start >= 11.99
    assert received[-1].duration_seconds == pytest.approx(18.3, abs=0.5)


async def test_a_clip_beyond_the_end_is_empty(real_server: Server) -> None:
    """Otherwise a mistake in a time brings the whole recording, or an error that says nothing."""
    for parallel in ("on", "off"):
        received = await transcribe(
            real_server, SAMPLE, clip_timestamps="400,500", parallel=parallel
        )
        assert received[-1].status == "completed"
        assert merge(received) == []


async def test_a_worker_killed_while_it_decodes_speech_is_replaced(real_server: Server) -> None:
    """Otherwise one crash takes the transcript, the server, or the next job with it."""
    async with Client(real_server.url) as client:
        job_id = (await client.submit(SAMPLE, Options(beam_size=20))).job_id
        await until_frame(client.watch(job_id), lambda frame: frame.current_step == "transcribing")
        busy = max(
            workers(real_server.process.pid), key=lambda pid: psutil.Process(pid).cpu_percent(0.2)
        )
        os.kill(busy, signal.SIGKILL)
        received = await to_end(client.watch(job_id))
    assert received[-1].status == "completed"
    assert SAMPLE_SAYS in text_of(received)
    await next_job_works(real_server)


# -- speech of people --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEECH)
async def test_speech_becomes_its_words(real_server: Server, shared_audio: Path, name: str) -> None:
    """Otherwise it is fast, live, and wrong."""
    text, duration, most = SPEECH[name]
    received = await transcribe(real_server, shared_audio / name)
    assert received[-1].status == "completed"
    assert received[-1].duration_seconds == pytest.approx(duration, abs=0.5)
    assert error_rate(text, text_of(received)) <= most
    assert merge(received)[-1].end <= duration + 0.5


async def test_speech_becomes_its_words_on_the_command_line(
    shared_audio: Path, tmp_path: Path
) -> None:
    """Otherwise the command line has another engine than the server."""
    names = ("jfk.flac", "clip.mp4", "clip.webm")
    files = [str(shared_audio / name) for name in names]
    folder = tmp_path / "texts"
    output = await run("transcribe", *files, "--output_format", "all", "--output_dir", str(folder))
    assert error_rate(f"{JFK} {BEGINNING} {BEGINNING}", output) < 0.08
    assert error_rate(JFK, (folder / "jfk.txt").read_text()) < 0.05
    cues = (folder / "jfk.srt").read_text()
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:\d\d,\d{3}\nAnd so", cues)


# -- what is no speech -------------------------------------------------------------------------


async def test_every_bad_file_ends_well(
    real_server: Server, shared_audio: Path, tmp_path: Path
) -> None:
    """Otherwise a broken file hangs, brings invented words, or takes the next job with it."""
    (tmp_path / "text.mp3").write_text("This is not a recording. " * 1000)
    files = [shared_audio / "bad" / name for name in BAD] + [tmp_path / "text.mp3"]
    expected = BAD | {"text.mp3": "failed"}
    ended: dict[str, Any] = {}
    for received in await asyncio.gather(*(transcribe(real_server, file) for file in files)):
        last = received[-1]
        async with Client(real_server.url) as client:
            assert await client.transcript(last.job_id) == ""
        name = files[len(ended)].name
        ended[name] = str(last.status)
        assert merge(received) == []
        if last.error:
            assert last.error.code == "undecodable"
            assert last.error.message in last.message
    assert ended == expected
    assert set(BAD) | {"zero-bytes.wav"} == {file.name for file in (shared_audio / "bad").iterdir()}
    await next_job_works(real_server)


async def test_silence_has_no_words_and_is_complete(
    real_server: Server, shared_audio: Path
) -> None:
    """Otherwise the model's fancies stand for what nobody said."""
    for vad_filter in ("true", "false"):
        received = await transcribe(
            real_server, shared_audio / "bad" / "silence.mp3", vad_filter=vad_filter
        )
        last = received[-1]
        assert (last.status, last.progress_percentage) == ("completed", 100)
        if vad_filter == "true":
            assert merge(received) == []


async def test_a_file_without_a_byte_is_refused(real_server: Server, shared_audio: Path) -> None:
    """Otherwise an upload that brought nothing becomes a job."""
    body = (shared_audio / "bad" / "zero-bytes.wav").read_bytes()
    url = f"{real_server.url}/v1/jobs"
    async with ClientSession() as session, session.post(url, data=body) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid_request"
    await next_job_works(real_server)
