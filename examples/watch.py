"""Watch a job with nothing but aiohttp: python examples/watch.py JOB_ID [URL].

Everything that a client has to do is here: handle each frame, and come back after a break.
"""

import asyncio
import sys

import aiohttp


async def watch(job_id: str, url: str = "http://127.0.0.1:8000") -> None:
    """Print how far the job is, and in the end its text."""
    mine: list[str] = []  # the segments so far
    params: dict[str, str] = {}
    status = "queued"
    async with aiohttp.ClientSession() as session:
        while status in {"queued", "running"}:
            try:
                async with session.ws_connect(
                    f"{url}/ws/transcription/{job_id}",
                    params=params,
                    heartbeat=20,  # notices a connection that died without a word
                    max_msg_size=0,  # the first frame holds the whole text
                ) as socket:
                    while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                        frame = message.json()
                        status, params["since"] = frame["status"], frame["cursor"]
                        mine[frame["offset"] :] = [each["text"] for each in frame["segments"]]
                        print(f"{frame['progress_percentage']:5.1f} %  {frame['message']}")
            except aiohttp.ClientError as error:
                if isinstance(error, aiohttp.WSServerHandshakeError) and error.status < 500:
                    sys.exit(f"the server refuses to tell about {job_id}: {error.status}")
                await asyncio.sleep(1)  # the server is restarting, or the network is down
    print("".join(mine).strip())


if __name__ == "__main__":
    asyncio.run(watch(*sys.argv[1:]))
