"""A little of what ``tests/fuzz`` does at length, by hand."""

from pathlib import Path

from tests.fuzz import http, media

SEED = 20


async def test_damaged_recordings_hurt_nobody(tmp_path: Path) -> None:
    """A file that is broken, or lies about itself, could end or block the workers of all others."""
    fuzz = media.Fuzz(tmp_path, SEED)
    await fuzz.run(100)
    assert not fuzz.findings, f"once more: python -m tests.fuzz.media --count 100 --seed {SEED}"
    assert fuzz.counts["undecodable"]
    assert fuzz.counts["prepared"]


async def test_what_is_no_http_and_no_websocket_hurts_nobody(tmp_path: Path) -> None:
    """Anybody who can connect could end the server, stop it, or make it grow without end."""
    server = http.serve(tmp_path)
    try:
        fuzz = http.Fuzz(server, SEED)
        await fuzz.run(100)
    finally:
        server.kill()
    assert not fuzz.findings, f"once more: python -m tests.fuzz.http --count 100 --seed {SEED}"
    assert fuzz.counts["request 400"]
    assert fuzz.counts["socket 101"]
