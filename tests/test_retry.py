"""A worker dies: only what it had not done is done again, and the words are the same."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from aiotranscribe import Config, Frame, Segment, Status, Transcriber
from tests import scripted
from tests.conftest import SAMPLE
from tests.scripted import Script
from tests.waiting import LONG_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def _watch(transcriber: Transcriber, job_id: str) -> tuple[Frame, list[Segment]]:
    segments: list[Segment] = []
    async for frame in transcriber.watch(job_id):
        segments[frame.offset :] = frame.segments
    return frame, segments


async def test_rest_of_a_span_is_done_again(
    transcriber: Transcriber, make_wav: Callable[[float], Path], tmp_path: Path
) -> None:
    """One killed process would cost an hour of text, or tell some of it twice."""
    undisturbed = Script(segments=5)
    job = await transcriber.submit(make_wav(40), options=undisturbed.options())
    _, expected = await _watch(transcriber, job.id)
    script = Script(segments=5, die_at=2, once=str(tmp_path / "died"))
    job = await transcriber.submit(make_wav(40), options=script.options())
    frame, segments = await _watch(transcriber, job.id)
    assert (tmp_path / "died").exists()
    assert frame.status is Status.COMPLETED
    assert segments == expected


async def test_span_that_kills_two_workers_is_given_up(
    transcriber: Transcriber, make_wav: Callable[[float], Path]
) -> None:
    """A recording that crashes the model would crash worker after worker, for ever."""
    job = await transcriber.submit(make_wav(20), options=Script(segments=5, die_at=3).options())
    frame, segments = await _watch(transcriber, job.id)
    assert frame.status is Status.FAILED
    assert frame.error is not None
    assert frame.error.code == "worker_died"
    assert "ended 2 workers" in frame.error.message
    assert len(segments) >= 3, "the text so far is kept"
    following = await transcriber.submit(make_wav(5), options=Script().options())
    assert (await _watch(transcriber, following.id))[0].status is Status.COMPLETED


async def test_jobs_do_not_wait_for_workers_that_never_come(
    make_wav: Callable[[float], Path], tmp_path: Path
) -> None:
    """A server whose model ends every worker would keep every job waiting for ever."""
    config = Config(model=("fatal",), workers=2, data_dir=tmp_path)
    async with Transcriber(config, loader=scripted.load) as transcriber:
        for _ in range(2):  # the second one comes when there is no hope any more
            job = await transcriber.submit(make_wav(2.0), options=Script().options())
            async with asyncio.timeout(LONG_S):
                frame, _ = await _watch(transcriber, job.id)
            assert frame.status is Status.FAILED
            assert frame.error is not None
            assert frame.error.code == "worker_died"
            assert "5 times in a row" in frame.error.message
            assert "exit code 3" in frame.error.message


@pytest.mark.parametrize("moment", ["decoding", "transcribing"])
async def test_real_worker_killed(tmp_path: Path, moment: str) -> None:
    """With real speech and the real model, a killed worker would change or lose words."""
    async with Transcriber(Config(workers=2, data_dir=tmp_path)) as transcriber:
        await transcriber.ready()
        job = await transcriber.submit(SAMPLE)
        _, expected = await _watch(transcriber, job.id)
        job = await transcriber.submit(SAMPLE)
        segments: list[Segment] = []
        is_killed = False
        async for frame in transcriber.watch(job.id):
            segments[frame.offset :] = frame.segments
            if not is_killed and frame.current_step == moment:
                is_killed = True
                for child in psutil.Process().children():
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
        assert is_killed
        assert frame.status is Status.COMPLETED
        assert segments == expected
