"""Loopback addresses for local pods, free ports, and the client of /progress."""

from __future__ import annotations

import asyncio
import hashlib
import socket

from hftitan_api.wire import Progress

LIMIT = 64 * 1024


def loopback(gang: str, index: int) -> str:
    """The loopback address of pod `index` (below 15,500) of a gang, which may be named by any text.

    Every address of 127.0.0.0/8 is local on Linux, so each pod has one of its own, as in a cluster, and the same port
    serves in all of them. torchrun numbers the nodes of a gang in the order of their addresses as text: with three
    digits in both parts that count, that order is the pods'.
    """
    digest = hashlib.sha256(gang.encode()).digest()
    high, low = divmod(index, 100)
    if not 0 <= high < 155:
        raise ValueError(f"pod {index}: a local run has at most 15500")
    return f"127.{1 + digest[0] % 254}.{100 + (digest[1] + high) % 155}.{100 + low}"


def port_is_free(address: str, port: int) -> bool:
    """Whether a server could listen there; another one on all addresses (0.0.0.0) also takes the port."""
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
    """The document at http://address:port/progress; None when nobody answers in time, or not sensibly."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(address, port, limit=LIMIT)
            try:
                # HTTP/1.0: the answer ends with the connection, unchunked.
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
