"""The documentation says all there is, and what it says is so."""

import dataclasses
import json
import re

import msgspec
import pytest

import aiotranscribe.errors
from aiotranscribe import AiotranscribeError, Config, Frame, Options, Segment, Shape, create_app
from aiotranscribe.exports import FORMATS
from aiotranscribe.job import Status, Step
from aiotranscribe.web.openai import Fields
from tests.conftest import ROOT

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
OPTIONS = (ROOT / "docs" / "options.md").read_text()
README = (ROOT / "README.md").read_text()


def row(page: str, name: str) -> list[str]:
    """Return the cells of the table's row that begins with ``name``."""
    found = re.search(rf"^\| `{re.escape(name)}` \|(.*)\|$", page, re.MULTILINE)
    assert found, f"there is no row for {name}"
    return [cell.strip() for cell in found[1].split("|")]


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_every_setting_is_documented(field: "dataclasses.Field[object]") -> None:
    """A self-hoster would have to read the code to find a setting, or its default."""
    flag, variable, default, meaning = row(SETTINGS, field.name)
    assert flag == f"`--{field.name.replace('_', '-')}`"
    assert variable == f"`AIOTRANSCRIBE_{field.name.upper()}`"
    value = field.default
    if value is not None:
        assert default == f"`{' '.join(value) if isinstance(value, tuple) else value}`"
    assert meaning
    for choice in field.metadata.get("choices", ()):
        assert f"`{choice}`" in meaning


@pytest.mark.parametrize("field", msgspec.structs.fields(Options), ids=lambda field: field.name)
def test_every_option_is_documented(field: msgspec.structs.FieldInfo) -> None:
    """Whoever submits a job would not know what it can be told."""
    _, default, meaning = row(OPTIONS, field.name)
    if field.default is not None:
        assert default == f"`{str(field.default).lower()}`"
    assert meaning


def test_every_route_is_documented() -> None:
    """Whoever writes a client would miss a part of the server."""
    for route in create_app().router.routes():
        if route.method != "HEAD" and route.resource:
            address = f"`{route.method} {route.resource.canonical}`"
            assert address in PROTOCOL, address
            assert address in README, address


def test_every_key_and_value_of_a_frame_is_documented() -> None:
    """Whoever writes a client would guess what a key means, or crash on a value."""
    for struct in (Frame, Segment):
        for name in struct.__struct_fields__:
            assert f"`{name}`" in PROTOCOL, name
    for value in (*Status, *Step):
        assert f"`{value}`" in PROTOCOL, value


def test_every_format_and_field_is_documented() -> None:
    """Whoever has a client of OpenAI's would guess what becomes of what it sends."""
    for name in (*FORMATS, *Shape.__struct_fields__, *Fields.__struct_fields__):
        assert re.search(rf"^\| .*`{name}(\[\])?`.* \|", PROTOCOL, re.MULTILINE), name


def test_the_schema_is_that_of_the_frame() -> None:
    """Whoever makes a client from the schema would make a wrong one."""
    schema = json.loads((ROOT / "docs" / "frame.schema.json").read_text())
    assert schema == msgspec.json.schema(Frame), "run: python -m tests.test_docs"


def test_every_error_is_documented() -> None:
    """A program would meet a code that nobody told it about."""
    for error in vars(aiotranscribe.errors).values():
        if isinstance(error, type) and issubclass(error, AiotranscribeError):
            assert f"| `{error.code}` |" in PROTOCOL, error


def test_ci_runs_the_commands_of_the_readme() -> None:
    """The first thing that a newcomer types would fail."""
    commands = re.findall(r"^python3 -m venv .+", README, re.MULTILINE)
    assert len(commands) == 2
    script = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert f'"{command}"' in script


def test_links_lead_somewhere() -> None:
    """A reader would end at a page, or a part of one, that is not there."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, part = target.partition("#")
            other = page.parent / path if path else page
            assert other.exists(), (page, target)
            if not part:
                continue
            headings = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert part in slugs, (page, target)


def test_the_map_shows_every_module() -> None:
    """A newcomer would find code that the map does not have."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    package = ROOT / "aiotranscribe"
    for module in package.rglob("*.py"):
        if not module.stem.startswith("__"):
            assert f"`{module.relative_to(package)}`" in contributing, module


if __name__ == "__main__":
    text = json.dumps(msgspec.json.schema(Frame), indent=2)
    (ROOT / "docs" / "frame.schema.json").write_text(text + "\n")
