"""A report on the loopback interface that follows its runs.

It answers two addresses, the page and its version, and has no others: no path of a request ever becomes a file's. A
request must name this host, so that a web site whose name was pointed at 127.0.0.1 (DNS rebinding) gets nothing.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from megatron_compete.common.errors import CompeteError

HOST = "127.0.0.1"
SHARE = 4.0
"""Times as long as a page took to make, it is shown at least: one that takes long must not take a core."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class LivePage:
    """The present page and its version; made anew when it is asked for and its files have changed.

    Args:
        version: of the files now.
        make: the page of a version.
    """

    def __init__(self, version: Callable[[], str], make: Callable[[str], str]) -> None:
        self._find, self._make = version, make
        self._lock = threading.Lock()
        self._version, self._page = "", ""
        self._rest_until = 0.0

    def now(self) -> tuple[str, str]:
        """Version and page."""
        with self._lock:
            version = self._find()
            if version != self._version and time.monotonic() >= self._rest_until:
                began = time.monotonic()
                self._page, self._version = self._make(version), version
                took = time.monotonic() - began
                self._rest_until = began + took * (1 + SHARE)
            return self._version, self._page


class ReportServer(ThreadingHTTPServer):
    """Serves a live page on the loopback interface.

    Args:
        port: 0: any that is free.
    Raises:
        CompeteError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise CompeteError(f"--port {port} cannot be used: {error.strerror}; give another, or 0 for any") from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def is_named(self, host: str | None) -> bool:
        """Whether a request's Host header names this server."""
        return host in {f"{name}:{self.server_port}" for name in (HOST, "localhost")}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ReportServer
    server_version, sys_version = "megatron-compete", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """The page or its version."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.is_named(hosts[0]):
            self._answer(403, "this server answers requests to 127.0.0.1 and localhost alone\n")
        elif self.path not in ("/", "/version"):
            self._answer(404, "there is nothing but / and /version\n")
        else:
            try:
                version, page = self.server.page.now()
            except Exception as error:  # whatever a run's files do, the server goes on and says so
                self._answer(500, f"the report cannot be made: {error}\n")
                return
            if self.path == "/":
                self._answer(200, page, "text/html")
            else:
                self._answer(200, json.dumps({"version": version}), "application/json")

    def _answer(self, code: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line for every poll would hide what matters."""
