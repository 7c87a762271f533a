"""TCP ports for a job's rendezvous on this host."""

import secrets
import socket

FIRST, COUNT = 10000, 10000
"""Below the ports that are derived from a job's number (`environment.py`), and below those that Linux hands out by itself:
what is asked of the kernel (port 0) may go to another process's connection before the job listens on it."""


def free_port() -> int:
    """A port from `FIRST` on that nobody listens on."""
    while True:
        port = FIRST + secrets.randbelow(COUNT)
        with socket.socket() as attempt:
            try:
                attempt.bind(("", port))
            except OSError:
                continue
            return port
