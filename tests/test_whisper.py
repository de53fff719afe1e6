"""The real model: decoding spans together changes speed, not words."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aiotranscribe import Options
from aiotranscribe.engine import audio, pcm
from aiotranscribe.engine.messages import Recognised
from aiotranscribe.engine.model import locate
from aiotranscribe.engine.spans import SAMPLE_RATE, Bounds, Cutter, Floats, Span
from aiotranscribe.engine.whisper import Clip, Settings, Whisper, _Result, _Window
from aiotranscribe.errors import InvalidOption
from tests.conftest import SAMPLE

ENGLISH = Options(language="en")


@pytest.fixture(scope="module")
def model() -> Whisper:
    """The embedded model, on one thread."""
    return Whisper("tiny.en", Settings("cpu", "int8", 1))


@pytest.fixture(scope="module")
def speech() -> Floats:
    """The sample that ships with the project."""
    with audio.Recording(SAMPLE) as recording:
        return pcm.to_float(np.concatenate(list(recording.blocks())))


@pytest.fixture(scope="module")
def clips(speech: Floats) -> list[Clip]:
    """The sample, cut into spans of a few seconds."""
    padded = np.pad(speech, (0, -len(speech) % 512))
    cutter = Cutter(speech_only=True, ladder=(Bounds(2, 7),))
    spans = [
        *cutter.feed(audio.SpeechDetector()(padded), audio.levels(padded)),
        *cutter.finish(len(speech)),
    ]
    assert len(spans) > 2
    return [Clip(span, _cut(speech, span)) for span in spans]


def _cut(speech: Floats, span: Span) -> Floats:
    return np.concatenate([speech[start:end] for start, end in span.stretches])


def _words(recognised: list[Recognised]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for one in recognised:
        texts[one.span] = texts.get(one.span, "") + "".join(s.text for s in one.segments)
    return texts


def test_company_changes_no_words(model: Whisper, clips: list[Clip]) -> None:
    """A span that is done again after a crash would say something else than the first time."""
    together = _words(list(model.transcribe(clips, ENGLISH)))
    alone = _words([one for clip in clips for one in model.transcribe([clip], ENGLISH)])
    assert together == alone
    assert len(together) == len(clips)


def test_every_span_ends_once(model: Whisper, clips: list[Clip]) -> None:
    """A job whose span never ends would stand at 99 % for ever."""
    done = [one.span for one in model.transcribe(clips, ENGLISH) if one.is_done]
    assert sorted(done) == [clip.span.index for clip in clips]


def test_goes_on_from_seek(model: Whisper, speech: Floats) -> None:
    """After a crash, what had been decoded would be decoded, and told, again."""
    speech = np.concatenate([speech, speech])  # more than one window
    span = Span(0, ((0, len(speech)),))
    first, *rest = model.transcribe([Clip(span, speech)], ENGLISH)
    assert not first.is_done
    later = Span(0, span.stretches, first.seek)
    assert _words(list(model.transcribe([Clip(later, speech)], ENGLISH))) == _words(rest)


def test_times_stay_within_their_span(model: Whisper, clips: list[Clip]) -> None:
    """Segments of neighbouring spans would overlap, and subtitles flicker."""
    spans = {clip.span.index: clip.span for clip in clips}
    for one in model.transcribe(clips, ENGLISH):
        for segment in one.segments:
            assert spans[one.span].start <= segment.start <= segment.end <= spans[one.span].end


def test_words_have_times_within_their_segment(model: Whisper, clips: list[Clip]) -> None:
    """Word by word highlighting would run away from the sound."""
    options = Options(language="en", word_timestamps=True)
    segments = [s for one in model.transcribe(clips, options) for s in one.segments]
    for segment in segments:
        assert segment.words
        assert "".join(word.word for word in segment.words).strip() == segment.text.strip()
        for word in segment.words:
            assert segment.start <= word.start <= word.end <= segment.end
            assert 0 <= word.probability <= 1


@pytest.mark.parametrize("vad_filter", [True, False])
def test_parallel_off_is_upstream(model: Whisper, speech: Floats, vad_filter: bool) -> None:
    """Who asks for exactly what faster-whisper would say, would get something else."""
    from faster_whisper import WhisperModel  # noqa: PLC0415

    upstream = WhisperModel(str(locate("tiny.en")), device="cpu", compute_type="int8")
    expected, _ = upstream.transcribe(speech, language="en", vad_filter=vad_filter)
    options = Options(language="en", parallel="off", vad_filter=vad_filter)
    span = Span(0, ((0, len(speech)),))
    heard = model.transcribe([Clip(span, speech)], options)
    assert [
        (round(s.start, 2), round(s.end, 2), s.text) for one in heard for s in one.segments
    ] == [(round(s.start, 2), round(s.end, 2), s.text) for s in expected]


@pytest.mark.parametrize(
    ("clips", "seek", "left"),
    [
        ("4,8.5,12", 0, [4, 8.5, 12]),
        ("4,8.5,12", 600, [6, 8.5, 12]),
        ("4,8.5,12", 900, [12]),
        (None, 900, [9]),
    ],
)
def test_parallel_off_takes_clips_as_upstream_does(
    model: Whisper, speech: Floats, clips: str | None, seek: int, left: list[float]
) -> None:
    """Who asks for clips would get other words, or after a crash some of them again."""
    expected, _ = model._model.transcribe(speech, language="en", clip_timestamps=left)
    options = Options(language="en", parallel="off", clip_timestamps=clips)
    span = Span(0, ((0, len(speech)),), seek)
    heard = _words(list(model.transcribe([Clip(span, speech)], options)))
    assert heard == {0: "".join(segment.text for segment in expected)}


def test_parallel_off_has_nothing_to_do_after_the_last_clip(model: Whisper, speech: Floats) -> None:
    """Everything would be decoded, when a worker dies just before the end."""
    options = Options(language="en", parallel="off", clip_timestamps="4,8")
    heard = list(model.transcribe([Clip(Span(0, ((0, len(speech)),), 800), speech)], options))
    assert [(one.segments, one.is_done) for one in heard] == [((), True)]


def test_noise_ends(model: Whisper) -> None:
    """Sound in which the model hears nothing, or nonsense, would keep a worker for ever."""
    noise = np.random.default_rng(1).normal(0, 0.05, 10 * SAMPLE_RATE).astype(np.float32)
    clip = Clip(Span(0, ((0, len(noise)),)), noise)
    assert list(model.transcribe([clip], ENGLISH))[-1].is_done


def test_second_try_is_upstreams(model: Whisper, clips: list[Clip]) -> None:
    """Where the first try fails, something else than faster-whisper's answer would be shown."""
    tokenizer, settings = model._settings(Options(language="en", temperature=0))
    prompt = model._prompt(tokenizer, settings)
    for clip in clips:
        window = _Window(clip.span, model._model.feature_extractor(clip.samples), 0)
        output, result = model._decode_again(window, prompt, tokenizer, settings)
        expected = model._model.generate_with_fallback(output, prompt, tokenizer, settings)
        assert result.tokens == expected[0].sequences_ids[0]
        assert (result.logprob, result.compression) == pytest.approx((expected[1], expected[3]))


def test_the_best_of_all_tries_is_kept(
    model: Whisper, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last, hottest try would stand there as the text of a passage that nobody understands.

    As with upstream, one that repeats itself is only taken when there is nothing else.
    """
    tokenizer, settings = model._settings(ENGLISH)
    prompt = model._prompt(tokenizer, settings)
    tries = [
        _Result([1], temperature=0.0, logprob=-1.5, compression=9.0, no_speech=0.0),
        _Result([2], temperature=0.0, logprob=-3.0, compression=1.0, no_speech=0.0),
        _Result([3], temperature=0.0, logprob=-2.0, compression=1.0, no_speech=0.0),
        *[_Result([4], temperature=0.0, logprob=-4.0, compression=1.0, no_speech=0.0)] * 3,
    ]
    window = _Window(clips[0].span, model._model.feature_extractor(clips[0].samples), 0)
    for given, expected in ((tries, 3), ([tries[0]] * 6, 1)):
        left = iter(given)
        monkeypatch.setattr(_Result, "of", lambda *_, left=left: next(left))
        _, result = model._decode_again(window, prompt, tokenizer, settings)
        assert result.tokens == [expected]


def test_as_many_samples_as_upstream_takes(
    model: Whisper, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Difficult passages would have fewer chances, and be understood less often."""
    tokenizer, settings = model._settings(Options(language="en", temperature=0.5))
    outputs = [model._model.encode(np.zeros((80, 700), np.float32))] * 2
    counts, generate = [], model._model.model.generate

    def count(*arguments: Any, **named: Any) -> Any:
        counts.append(named["num_hypotheses"])
        return generate(*arguments, **named)

    monkeypatch.setattr(model._model, "model", SimpleNamespace(generate=count))
    prompt = model._prompt(tokenizer, settings)
    assert len(model._generate(outputs, prompt, settings, 0.5)) == len(outputs)
    assert sum(counts) == settings.best_of == 5
    assert max(counts) < 5


def test_temperature_and_beam(model: Whisper, clips: list[Clip]) -> None:
    """Sampling, and greedy decoding, would not work, though the options are offered."""
    for options in (Options(language="en", temperature=0.2), Options(language="en", beam_size=1)):
        texts = _words(list(model.transcribe(clips[:2], options)))
        assert any("recording" in text or "Hello" in text for text in texts.values())


def test_english_only_model_refuses_other_languages(model: Whisper, clips: list[Clip]) -> None:
    """A model under a name that does not say so would write English nonsense for Portuguese."""
    with pytest.raises(InvalidOption):
        list(model.transcribe(clips, Options(language="pt")))


def test_uses_one_thread(tmp_path: Path) -> None:
    """Workers with more threads than cores slow each other down."""
    settings = Settings("cpu", "int8", 1)
    before = len(os.listdir("/proc/self/task"))
    Whisper("tiny.en", settings)
    assert len(os.listdir("/proc/self/task")) - before <= 2
