"""Talk to a server from Python: submit, watch through any interruption, fetch."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

from aiotranscribe import frame as frames
from aiotranscribe.errors import ServerError
from aiotranscribe.exports import PLAIN, Format, Shape
from aiotranscribe.frame import DEFAULT, Frame
from aiotranscribe.job import Options

#: A server says something every 15 s; after this much silence the connection is dead.
SILENCE_S = 45.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 15.0


class Client:
    """A server at ``url``; use it with ``async with``.

    Args:
        url: Where the server is, with the path it is mounted at, if any.
        token: What lets you in, if the server wants one.
        language: Of the messages for people: ``en`` or ``pt``.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        language: str = DEFAULT,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Accept-Language": language}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    async def __aenter__(self) -> "Client":
        # Uploads may take as long as they need; sockets have their own time-outs.
        timeout = aiohttp.ClientTimeout(sock_connect=10)
        self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def submit(self, recording: Path | str, options: Options | None = None) -> Frame:
        """Send a recording; return the new job's first frame. It is safe when this returns.

        Raises:
            ServerError: the server refuses it; the message says why.
        """
        path = Path(recording)
        query = {"filename": path.name} | _query(options or Options())
        with await asyncio.to_thread(path.open, "rb") as file:
            answer = await self._ask("POST", "/v1/jobs", params=query, data=file)
        return frames.decode(answer)

    async def watch(self, job_id: str, since: str | None = None) -> AsyncIterator[Frame]:
        """Iterate over a job's frames to its end, through broken connections and restarts.

        Handle every frame alike: ``mine[frame.offset:] = frame.segments``.

        Raises:
            ServerError: there is no such job, or the server wants another token.
        """
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                try:
                    async with await self._connect(job_id, since) as socket:
                        while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                            frame = frames.decode(message.data)
                            since, wait_s = frame.cursor, _FIRST_WAIT_S
                            yield frame
                            if frame.status.is_terminal:
                                return
                except aiohttp.WSServerHandshakeError as error:
                    if error.status < 500:
                        await self.get(job_id)  # a handshake's refusal has no body: ask again
                        raise ServerError(
                            error.message, code="refused", http_status=error.status
                        ) from error
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # the job goes on without us: come back
            # Jitter, lest all watchers of a restarted server come back at the same moment.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def get(self, job_id: str) -> Frame:
        """Return a job's frame with all of its segments so far.

        Raises:
            ServerError: there is no such job.
        """
        return frames.decode(await self._ask("GET", f"/v1/jobs/{job_id}"))

    async def transcript(self, job_id: str, format: Format = "txt", shape: Shape = PLAIN) -> str:
        """Return the text of a finished job in a format, subtitles in a shape.

        Raises:
            ServerError: there is no such job, or it is still at work.
        """
        query = {"format": format} | _query(shape)
        answer = await self._ask("GET", f"/v1/jobs/{job_id}/transcript", params=query)
        return answer.decode()

    async def cancel(self, job_id: str) -> Frame:
        """Stop a job, keeping its text so far; raises :class:`ServerError` if there is none."""
        return frames.decode(await self._ask("POST", f"/v1/jobs/{job_id}/cancel"))

    async def delete(self, job_id: str) -> None:
        """Stop and erase a job; raises :class:`ServerError` if there is none."""
        await self._ask("DELETE", f"/v1/jobs/{job_id}")

    async def _connect(self, job_id: str, since: str | None) -> aiohttp.ClientWebSocketResponse:
        async with asyncio.timeout(SILENCE_S):
            return await self._session.ws_connect(
                f"{self._url}/ws/transcription/{job_id}",
                params={"since": since} if since else None,
                timeout=aiohttp.ClientWSTimeout(ws_receive=SILENCE_S, ws_close=2),
                max_msg_size=0,  # a first frame holds the whole text
            )

    async def _ask(self, method: str, path: str, **more: Any) -> bytes:
        async with self._session.request(method, self._url + path, **more) as response:
            body = await response.read()
        if response.status < 400:
            return body
        try:
            told = msgspec.json.decode(body)
            message, code = told["detail"], told["code"]
        except (msgspec.DecodeError, LookupError, TypeError):
            message, code = f"{response.status} {response.reason}", "unknown"
        raise ServerError(message, code=code, http_status=response.status)


def _query(options: msgspec.Struct) -> dict[str, str]:
    """What is set of some options, as a query has it."""
    return {
        name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in msgspec.to_builtins(options).items()
    }
