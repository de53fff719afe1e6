"""The command line, as people run it: real processes, mostly with a scripted model."""

import dataclasses
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import aiotranscribe
from aiotranscribe import Config
from aiotranscribe.exports import FORMATS, Shape, file_ending
from aiotranscribe.job import Options
from tests.conftest import ROOT, SCRIPTED, Server
from tests.scripted import Script
from tests.waiting import LONG_S, is_alive, wait_until, workers

MakeWav = Callable[[float], Path]

REAL = "aiotranscribe"
PRETENDED = "tests.scripted_program"
COMMANDS = ("serve", "transcribe", "submit", "watch")
#: What every command with a scripted model is told.
MODEL = (*SCRIPTED[:2], "--workers", "1")


def command(program: str, *arguments: object) -> list[str]:
    """Return the command line."""
    return [sys.executable, "-m", program, *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Return an environment without settings of ours, in which nothing is downloaded."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIOTRANSCRIBE")}
    extra = {"LC_ALL": "C", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    return kept | extra | more


def run(
    *arguments: object,
    program: str = PRETENDED,
    cwd: Path = ROOT,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(program, *arguments),
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )


def script(settings: Script) -> list[str]:
    """Return the options that bring a script to the model."""
    return [
        argument for name, value in settings.fields().items() for argument in (f"--{name}", value)
    ]


QUICK = script(Script())


def check_error(done: subprocess.CompletedProcess[str], *parts: str, status: int = 1) -> None:
    """Check that a command has failed, saying why in words for people."""
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a command; whatever still runs is ended."""
    started: list[subprocess.Popen[str]] = []

    def go(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command(PRETENDED, *arguments),
            cwd=ROOT,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


# -- transcribe --------------------------------------------------------------------------------


def test_every_format_at_once(make_wav: MakeWav, tmp_path: Path) -> None:
    """Otherwise who needs subtitles and text has to transcribe twice."""
    path = make_wav(2.0)
    more = ("--output_format", "all", "--output_dir", tmp_path)
    done = run("transcribe", path, *MODEL, *QUICK, *more)
    assert done.returncode == 0, done
    assert done.stdout == "pt 0.0.\npt 1.0.\n"
    assert done.stderr == "", "what is no terminal gets no bar"
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{path.stem}.{file_ending(name)}" for name in FORMATS
    }
    assert json.loads((tmp_path / f"{path.stem}.json").read_text())["language"] == "pt"


def test_files_are_written_where_they_are_expected(make_wav: MakeWav, tmp_path: Path) -> None:
    """Otherwise the subtitles that were asked for are nowhere."""
    path = make_wav(2.0)
    arguments = ("transcribe", path, *MODEL, *QUICK)
    assert run(*arguments, "--output-format", "vtt", cwd=tmp_path).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == [f"{path.stem}.vtt"]
    assert run(*arguments, "--output_dir", "texts", cwd=tmp_path).returncode == 0
    assert (tmp_path / "texts" / f"{path.stem}.txt").read_text() == "pt 0.0.\npt 1.0.\n"


def test_one_bad_file_does_not_stop_the_others(make_wav: MakeWav, tmp_path: Path) -> None:
    """Otherwise a night's work is lost to one broken recording."""
    (tmp_path / "text.mp3").write_text("not a recording " * 1000)
    (tmp_path / "empty.wav").touch()
    names = ["none.wav", "text.mp3", "empty.wav"]
    files = [tmp_path / names[0], make_wav(2.0), *(tmp_path / name for name in names[1:])]
    more = ("--output_format", "txt", "--output_dir", tmp_path)
    done = run("transcribe", *files, make_wav(3.0), *MODEL, *QUICK, *more)
    check_error(done, *names, "not audio", "No such file", "empty")
    assert done.stdout == "pt 0.0.\npt 1.0.\npt 0.0.\npt 1.5.\n"
    assert {file.stem for file in tmp_path.glob("*.txt")} == {"noise-2.0", "noise-3.0"}


def test_the_options_of_a_job_have_whisper_s_names(make_wav: MakeWav, tmp_path: Path) -> None:
    """Otherwise a script written for the whisper command line does not work."""
    flags = ["--language", "de", "--word_timestamps", "True", "--temperature", "0"]
    more = ["--task", "transcribe", "--beam_size", "3", "--hotwords", "Zürich"]
    done = run("transcribe", make_wav(2.0), *MODEL, *QUICK, *flags, *more, cwd=tmp_path)
    assert done.returncode == 0, done
    assert done.stdout == "de 0.0.\nde 1.0.\n"
    assert list(tmp_path.iterdir()) == [], "files that nobody asked for"


def test_every_option_of_a_job_has_a_flag() -> None:
    """Otherwise an option can be set over HTTP only."""
    for name in ("transcribe", "submit"):
        text = run(name, "--help").stdout
        for option in Options.__struct_fields__:
            assert f"--{option}" in text, name


def test_subtitles_are_shaped_as_whisper_does_it(make_wav: MakeWav, tmp_path: Path) -> None:
    """Otherwise subtitles do not fit on the screen, or a script made for whisper breaks."""
    more = ("--output_format", "srt", "--output_dir", tmp_path, "--max_line_width", "4")
    assert run("transcribe", make_wav(2.0), *MODEL, *QUICK, *more).returncode == 0
    (path,) = tmp_path.iterdir()
    assert "\npt\n0.0.\n" in path.read_text()


def test_every_way_to_shape_subtitles_has_a_flag() -> None:
    """Otherwise it can be asked for over HTTP only."""
    text = run("transcribe", "--help").stdout
    for option in Shape.__struct_fields__:
        assert f"--{option}" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max_line_count", "2"], "max_line_width"),
        (["--max_line_width", "wide"], "max_line_width"),
        (["--task", "sing"], "task"),
        (["--language", "english"], "language"),
        (["--output_format", "docx"], "srt"),
        (["--device", "abacus"], "cuda"),
        (["--workers", "-1"], "workers"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_an_impossible_value_is_refused_by_name(
    make_wav: MakeWav, flags: list[str], said: str
) -> None:
    """Otherwise a mistake is noticed in the transcript."""
    done = run("transcribe", make_wav(2.0), *MODEL, *flags)
    check_error(done, said, status=done.returncode)
    assert done.returncode in {1, 2}
    assert done.stdout == ""


def test_a_model_that_is_not_there_is_said(make_wav: MakeWav) -> None:
    """Otherwise a misspelt model waits for ever, or shows a page of traceback."""
    done = run("transcribe", make_wav(2.0), "--model", "missing", *QUICK)
    check_error(done, "missing", "run something")


@pytest.mark.parametrize(
    ("language", "done"), [("C", "Transcribed 0:02"), ("pt_PT.UTF-8", "Transcritos 0:02")]
)
def test_a_terminal_shows_a_bar_and_the_text_above_it(
    make_wav: MakeWav, language: str, done: str
) -> None:
    """Otherwise somebody at a terminal does not see that it works, or cannot read the text."""
    slow = script(Script(segments=3, delay=0.1))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(PRETENDED, "transcribe", make_wav(2.0), *MODEL, *slow),
        cwd=ROOT,
        env=environment(TERM="xterm", LC_ALL=language),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := _read(ours):
            shown += piece
        assert process.wait(LONG_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = shown.decode().replace("\x1b[2K", "\n")  # which erases the bar
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for start in ("0.0", "0.7", "1.3"):
        assert re.search(rf"(?m)^pt {start}\.\s*$", text), text
    assert "noise-2.0.wav" in text
    assert "100%" in text
    assert done in text
    assert "━" in text


def _read(descriptor: int) -> bytes:
    """Read from a terminal; Linux ends it with an error."""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def test_ctrl_c_ends_it_at_once(
    make_wav: MakeWav, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Otherwise it has to be killed, and leaves workers behind."""
    endless = script(Script(segments=10_000, delay=0.05))
    process = start("transcribe", make_wav(2.0), *MODEL, *endless, PYTHONUNBUFFERED="1")
    assert process.stdout
    assert process.stdout.readline() == "pt 0.0.\n"
    pids = workers(process.pid)
    assert pids
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in error
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


# -- serve -------------------------------------------------------------------------------------


def test_serve_says_in_one_line_where_it_is(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Otherwise a person, or a script that waits for the line, does not know when to begin."""
    process = start("serve", *MODEL, "--port", "0", "--data-dir", tmp_path)
    assert process.stdout
    line = process.stdout.readline()
    assert re.fullmatch(r"aiotranscribe is ready at http://127\.0\.0\.1:[1-9]\d*/?\n", line)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=10)
    assert (process.returncode, rest) == (0, "")


def test_a_port_that_is_in_use_is_said(tmp_path: Path) -> None:
    """Otherwise the second server that somebody starts shows a page of traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", *MODEL, "--port", port, "--data-dir", tmp_path)
    check_error(done, str(port), "address already in use")


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    """Otherwise a mistyped folder shows a page of traceback."""
    (tmp_path / "file").touch()
    done = run("serve", *MODEL, "--port", "0", "--data-dir", tmp_path / "file")
    check_error(done, "file")


@pytest.mark.parametrize("name", ["nonsense", "nobody/nothing", "base"])
def test_a_server_without_its_model_ends(tmp_path: Path, name: str) -> None:
    """Otherwise a misspelt model leaves a server that is never ready."""
    began = time.monotonic()
    done = run(
        *("serve", "--model", name, "--port", "0", "--data-dir", tmp_path, "--workers", "1"),
        program=REAL,
        variables={"HF_HOME": str(tmp_path)},
    )
    check_error(done, name)
    assert done.stdout == ""
    assert time.monotonic() - began < 30


def test_every_setting_can_be_a_variable(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, make_wav: MakeWav
) -> None:
    """Otherwise a container cannot be configured."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    values = {
        "data_dir": str(tmp_path / "there"),
        "host": "127.0.0.2",
        "port": str(port),
        "model": "scripted scripted.en",
        "workers": "3",
        "device": "cpu",
        "compute_type": "int8",
        "model_idle_s": "0.5",
        "keep": "forever",
        "keep_audio": "false",
        "token": "me:0123456789abcdef",
        "token_file": str(tmp_path / "tokens"),
        "allow_anonymous": "false",
        "allow_origin": "https://app.example",
        "base_path": "/stt",
        "trusted_proxy": "10.0.0.0/8",
        "max_upload": "1MiB",
        "min_free_disk": "1MiB",
        "max_duration": "1h",
        "max_queue": "9",
        "keep_orphans": "true",
        "max_jobs_per_client": "2",
        "max_sockets_per_client": "2",
        "idle_s": "30",
        "worker_silence_s": "60",
        "log_format": "json",
    }
    (tmp_path / "tokens").write_text("# nobody\n")
    assert set(values) == {field.name for field in dataclasses.fields(Config)}
    variables = {f"AIOTRANSCRIBE_{name.upper()}": value for name, value in values.items()}
    process = start("serve", **variables)
    assert process.stdout
    assert f"http://127.0.0.2:{port}/stt" in process.stdout.readline()
    assert len(workers(process.pid)) == 3
    assert (tmp_path / "there" / "spool").is_dir()
    url = f"http://127.0.0.2:{port}/stt"
    arguments = ("submit", make_wav(2.0), "--watch", "--model", "scripted.en", *QUICK)
    names = {"AIOTRANSCRIBE_URL": url, "AIOTRANSCRIBE_TOKEN": values["token"]}
    done = run(*arguments, variables=names)
    assert done.stdout == "en 0.0.\nen 1.0.\n", done


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("PORT", "-1"),
        ("WORKERS", "x"),
        ("DEVICE", "abacus"),
        ("MODEL_IDLE_S", "x"),
    ],
)
def test_an_impossible_variable_is_refused(name: str, value: str) -> None:
    """Otherwise a server starts with other settings than it was given."""
    done = run("serve", variables={f"AIOTRANSCRIBE_{name}": value})
    check_error(done, value, name.lower().replace("_", "-"), status=2)


def test_the_command_line_goes_before_the_variables(make_wav: MakeWav) -> None:
    """Otherwise a variable that is set somewhere cannot be overridden."""
    variables = {"AIOTRANSCRIBE_MODEL": "missing"}
    done = run("transcribe", make_wav(2.0), *MODEL, *QUICK, variables=variables)
    assert done.stdout == "pt 0.0.\npt 1.0.\n", done


# -- submit and watch --------------------------------------------------------------------------


def test_submit_and_watch_show_the_text(scripted_server: Server, make_wav: MakeWav) -> None:
    """Otherwise a server can be used from a browser only."""
    slow = script(Script(segments=3, delay=0.1))
    expected = "pt 0.0.\npt 0.7.\npt 1.3.\n"
    url = ("--url", scripted_server.url)
    done = run("submit", make_wav(2.0), "--watch", *url, *slow)
    assert (done.returncode, done.stdout) == (0, expected)
    assert re.fullmatch(r"job [0-9a-f]{32}\n", done.stderr)

    done = run("submit", make_wav(2.0), *url, *slow)
    assert (done.returncode, done.stderr) == (0, "")
    job_id = done.stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{32}", job_id)
    for _ in range(2):
        done = run("watch", job_id, *url)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_a_job_that_fails_is_an_error(scripted_server: Server, make_wav: MakeWav) -> None:
    """Otherwise a script goes on with half a transcript."""
    fails = script(Script(segments=2, fail_at=1))
    done = run("submit", make_wav(2.0), "--watch", "--url", scripted_server.url, *fails)
    check_error(done, "as the script says")
    assert done.stdout == "pt 0.0.\n"


def test_a_server_speaks_the_language_of_the_terminal(
    scripted_server: Server, make_wav: MakeWav
) -> None:
    """Otherwise the bar is in a language that its reader may not know."""
    fails = script(Script(segments=2, fail_at=1))
    arguments = ("submit", make_wav(2.0), "--watch", "--url", scripted_server.url, *fails)
    assert "Falhou: " in run(*arguments, variables={"LC_ALL": "pt_BR"}).stderr


def test_what_the_server_refuses_is_said(scripted_server: Server, make_wav: MakeWav) -> None:
    """Otherwise the user has to guess what the server did not like."""
    url = ("--url", scripted_server.url)
    check_error(run("submit", make_wav(2.0), "--model", "huge", *url), "model", "scripted")
    check_error(run("watch", "nope", *url), "no job", "nope")


def test_a_server_that_is_not_there_is_said(make_wav: MakeWav) -> None:
    """Otherwise a mistyped address waits for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    check_error(run("submit", make_wav(2.0), "--url", f"http://{address}"), address)
    check_error(run("watch", "job", "--url", f"http://{address}"), address)
    check_error(run("watch", "job", "--url", "nonsense"), "nonsense")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """Otherwise a mistyped path shows a page of traceback."""
    check_error(run("submit", tmp_path / "none.wav"), "none.wav", status=2)


# -- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """Otherwise nobody learns what it can do."""
    for flag in ("--help", "-h"):
        done = run(name, flag, program=REAL)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Usage: aiotranscribe {name}" in done.stdout


def test_the_help_names_every_setting_and_its_variable() -> None:
    """Otherwise a setting is known to its author only."""
    text = " ".join(run("serve", "--help", program=REAL).stdout.split())
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
        assert f"AIOTRANSCRIBE_{field.name.upper()}" in text


def test_the_installed_program_is_this_one() -> None:
    """Otherwise the README's commands do not exist after an installation."""
    program = Path(sys.executable).with_name("aiotranscribe")
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert name in done.stdout
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert aiotranscribe.__version__ in done.stdout
