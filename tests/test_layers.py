"""The shape of the package: who may import whom, and what is public."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiotranscribe

PACKAGE = Path(aiotranscribe.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}

PURE = {
    "errors",
    "job",
    "transcript",
    "progress",
    "sentences",
    "frame",
    "exports",
    "config",
    "course",
    "outlook",
    "engine.spans",
    "engine.scheduler",
    "engine.messages",
}
# What a pure module must not touch: loops, disks, processes, networks.
IMPURE = {"asyncio", "sqlite3", "multiprocessing", "aiohttp", "socket", "subprocess", "threading"}
# Slow to import, and where hostile media is parsed: only for workers, and only when needed.
HEAVY = {"faster_whisper", "ctranslate2", "tqdm", "onnxruntime", "huggingface_hub"}
HEAVY_HOMES = {"engine.whisper", "engine.audio", "engine.model"}


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the full name of everything that is imported anywhere below ``node``."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            assert inner.level == 0, "imports are written in full, so that this test sees them"
            yield from (f"{inner.module}.{alias.name}" for alias in inner.names)


def tree(module: str) -> ast.Module:
    """Return a module of the package as it is written."""
    return ast.parse(MODULES[module].read_text("utf-8"))


def tops(node: ast.AST) -> set[str]:
    """Return the top-level packages that are imported below ``node``."""
    return {name.partition(".")[0] for name in imports(node)}


def ours(module: str) -> set[str]:
    """Return the modules of this package that ``module`` imports."""
    found = set()
    for name in imports(tree(module)):
        parts = name.split(".")[1:] if name.startswith("aiotranscribe.") else []
        found |= {
            ".".join(parts[:depth])
            for depth in range(1, len(parts) + 1)
            if ".".join(parts[:depth]) in MODULES
        }
    return found


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: neither functions nor what only mypy reads."""
    for inner in ast.iter_child_nodes(node):
        is_function = isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not is_function and not _is_for_types(inner):
            yield inner
            yield from at_import(inner)


def _is_for_types(node: ast.AST) -> bool:
    """Whether this is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_the_rules_speak_of_modules_that_exist() -> None:
    """Otherwise a renamed module escapes the rules below."""
    others = {"hub", "service", "conductor", "client", "cli", "web.app"}
    assert MODULES.keys() >= PURE | HEAVY_HOMES | others


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_touches_nothing(module: str) -> None:
    """Otherwise the rules of the product can only be tested, and trusted, with a server around."""
    assert not tops(tree(module)) & (IMPURE | HEAVY | {"av"})
    assert ours(module) <= PURE


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("engine.")))
def test_the_engine_knows_nothing_above_it(module: str) -> None:
    """Otherwise workers load the web framework, and the engine cannot be used without it."""
    above = {name for name in MODULES if name.startswith("web.")}
    above |= {"service", "conductor", "hub", "cli", "client", "store", "spool"}
    assert not ours(module) & above
    assert "aiohttp" not in tops(tree(module))


def test_the_worker_sees_only_what_is_pure_or_its_own() -> None:
    """Otherwise a worker process could change the state that only the server may change."""
    assert ours("engine.worker") <= PURE | {
        "engine.bounds",
        "engine.whisper",
        "engine.audio",
        "engine.memory",
        "engine.pcm",
    }
    assert ours("engine.whisper") <= PURE | {"engine.memory", "engine.model"}
    assert ours("engine.audio") | ours("engine.model") <= PURE


def test_the_hub_knows_no_sockets_and_no_jobs() -> None:
    """Otherwise one transport gets frames that another does not."""
    assert not tops(tree("hub")) & {"aiohttp", "socket"}
    assert ours("hub") == {"errors", "frame", "transcript"}


@pytest.mark.parametrize("module", ["service", "conductor", "client"])
def test_the_library_knows_no_server(module: str) -> None:
    """Otherwise a program that only transcribes, or only asks, drags the server in."""
    above = {name for name in MODULES if name.startswith("web.")} | {"cli"}
    assert not ours(module) & above


def test_the_client_needs_no_engine() -> None:
    """Otherwise a machine that only asks a server must be able to transcribe."""
    assert ours("client") <= PURE


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_are_imported_by_workers_when_they_are_needed(module: str) -> None:
    """Otherwise the server takes seconds and hundreds of megabytes to start."""
    if module in HEAVY_HOMES:
        assert not {name for node in at_import(tree(module)) for name in _names(node)} & HEAVY
    else:
        assert not tops(tree(module)) & HEAVY


def _names(node: ast.AST) -> set[str]:
    """Return the packages that this one statement imports."""
    return tops(node) if isinstance(node, ast.Import | ast.ImportFrom) else set()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("aiotranscribe", {"aiohttp", "av", "numpy", "msgspec"}),
        ("aiotranscribe.client", {"av", "numpy"}),
        ("aiotranscribe.cli", {"aiohttp", "av", "rich"}),
        ("aiotranscribe.service", {"aiohttp"}),
        ("aiotranscribe.engine.worker", {"aiohttp", "click"}),
        ("aiotranscribe.web.app", set()),
    ],
)
def test_an_import_loads_no_more_than_it_must(module: str, unwanted: set[str]) -> None:
    """Otherwise a command takes seconds to say ``--help``, and every worker pays for the web."""
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(run.stdout.split())
    assert module in loaded
    assert not loaded & (HEAVY | unwanted)


# -- what is public --------------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    """Otherwise someone's program breaks on an update, at a name that we took away."""
    assert aiotranscribe.__all__ == [
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


@pytest.mark.parametrize("name", aiotranscribe.__all__)
def test_a_public_name_is_there(name: str) -> None:
    """Otherwise ``from aiotranscribe import …`` fails for a name that the documentation has."""
    assert getattr(aiotranscribe, name).__name__ == name


def test_a_name_that_is_not_there_is_an_ordinary_mistake() -> None:
    """Otherwise ``hasattr`` and tools that look around fail in strange ways."""
    assert not hasattr(aiotranscribe, "Transcribber")
