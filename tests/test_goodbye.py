"""How a socket ends."""

import pytest

from tests.conftest import SAMPLE, WebClient

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_goodbye_is_always_heard(web_client: WebClient) -> None:
    """A watcher would see the connection cut (1006) after the last frame, and come back for more.

    It depends on who is faster, so it is tried often.
    """
    for _ in range(30):
        async with web_client.post("/v1/jobs", data=SAMPLE.read_bytes()) as response:
            job_id = (await response.json())["job_id"]
        async with web_client.ws_connect(f"/ws/transcription/{job_id}") as socket:
            await socket.receive()
            async with web_client.delete(f"/v1/jobs/{job_id}"):
                pass
            async for message in socket:
                last = message.json()
            assert (last["status"], socket.close_code) == ("cancelled", 1000)
