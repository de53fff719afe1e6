"""Send a real server what is no HTTP and no WebSocket, and see that it survives it.

By hand, from the folder above tests:

    python -m tests.fuzz.http --count 2000 --seed 7

prints how the connections ended, and what should not have been; then the exit status is 1. The
seed gives the same bytes again.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import struct
import sys
import tempfile
import wave
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import psutil

from aiotranscribe import Client
from tests.conftest import SCRIPTED, Server
from tests.scripted import Script

# The server closes idle connections after so long; none of ours may last much longer.
_IDLE_S, _DEADLINE_S = 1.0, 20.0
_AT_ONCE = 32
_MOST_GROWTH_BYTES = 50 << 20
# What the server may answer in the 500s: it is going away, or has no room (docs/protocol.md).
_DOCUMENTED = {503, 507}

_PATHS = (
    "/", "/health", "/ready", "/metrics", "/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/events",
    "/v1/jobs/x/transcript?format=srt", "/ws/transcription", "/static/aiotranscribe.js",
    "/v1/jobs?limit=-1&before=%00", "/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/../../etc/passwd",
    "/static/../app.py", "/%", "/%zz", "/\udcff", "//", "/v1/jobs/" + "a" * 9000, "*", "http://[::1",
    "http://other.example/v1/jobs", "/?" + "&".join(["a=b"] * 500),
)  # fmt: skip
_METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "BREW", "get", "G\0T", "")
_VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.99", "ICY", "")
_HEADERS = (
    "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: 5, 5",
    "Content-Length: 0x5", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: \x0bchunked", "Content-Encoding: gzip", "Content-Encoding: br",
    "Expect: 100-continue", "Expect: a miracle", "Connection: close, keep-alive",
    "Upgrade: websocket", "Upgrade: h2c", "Host: a", "Host: a:b:c", "Host:", "No colon here",
    " folded: header", ": no name", "X\0Y: z", "X-Long: " + "a" * 9000, "Range: bytes=5-1,-,9-",
    "If-None-Match: *", "If-Modified-Since: yesterday", "Cookie: " + "a=b; " * 500,
    "Origin: http://evil.test", "Origin: null", "Origin: http://[::1",
    "Accept-Language: \udcff;q=x",
    "Authorization: Bearer \udcff", "Authorization: Basic", "X-Forwarded-For: ,,\udcfe,1.2.3.4.5",
    "X-Forwarded-Host: a b", "Content-Type: multipart/form-data", "Content-Type: application/json",
    "Content-Type: multipart/form-data; boundary=x", "Content-Type: multipart/form-data; boundary=",
    "Content-Type: text/plain; charset=\udcff", "Last-Event-ID: \udcff", "Content-Length: 5",
    "Access-Control-Request-Method: DELETE", "Sec-WebSocket-Protocol: ,bearer.,\udcff",
    "Sec-WebSocket-Protocol: aiotranscribe.v1, bearer.!!!!",
)  # fmt: skip
_PART = '--x\r\nContent-Disposition: form-data; name="file"'
_BODIES = (
    "", "a", "RIFF" * 3000, "5\r\nRIFF!\r\n0\r\n\r\n", "zz\r\n", "ffffffffffffffff\r\na", "5\r\nab",
    "5;x=" + "y" * 9000 + "\r\nRIFF!\r\n0\r\n\r\n", "-1\r\na\r\n", "0\r\nTrailer: x\r\n\r\n",
    _PART + '; filename="a\r\n\r\nRIFF\r\n--x--\r\n', _PART + "\r\n\r\n\r\n--x--\r\n",
    _PART + "; filename*=utf-8''%ff\r\n\r\nRIFF\r\n--x--\r\n", _PART + "\r\n\r\nRIFF",
    _PART + "\r\nContent-Transfer-Encoding: base64\r\n\r\n!!\r\n--x--\r\n",
    _PART + "\r\nContent-Encoding: deflate\r\n\r\n!!\r\n--x--\r\n",
    "--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n--y--\r\n--x--\r\n",
    "--x\r\n" * 500, "--x--\r\n", "\r\n" * 500, "{" * 1000, "\x1f\x8b\x08" + "\0" * 500,
)  # fmt: skip

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


def frame(
    opcode: int,
    data: bytes = b"",
    *,
    head: int = 0x80,
    is_masked: bool = True,
    length: int | None = None,
) -> bytes:
    """Return a WebSocket frame (RFC 6455, section 5.2), right or wrong.

    Args:
        opcode: What it is.
        data: What is in it.
        head: FIN and the reserved bits.
        is_masked: As a client's must be.
        length: What it claims to hold, if not what it does.
    """
    length = len(data) if length is None else length
    mask = b"\x00\x00\x00\x00" if is_masked else b""
    bit = 0x80 if is_masked else 0
    if length < 126:
        size = bytes([bit | length])
    elif length < 1 << 16:
        size = bytes([bit | 126]) + struct.pack(">H", length)
    else:
        size = bytes([bit | 127]) + struct.pack(">Q", length)
    return bytes([head | opcode]) + size + mask + data


def handshake(host: str) -> bytes:
    """Return the request that opens a WebSocket."""
    return (
        f"GET /ws/transcription HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def request(random: Random) -> bytes:
    """Return something like an HTTP request."""
    body = random.choice(_BODIES)
    headers = random.choices(_HEADERS, k=random.choice((0, 1, 1, 2, 5)))
    if random.random() < 0.9:
        headers.append("Host: localhost")
    if random.random() < 0.5:
        headers.append(f"Content-Length: {len(body)}")
    if random.random() < 0.1:
        headers += [f"X-{number}: a" for number in range(200)]
    if random.random() < 0.7:
        line = f"{random.choice(_METHODS[:6])} {random.choice(_PATHS[:13])} HTTP/1.1"
    elif random.random() < 0.5:
        line = "POST /v1/jobs HTTP/1.1"
        headers.append("Content-Type: multipart/form-data; boundary=x")
    else:
        line = f"{random.choice(_METHODS)} {random.choice(_PATHS)} {random.choice(_VERSIONS)}"
    end = random.choice(("\r\n",) * 8 + ("\n", "\r"))
    text = end.join([line, *headers, "", body])
    data = bytearray(text.encode(errors="surrogateescape"))
    for _ in range(random.choice((0, 0, 0, 1, 5))):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data) * random.choice((1, 1, 1, 3))


def frames(random: Random) -> bytes:
    """Return something like what the client of a WebSocket says."""
    subscribe = b'{"subscribe": "*"}'
    sequences: Sequence[bytes] = (
        frame(TEXT, b"{", head=0) + frame(PING, b"?") + frame(CONTINUATION, b"}"),
        frame(TEXT, b"a", head=0) * 500,
        frame(CONTINUATION, b"a"),
        frame(TEXT, b"a", head=0) + frame(TEXT, b"b"),
        frame(TEXT, subscribe, is_masked=False),
        frame(BINARY, b"a" * 5000),
        frame(TEXT, b"a", length=1 << 63),
        frame(TEXT, b"a", length=(1 << 63) - 1),
        frame(TEXT, b"a" * 3000, head=0) * 3,
        frame(TEXT, b"\xff\xfe"),
        frame(TEXT, b"\xce", head=0) + frame(CONTINUATION, b"\xba\xff"),
        frame(TEXT, subscribe, head=random.choice((0x90, 0xA0, 0xC0, 0xF0))),
        frame(random.choice((3, 7, 11, 15)), b"a"),
        frame(PING, b"a" * 126),
        frame(PING, b"a", head=0),
        frame(CLOSE, b"\x03"),
        frame(CLOSE, struct.pack(">H", random.choice((0, 999, 1005, 1016, 2999, 65535))) + b"\xff"),
        frame(CLOSE, struct.pack(">H", 1000) + b"a" * 200),
        frame(CLOSE) + frame(TEXT, subscribe) * 5,
        frame(TEXT) * 5000,
        frame(TEXT, head=0) * 5000,
        frame(PING) * 5000,
        frame(PONG, b"a") * 5000,
        frame(TEXT, subscribe) * 1500,
        frame(TEXT, b'{"subscribe": "nope"}') * 1500,
        frame(TEXT, b'{"subscribe": ' + b"[" * 4000),
        random.randbytes(random.randint(1, 2000)),
    )
    return b"".join(random.choices(sequences, k=random.randint(1, 3)))


class Fuzz:
    """A server, and how it ended the connections that it was given."""

    def __init__(self, server: Server, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        #: What should not be.
        self.findings: list[str] = []
        self._server = server
        self._random = Random(seed)
        host, port = server.url.removeprefix("http://").split(":")
        self._address = host, int(port)

    async def run(self, count: int) -> None:
        """Try so many connections, and an honest job in the end."""
        process = psutil.Process(self._server.process.pid)
        await self._batch(max(50, count // 10))  # the first ones make it as large as it gets
        before = process.memory_info().rss
        await self._batch(count)
        await self._honest()
        grown = process.memory_info().rss - before
        self.counts["MiB grown"] = grown >> 20
        if grown > _MOST_GROWTH_BYTES:
            self.findings.append(f"the server has grown by {grown >> 20} MiB")
        log = (self._server.data_dir / "log").read_text(errors="replace")
        self.findings += re.findall(r"^\S+ \S+ (?:ERROR|CRITICAL) .*", log, re.MULTILINE)[:10]

    async def _batch(self, count: int) -> None:
        for first in range(0, count, _AT_ONCE):
            each = [self._connect(first + number) for number in range(min(_AT_ONCE, count - first))]
            await asyncio.gather(*each)

    async def _connect(self, number: int) -> None:
        random = Random(self._random.random())
        if is_socket := random.random() < 0.5:
            data = handshake(self._address[0]) + frames(random)
        else:
            data = request(random)
        end = random.choice(("wait", "wait", "wait", "half", "cut", "reset"))
        if end in {"cut", "reset"} and random.random() < 0.7:
            data = data[: random.randrange(len(data))]
        try:
            async with asyncio.timeout(_DEADLINE_S):
                answer = await self._send(data, end)
        except TimeoutError:
            # A socket that says nothing wrong may stay open as long as its peer wants.
            if not is_socket:
                self.findings.append(f"{number}: no end of {data[:200]!r}, {end}")
            answer = b"HTTP/1.1 open"
        status = answer[9:12].decode(errors="replace") or "nothing"
        self.counts[f"{'socket' if is_socket else 'request'} {status}"] += 1
        if status.startswith("5") and int(status) not in _DOCUMENTED:
            self.findings.append(f"{number}: {status} for {data[:500]!r}")

    async def _send(self, data: bytes, end: str) -> bytes:
        reader, writer = await asyncio.open_connection(*self._address)
        answer = b""
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
                if end == "reset":
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, linger
                    )
                    return b""
                if end == "half":
                    writer.write_eof()
                while piece := await self._read(reader, end):
                    answer = answer or piece
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return answer

    async def _read(self, reader: asyncio.StreamReader, end: str) -> bytes:
        """Read a piece; who cuts the line, or waits for a socket that is open, stays not long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05 if end == "cut" else 1.5 * _IDLE_S):
                return await reader.read(1 << 16)
        return b""

    async def _honest(self) -> None:
        """Check that the next honest job succeeds."""
        path = self._server.data_dir / "honest.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16_000))
        async with asyncio.timeout(60), Client(self._server.url) as client:
            job = await client.submit(path, Script().options())
            *_, last = [frame async for frame in client.watch(job.job_id)]
        if last.status != "completed":
            self.findings.append(f"the next honest job: {last}")


def serve(folder: Path) -> Server:
    """Return a server to try."""
    arguments = (*SCRIPTED, "--idle-s", str(_IDLE_S))
    return Server(folder, *arguments, program="tests.scripted_program")


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    server = serve(Path(tempfile.mkdtemp(prefix="fuzz-http-")))
    try:
        fuzz = Fuzz(server, arguments.seed)
        asyncio.run(fuzz.run(arguments.count))
    finally:
        server.kill()
    print(*sorted(fuzz.counts.items()), *fuzz.findings, sep="\n")
    sys.exit(bool(fuzz.findings))


if __name__ == "__main__":
    main()
