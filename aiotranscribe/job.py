"""A job: what was asked, where it stands, and how it may change. Pure.

Every change returns a new :class:`Job`. The rule that a job gets exactly one terminal status
has its only home here, in :meth:`Job.end`.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from aiotranscribe.errors import InvalidOption, Problem
from aiotranscribe.transcript import Segment

#: The languages of multilingual Whisper models, each with its English name, which OpenAI's API
#: wants; a test compares the codes with faster-whisper's.
LANGUAGES = dict(
    pair.split(maxsplit=1)
    for pair in (
        "af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be "
        "belarusian, bg bulgarian, bn bengali, bo tibetan, br breton, bs bosnian, ca catalan, "
        "cs czech, cy welsh, da danish, de german, el greek, en english, es spanish, et "
        "estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl galician, gu "
        "gujarati, ha hausa, haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian creole, "
        "hu hungarian, hy armenian, id indonesian, is icelandic, it italian, ja japanese, jw "
        "javanese, ka georgian, kk kazakh, km khmer, kn kannada, ko korean, la latin, lb "
        "luxembourgish, ln lingala, lo lao, lt lithuanian, lv latvian, mg malagasy, mi maori, "
        "mk macedonian, ml malayalam, mn mongolian, mr marathi, ms malay, mt maltese, my "
        "myanmar, ne nepali, nl dutch, nn nynorsk, no norwegian, oc occitan, pa punjabi, pl "
        "polish, ps pashto, pt portuguese, ro romanian, ru russian, sa sanskrit, sd sindhi, si "
        "sinhala, sk slovak, sl slovenian, sn shona, so somali, sq albanian, sr serbian, su "
        "sundanese, sv swedish, sw swahili, ta tamil, te telugu, tg tajik, th thai, tk turkmen, "
        "tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek, vi vietnamese, yi "
        "yiddish, yo yoruba, yue cantonese, zh chinese"
    ).split(", ")
)

T = TypeVar("T", bound=msgspec.Struct)

#: A recording as one clip, in seconds: it ends before this.
EVERYTHING = ((0.0, 1e9),)
# Less than the above, and no sign, exponent, infinity or NaN.
_SECONDS = re.compile(r"\s*([0-9]{1,8}(\.[0-9]{1,8})?|\.[0-9]{1,8})\s*")


class Status(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether a job with this status never changes again."""
        return self not in {Status.QUEUED, Status.RUNNING}


class Step(StrEnum):
    """What a job is doing right now. After the last one the step is the status itself."""

    QUEUED = "queued"
    LOADING_MODEL = "loading_model"
    DECODING = "decoding"
    DETECTING_SPEECH = "detecting_speech"
    DETECTING_LANGUAGE = "detecting_language"
    TRANSCRIBING = "transcribing"
    FINISHING = "finishing"


class Options(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How to transcribe one recording; the names and meanings are faster-whisper's."""

    #: Name of the model; ``None`` for the server's default.
    model: str | None = None
    #: Code of the spoken language, such as ``en``; ``None`` to detect it.
    language: str | None = None
    #: ``translate`` writes English, whatever is spoken.
    task: Literal["transcribe", "translate"] = "transcribe"
    #: Give every word its own start and end.
    word_timestamps: bool = False
    #: Leave out stretches without speech (over two seconds); ``False`` decodes everything.
    vad_filter: bool = True
    #: Text that the recording could have followed: sets style and spelling.
    initial_prompt: Annotated[str, Meta(max_length=2000)] | None = None
    #: Transcribe only these stretches: ``start,end,start,end,...`` in seconds. The last end may be
    #: left out.
    clip_timestamps: Annotated[str, Meta(max_length=2000)] | None = None
    #: Words to listen for.
    hotwords: Annotated[str, Meta(max_length=2000)] | None = None
    #: ``None``: 0, then in steps up to 1 while the result looks wrong, as upstream does.
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    #: Hypotheses followed at once when the temperature is 0.
    beam_size: Annotated[int, Meta(ge=1, le=20)] = 5
    #: Give each window the text before it; only with ``parallel=off``, and then on by default.
    condition_on_previous_text: bool | None = None
    #: ``off`` decodes the recording as one span, exactly as faster-whisper would: slower, and
    #: with memory that grows with its length.
    parallel: Literal["on", "off"] = "on"
    #: Share of the workers beside other jobs: each level has four times that of the one below.
    priority: Literal["low", "normal", "high"] = "normal"

    def __post_init__(self) -> None:
        """Refuse clips that cannot be, as soon as they are given.

        Raises:
            InvalidOption: with what is wrong.
        """
        clips = self.clips
        for start, end in clips:
            if start >= end:
                raise InvalidOption(
                    f"clip_timestamps: a clip from {start:.10g} to {end:.10g} has no length"
                )
        for before, after in pairwise(clips):
            if before[1] > after[0]:
                raise InvalidOption(
                    f"clip_timestamps: the times must be in order, but {after[0]:.10g} comes after "
                    f"{before[1]:.10g}"
                )

    @property
    def clips(self) -> tuple[tuple[float, float], ...]:
        """What to transcribe: ``(start, end)`` in seconds, in order, without overlap."""
        if not self.clip_timestamps:
            return EVERYTHING
        times = []
        for text in self.clip_timestamps.split(","):
            if not _SECONDS.fullmatch(text):
                raise InvalidOption(
                    f"clip_timestamps: {text!r} is not a time in seconds; give start,end,start,end "
                    "and so on, such as 30,60,90"
                )
            times.append(float(text))
        if len(times) % 2:
            times.append(EVERYTHING[0][1])
        return tuple(zip(times[::2], times[1::2], strict=True))

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> "Options":
        """Return the options given as text, as a form or a query carries them.

        Raises:
            InvalidOption: one is unknown or impossible; the message names it.
        """
        for name, value in fields.items():
            if value != "" and name not in cls.__struct_fields__:
                known = ", ".join(cls.__struct_fields__)
                raise InvalidOption(f"there is no option {name!r}; the options are: {known}")
        return parse(fields, cls)

    def settle(self, models: Sequence[str]) -> "Options":
        """Return the options with the model filled in, checked against what the server has.

        Args:
            models: The models that may be used, the default first.

        Raises:
            InvalidOption: the model is not among them, or cannot do what is asked.
        """
        try:  # what was not parsed has not been checked
            msgspec.json.decode(msgspec.json.encode(self), type=Options)
        except (msgspec.ValidationError, UnicodeError) as error:
            raise InvalidOption(_name_first(str(error))) from error
        model = self.model or models[0]
        if model not in models:
            raise InvalidOption(f"model: there is no {model!r} here, only {', '.join(models)}")
        language = self.language and self.language.lower()
        if language and language not in LANGUAGES:
            raise InvalidOption(
                f"language: {self.language!r} is not a code that Whisper knows, such as 'en'"
            )
        if is_english_only(model):
            if language not in {None, "en"}:
                raise InvalidOption(f"language: {model} only understands English")
            if self.task == "translate":
                raise InvalidOption(f"task: {model} cannot translate, it only understands English")
        if self.condition_on_previous_text and self.parallel == "on":
            raise InvalidOption(
                "condition_on_previous_text: spans are transcribed side by side, so the text "
                "before is not known yet; add parallel=off"
            )
        return msgspec.structs.replace(self, model=model, language=language)


def parse(fields: Mapping[str, object], kind: type[T]) -> T:
    """Return what ``kind`` has a name for, of fields given as text, or as lists of texts.

    An empty value means that the field is not given.

    Raises:
        InvalidOption: one is impossible; the message names it, and what there is to choose from.
    """
    given = {
        name: value
        for name, value in fields.items()
        if value != "" and name in kind.__struct_fields__
    }
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        text = _name_first(str(error))
        info = msgspec.inspect.type_info(kind)
        if isinstance(info, msgspec.inspect.StructType) and "enum value" in text:
            name = re.match(r"\w*", text)
            types = {field.name: field.type for field in info.fields}
            choices = _choices(types[name[0]]) if name and name[0] in types else []
            text = f"{text}, only {', '.join(choices)}"
        raise InvalidOption(text) from error


def _choices(info: msgspec.inspect.Type) -> list[str]:
    """The values of a closed set."""
    match info:
        case msgspec.inspect.EnumType(cls):
            return [str(member.value) for member in cls]
        case msgspec.inspect.LiteralType(values):
            return [str(value) for value in values]
        case msgspec.inspect.UnionType(types):
            return [choice for each in types for choice in _choices(each)]
        case msgspec.inspect.ListType(item_type):
            return _choices(item_type)
    return []


#: Weight of each priority.
WEIGHTS = {"low": 1.0, "normal": 4.0, "high": 16.0}


def is_english_only(model: str) -> bool:
    """Whether the name of a model says that it only understands English."""
    return model.endswith(".en")


def _name_first(error: str) -> str:
    """Turn msgspec's "Expected … - at `$.beam_size`" into "beam_size: expected …"."""
    what, _, where = error.partition(" - at `$.")
    return f"{where.rstrip('`')}: {what[:1].lower()}{what[1:]}" if where else error


class Run(msgspec.Struct, frozen=True, array_like=True):
    """A part of a job's life: from one start of the server to the next."""

    #: Random, so that no cursor of another run is taken for one of this.
    id: str
    #: How many segments the job had when the run began.
    began: int


# A watcher who was away for more starts of the server than this receives everything again.
_MOST_RUNS = 100


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request to transcribe one recording, as it stands now."""

    id: str
    #: The recording's file name, for people. Data only: never part of a path.
    name: str
    #: Seconds since the epoch.
    created: float
    options: Options
    #: How large the recording is; 0 for jobs from before this was noted.
    size_bytes: int = 0
    status: Status = Status.QUEUED
    #: What is being done; meaningless once the status is terminal.
    step: Step = Step.QUEUED
    #: Why a failed job failed.
    error: Problem | None = None
    #: Given by the job's options or detected.
    language: str | None = None
    #: Length of the recording in seconds: first what it claims, in the end what was decoded.
    duration: float | None = None
    #: Seconds of the recording that have been decoded to PCM.
    decoded: float = 0.0
    #: Whether all of the recording is decoded and all of its spans are known.
    is_prepared: bool = False
    #: Highest percentage shown so far; it never goes down.
    percentage: float = 0.0
    #: Seconds of recording transcribed in a second; ``None`` until that can be told.
    speed: float | None = None
    #: How many segments there are.
    count: int = 0
    #: How far they reach, in seconds from the recording's start.
    position: float = 0.0
    #: Every run of the server in which the job was at work, the present or last one last.
    runs: tuple[Run, ...] = ()
    #: When it got its terminal status, in seconds since the epoch.
    ended: float | None = None

    @property
    def current_step(self) -> str:
        """The step, or the terminal status once there is one."""
        return self.status.value if self.status.is_terminal else self.step.value

    def enter(self, step: Step) -> "Job":
        """Move on to ``step``.

        Decoding, loading and transcribing overlap: the latest news counts until there is text,
        from then on only the end.
        """
        is_late = self.step in {Step.TRANSCRIBING, Step.FINISHING} and step is not Step.FINISHING
        if self.status.is_terminal or is_late:
            return self
        return msgspec.structs.replace(self, status=Status.RUNNING, step=step)

    def decode(self, seconds: float, duration: float | None) -> "Job":
        """Note how much is decoded, and how long the recording claims to be."""
        claimed = self.duration if duration is None else max(duration, seconds)
        # After a crash it is decoded again, and less at first.
        decoded = max(self.decoded, seconds)
        return msgspec.structs.replace(self, decoded=decoded, duration=claimed)

    def prepare(self, duration: float) -> "Job":
        """Note that the whole recording is decoded: its real length is known."""
        return msgspec.structs.replace(self, is_prepared=True, decoded=duration, duration=duration)

    def speak(self, language: str) -> "Job":
        """Note the language that was detected."""
        return msgspec.structs.replace(self, language=language)

    def write(self, segments: Sequence[Segment]) -> "Job":
        """Note how far the text is."""
        position = segments[-1].end if segments else 0.0
        return msgspec.structs.replace(self, count=len(segments), position=position)

    def go_on(self, run_id: str) -> "Job":
        """Begin the job's part of a new run of the server."""
        runs = (*self.runs, Run(run_id, self.count))[-_MOST_RUNS:]
        return msgspec.structs.replace(self, runs=runs)

    def end(self, status: Status, now: float, error: Problem | None = None) -> "Job":
        """Give the job its terminal status; the first one stays for ever.

        Args:
            status: What it is.
            now: The time, in seconds since the epoch.
            error: Why it failed, if it did.
        """
        if self.status.is_terminal:
            return self
        percentage = 100.0 if status is Status.COMPLETED else self.percentage
        return msgspec.structs.replace(
            self, status=status, error=error, percentage=percentage, ended=now
        )
