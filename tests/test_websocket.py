"""What RFC 6455 wants of a server whose client does not keep to it. Raw sockets, a real server."""

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conftest import WebClient
from tests.fuzz.http import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, handshake
from tests.test_web_auth import serving
from tests.waiting import LONG_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WebClient]:
    """A client of an application for the whole module."""
    folder: Path = tmp_path_factory.mktemp("data")
    async with serving(folder) as client:
        yield client


async def said(client: WebClient, data: bytes) -> list[tuple[int, bytes]]:
    """Open a socket, send these bytes; return the opcode and payload of every frame to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    frames = []
    try:
        async with asyncio.timeout(LONG_S):
            writer.write(handshake("127.0.0.1"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in head
            writer.write(data)
            while head := await reader.read(2):
                length = head[1]
                if length == 126:
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                frames.append((head[0] & 0xF, await reader.readexactly(length)))
                if frames[-1][0] == CLOSE:
                    break
    finally:
        writer.close()
    return frames


# By the sections of RFC 6455 that say so.
WRONG = {
    "5.2 a reserved bit": (frame(TEXT, b"{}", head=0xC0), 1002),
    "5.2 a reserved opcode": (frame(3, b"a"), 1002),
    "5.2 a reserved control opcode": (frame(11, b"a"), 1002),
    "5.4 a continuation of nothing": (frame(CONTINUATION, b"a"), 1002),
    "5.4 a message within a message": (frame(TEXT, b"a", head=0) + frame(TEXT, b"b"), 1002),
    "5.5 a control frame in fragments": (frame(PING, b"a", head=0), 1002),
    "5.5 a control frame that is too long": (frame(PING, b"a" * 126), 1002),
    "5.5.1 half a close code": (frame(CLOSE, b"\x03"), 1002),
    "7.4.2 a close code that nobody has": (frame(CLOSE, struct.pack(">H", 1016)), 1002),
    "8.1 text that is no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "8.1 text that is no UTF-8 in fragments": (
        frame(TEXT, b"\xce", head=0) + frame(CONTINUATION, b"\xba\xff"),
        1007,
    ),
    "10.4 a message that is too long": (frame(TEXT, b"a" * 5000), 1009),
    "10.4 a message in fragments that is too long": (frame(TEXT, b"a" * 3000, head=0) * 2, 1009),
    "10.4 a length that no memory holds": (frame(BINARY, b"", length=(1 << 63) - 1), 1009),
}


@pytest.mark.parametrize("name", WRONG)
async def test_who_breaks_the_protocol_is_told_how(client: WebClient, name: str) -> None:
    """What is wrong would be taken for something else, or block the socket, or fill the memory."""
    data, code = WRONG[name]
    *_, (opcode, payload) = await said(client, data)
    assert opcode == CLOSE
    assert struct.unpack(">H", payload[:2]) == (code,)


async def test_control_frames_may_come_within_a_message(client: WebClient) -> None:
    """A proxy that pings while a message is on its way would end the socket (section 5.4)."""
    start, end = b'{"unsubscr', b'ibe": 1}'
    data = frame(TEXT, start, head=0) + frame(PING, b"?") + frame(CONTINUATION, end) + frame(CLOSE)
    frames = await said(client, data)
    assert frames[0] == (PONG, b"?")
    assert frames[1][0] == TEXT
    assert frames[-1][0] == CLOSE


async def test_a_goodbye_is_answered(client: WebClient) -> None:
    """Every client would take the end of its socket for a broken connection (section 5.5.1)."""
    *_, last = await said(client, frame(CLOSE, struct.pack(">H", 1000) + b"bye"))
    assert last[0] == CLOSE
