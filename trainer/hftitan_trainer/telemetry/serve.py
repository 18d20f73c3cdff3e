"""The HTTP server of each pod's local rank 0: /metrics, /healthz, and /progress on node 0.

It starts before torch is imported, so a scrape during the start-up shows a trainer in phase `starting`.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from hftitan_trainer.telemetry.run_observer import RunObserver

logger = logging.getLogger(__name__)


LONGEST_WAIT_SECONDS = 60.0
"""Longest wait for the last scrape. The pod holds its GPUs meanwhile."""


class Scrapes:
    """Records scrapes of /metrics, so that the last values of a run are scraped before its process exits."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=5)
        self._count = 0
        self._came = threading.Condition()

    def note(self) -> None:
        with self._came:
            self._times.append(time.monotonic())
            self._count += 1
            self._came.notify_all()

    def wait_for_one_more(self) -> None:
        """Wait for the next scrape, or until it is overdue. Return at once if there are no regular scrapes."""
        with self._came:
            gaps = [after - before for before, after in pairwise(self._times)]
            if gaps:
                seen = self._count
                self._came.wait_for(lambda: self._count > seen, min(1.5 * max(gaps), LONGEST_WAIT_SECONDS))


def bind_address(pod_ip: str | None) -> str:
    """Return the address to listen on.

    A loopback address belongs to a pod of the local runner: listen only there. Any other belongs to a pod with its own
    network: listen on all addresses, since `kubectl port-forward` connects through loopback. None: only this machine.
    """
    if pod_ip is None:
        return "127.0.0.1"
    address = ipaddress.ip_address(pod_ip)
    if address.is_loopback:
        return pod_ip
    return "::" if address.version == 6 else "0.0.0.0"


def serve(
    observer: RunObserver, pod_ip: str | None, port: int, *, progress: bool, scrapes: Scrapes | None = None
) -> ThreadingHTTPServer:
    """Start the server in a daemon thread. If the port is in use, log a warning and use a free one."""
    scrapes = scrapes or Scrapes()
    registry = CollectorRegistry()
    registry.register(observer)

    class Handler(BaseHTTPRequestHandler):
        server_version = "hftitan"
        sys_version = ""
        timeout = 30

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, encode(registry), content_type)
                scrapes.note()
            elif path == "/progress" and progress:
                self._answer(200, observer.progress().model_dump_json(by_alias=True).encode(), "application/json")
            elif path == "/progress":
                self._answer(404, b"the pod of node 0 serves /progress\n", "text/plain")
            elif path == "/healthz":
                self._answer(200, b"ok\n", "text/plain")
            else:
                self._answer(404, b"/metrics, /progress, /healthz\n", "text/plain")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Do not log requests: scrapes come every few seconds."""

    host = bind_address(pod_ip)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def server_bind(self) -> None:
            # After an in-place restart, connections of the previous process may still occupy the port.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)  # http.server would look up its own host name, which can take seconds
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = str(host), self.server_address[1]

        def handle_error(self, request: object, client_address: object) -> None:
            """Do not log clients that disconnect."""

    try:
        server = Server((host, port), Handler)
    except OSError as error:
        server = Server((host, 0), Handler)
        logger.warning(
            "spec.monitoring.port: %s:%d cannot be used (%s); serving on port %d instead",
            host, port, error.strerror, server.server_port,
        )  # fmt: skip
    threading.Thread(target=server.serve_forever, name="hftitan-http", daemon=True).start()
    return server
