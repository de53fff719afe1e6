"""The command line: serve, transcribe, submit, watch.

Worker processes import this module again, so only the imports that decorators need stand here.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aiotranscribe import __version__, lines
from aiotranscribe.config import Config
from aiotranscribe.errors import AiotranscribeError, InvalidRequest
from aiotranscribe.exports import FORMATS, Shape, export, file_ending
from aiotranscribe.frame import Frame
from aiotranscribe.job import Options, Status, parse
from aiotranscribe.sentences import left, negotiate
from aiotranscribe.transcript import Transcript

if TYPE_CHECKING:
    from rich.progress import Progress

    from aiotranscribe.client import Client

_URL = click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    envvar="AIOTRANSCRIBE_URL",
    help="Where the server is.",
)
_TOKEN = click.option(
    "--token",
    envvar="AIOTRANSCRIBE_TOKEN",
    help="What lets you in, if the server wants a token; better in AIOTRANSCRIBE_TOKEN.",
)
# aiohttp waits this long for requests to end, and as long again for those that it has cancelled.
_SHUTDOWN_S = 1.5
# Connections that wait to be accepted: after a restart everybody comes back at once.
_BACKLOG = 4096
FC = TypeVar("FC", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Transcribe recordings and watch, live and truthfully, how far they are."""


def _config_options(*names: str) -> Callable[[FC], FC]:
    """Options made from the fields of Config; all of them, or those named."""

    def decorate(command: FC) -> FC:
        for field in reversed(dataclasses.fields(Config)):
            if not names or field.name in names:
                command = _config_option(field)(command)
        return command

    return decorate


def _config_option(field: "dataclasses.Field[Any]") -> Callable[..., Any]:
    flag = field.name.replace("_", "-")
    spellings = [f"--{flag}"] + ([f"--{field.name}"] if "_" in field.name else [])
    kind: Any = str
    if isinstance(field.default, bool):
        kind, spellings = bool, [f"--{flag}/--no-{flag}"]
    elif choices := field.metadata.get("choices"):
        kind = click.Choice(choices)
    elif "minimum" in field.metadata:
        is_whole = isinstance(field.default, int)
        kind = (click.IntRange if is_whole else click.FloatRange)(min=field.metadata["minimum"])
    elif field.default is None:  # every such field is a path
        kind = click.Path(path_type=Path)
    return click.option(
        *spellings,
        field.name,
        type=kind,
        default=field.default,
        multiple=isinstance(field.default, tuple),
        show_default=field.default not in (None, (), ""),
        envvar=f"AIOTRANSCRIBE_{field.name.upper()}",
        show_envvar=True,
        help=field.metadata["help"],
    )


def _job_options(command: FC) -> FC:
    """The options of a job, under the names that the whisper command line uses."""
    options = [
        click.option("--language", help="Spoken language, such as en; detected when not given."),
        click.option("--task", help="transcribe, or translate to English.", default="transcribe"),
        click.option("--word_timestamps", metavar="BOOLEAN", help="Times for every word."),
        click.option(
            "--vad_filter", metavar="BOOLEAN", help="Leave out stretches without speech. [True]"
        ),
        click.option(
            "--clip_timestamps",
            metavar="SECONDS",
            help="Only these stretches: start,end,start,end,... [all]",
        ),
        click.option("--initial_prompt", help="Text that sets style and spelling."),
        click.option("--hotwords", help="Words to listen for."),
        click.option("--temperature", metavar="FLOAT", help="0 to 1; by default as needed."),
        click.option("--beam_size", metavar="INTEGER", help="Hypotheses followed at once. [5]"),
        click.option(
            "--condition_on_previous_text",
            metavar="BOOLEAN",
            help="Give each window the text before it; needs --parallel off.",
        ),
        click.option("--parallel", metavar="on|off", help="off: as faster-whisper does it. [on]"),
        click.option("--priority", metavar="low|normal|high", help="Beside other jobs. [normal]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _shape_options(command: FC) -> FC:
    """How to cut subtitles, under the names that the whisper command line uses."""
    helps = {
        "max_line_width": ("INTEGER", "Break longer lines of subtitles."),
        "max_line_count": ("INTEGER", "Lines of a subtitle at most; with --max_line_width."),
        "max_words_per_line": ("INTEGER", "Words of a subtitle at most."),
        "highlight_words": ("BOOLEAN", "Underline each word while it is said. [False]"),
    }
    for name, (metavar, text) in reversed(helps.items()):
        command = click.option(f"--{name}", metavar=metavar, help=text)(command)
    return command


@main.command()
@_config_options()
def serve(**settings: Any) -> None:
    """Run the server until it is told to stop."""
    lines.set_up(settings["log_format"])
    if settings["data_dir"] is None:
        import platformdirs  # noqa: PLC0415 - see the module's docstring

        settings["data_dir"] = platformdirs.user_data_path("aiotranscribe")
    with _clear_errors():
        asyncio.run(_serve(Config(**settings)))


async def _serve(config: Config) -> None:
    from aiohttp import web  # noqa: PLC0415 - see the module's docstring
    from yarl import URL  # noqa: PLC0415

    from aiotranscribe.web import auth, limits  # noqa: PLC0415
    from aiotranscribe.web.app import create_app, under  # noqa: PLC0415
    from aiotranscribe.web.jobs import TRANSCRIBER  # noqa: PLC0415

    auth.check_listening(config)
    limits.raise_file_limit()
    asyncio.get_running_loop().set_exception_handler(lines.Calm())
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app = create_app(config)
    runner = web.AppRunner(
        under(config.base_path, app),
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=config.idle_s,
        auto_decompress=False,
    )
    await runner.setup()
    stopping = asyncio.create_task(stop.wait())
    loading = asyncio.create_task(app[TRANSCRIBER].ready())
    try:
        await web.TCPSite(runner, config.host, config.port, backlog=_BACKLOG).start()
        host, port = runner.addresses[0][:2]
        await asyncio.wait([stopping, loading], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await loading
            url = URL.build(scheme="http", host=host, port=port, path=config.base_path)
            click.echo(f"aiotranscribe is ready at {url}")
        await stopping
    finally:
        stopping.cancel()
        loading.cancel()
        await runner.cleanup()


@main.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@_config_options("model", "workers", "device", "compute_type", "max_duration")
@_job_options
@click.option(
    "--output_format",
    "--output-format",
    type=click.Choice([*FORMATS, "all"]),
    help="Write each transcript to a file of this format.",
)
@click.option(
    "--output_dir",
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write the files; here, if not given.",
)
@_shape_options
def transcribe(
    files: Sequence[Path],
    output_format: str | None,
    output_dir: Path | None,
    **settings: Any,
) -> None:
    """Transcribe FILEs here, without a server, and print the text as it is recognised.

    With --output_format or --output_dir, files are written too.
    """
    fields = {field.name for field in dataclasses.fields(Config)} & settings.keys()
    config = Config(max_queue=0, **{name: settings.pop(name) for name in fields})
    shaping = {name: settings.pop(name) or "" for name in Shape.__struct_fields__}
    formats = list(FORMATS) if output_format == "all" else [output_format or "txt"]
    folder = (output_dir or Path()) if output_format or output_dir else None
    with _clear_errors():
        shape = parse(shaping, Shape)
        if shape.needs_words:
            settings["word_timestamps"] = "true"
        write = partial(_write, folder, formats, shape) if folder else None
        if not asyncio.run(_transcribe(files, config, _options(settings), write)):
            sys.exit(1)


async def _transcribe(
    files: Sequence[Path],
    config: Config,
    options: Options,
    write: Callable[[str, Transcript], None] | None,
) -> bool:
    from aiotranscribe.service import Transcriber  # noqa: PLC0415 - see the module's docstring

    jobs = []
    count = 0
    async with Transcriber(config) as transcriber:
        for path in files:
            try:
                jobs.append((path, await transcriber.submit(path, options=options)))
            except InvalidRequest as error:  # a file that is missing or empty; go on with the rest
                click.echo(f"{path.name}: {error}", err=True)
        for path, job in jobs:
            watcher = transcriber.watch(job.id, language=_language())
            if await _follow(watcher, path.name):
                count += 1
                if write:
                    write(path.stem, await transcriber.transcript(job.id))
    return count == len(files)


def _write(
    folder: Path, formats: Sequence[str], shape: Shape, stem: str, transcript: Transcript
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        text = export(transcript, name, shape)
        (folder / f"{stem}.{file_ending(name)}").write_text(text, "utf-8")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_URL
@_TOKEN
@click.option("--watch", "is_watching", is_flag=True, help="Stay, and show the text as it comes.")
@click.option("--model", help="One of the server's models.")
@_job_options
def submit(
    file: Path, url: str, token: str | None, is_watching: bool, **settings: str | None
) -> None:
    """Send FILE to a server; print the new job's id, or its text with --watch."""
    with _clear_errors():
        if not asyncio.run(_submit(file, _client(url, token), _options(settings), is_watching)):
            sys.exit(1)


async def _submit(
    file: Path,
    entering: contextlib.AbstractAsyncContextManager["Client"],
    options: Options,
    is_watching: bool,
) -> bool:
    async with entering as client:
        job_id = (await client.submit(file, options)).job_id
        if is_watching:
            click.echo(f"job {job_id}", err=True)
            return await _follow(client.watch(job_id), file.name)
        click.echo(job_id)
        return True


@main.command()
@click.argument("job_id")
@_URL
@_TOKEN
def watch(job_id: str, url: str, token: str | None) -> None:
    """Show the text of the job JOB_ID as it is recognised, from its beginning to its end."""
    with _clear_errors():
        if not asyncio.run(_watch(job_id, _client(url, token))):
            sys.exit(1)


async def _watch(job_id: str, entering: contextlib.AbstractAsyncContextManager["Client"]) -> bool:
    async with entering as client:
        await client.get(job_id)  # a wrong address is said at once; later it would be tried again
        return await _follow(client.watch(job_id), job_id[:8])


@contextlib.asynccontextmanager
async def _client(url: str, token: str | None) -> AsyncIterator["Client"]:
    """A client; what it cannot do about the network is said in one line."""
    from aiohttp import ClientError  # noqa: PLC0415 - see the module's docstring

    from aiotranscribe.client import Client  # noqa: PLC0415

    try:
        # The variable may be the server's own, with names, and several.
        secret = token.split()[0].rpartition(":")[2] if token and token.strip() else None
        async with Client(url, secret, language=_language()) as client:
            yield client
    except ClientError as error:
        raise click.ClickException(f"cannot reach {url}: {error}") from error


async def _follow(frames: AsyncIterator[Frame], name: str) -> bool:
    """Show a job to its end: text on standard output, a bar on the terminal.

    Returns:
        Whether the job was completed.
    """
    from rich.console import Console  # noqa: PLC0415 - see the module's docstring
    from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn(
            "{task.percentage:>3.0f}%  {task.fields[message]}{task.fields[eta]}", markup=False
        ),
    )
    shown = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=100, message="", eta="")
        async for frame in frames:
            for segment in frame.segments[max(0, shown - frame.offset) :]:
                _print_line(bar, segment.text.strip())
            shown = frame.offset + len(frame.segments)
            eta = ""
            if frame.eta_seconds is not None:
                eta = f", {left(frame.eta_seconds, _language())}"
            bar.update(task, completed=frame.progress_percentage, message=frame.message, eta=eta)
    if frame.status is not Status.COMPLETED:
        click.echo(f"{name}: {frame.message}", err=True)
    return frame.status is Status.COMPLETED


def _print_line(bar: "Progress", line: str) -> None:
    """Print to standard output; above the bar where both are the same terminal."""
    if sys.stdout.isatty() and not bar.disable:
        bar.console.print(line, soft_wrap=True)
    else:
        click.echo(line)


def _language() -> str:
    """The language of the terminal, as POSIX has it (XBD, section 8.2), if it is one of ours."""
    spoken = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return negotiate(next(filter(None, spoken), "").partition(".")[0].replace("_", "-"))


def _options(settings: Mapping[str, str | None]) -> Options:
    return Options.parse({name: value for name, value in settings.items() if value is not None})


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """Say what went wrong in one line; a traceback is for mistakes of ours."""
    try:
        yield
    except (AiotranscribeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(130)
