"""Loopback addresses for local pods, free ports, and the client of /progress."""

from __future__ import annotations

import asyncio
import hashlib
import socket

from hftitan_api.wire import Progress

LIMIT = 64 * 1024


def loopback(gang: str, index: int) -> str:
    """Return the loopback address of pod `index` (below 15,500) of a gang; `gang` may be any text.

    On Linux all addresses of 127.0.0.0/8 are local. So each pod has its own address and the same ports, as in a
    cluster. torchrun sorts the nodes of a gang by their addresses as text. The last two parts have three digits each,
    so this is the order of the indices.
    """
    digest = hashlib.sha256(gang.encode()).digest()
    high, low = divmod(index, 100)
    if not 0 <= high < 155:
        raise ValueError(f"pod {index}: a local run supports at most 15500 pods; use fewer nodes")
    return f"127.{1 + digest[0] % 254}.{100 + (digest[1] + high) % 155}.{100 + low}"


def port_is_free(address: str, port: int) -> bool:
    """Return whether a server can listen there. A server on all addresses (0.0.0.0) also uses the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


async def fetch_progress(address: str, port: int, timeout: float = 2.0) -> Progress | None:
    """Return the document at http://address:port/progress; None without a valid answer in time."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(address, port, limit=LIMIT)
            try:
                # HTTP/1.0: the answer is not chunked and ends with the connection.
                writer.write(f"GET /progress HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
                await writer.drain()
                answer = await reader.read(LIMIT)
                while chunk := await reader.read(LIMIT):
                    answer += chunk
                    if len(answer) > LIMIT:
                        return None
            finally:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.split(b" ", 2)[1:2] != [b"200"]:
            return None
        return Progress.model_validate_json(body)
    except (OSError, TimeoutError, ValueError):
        return None
