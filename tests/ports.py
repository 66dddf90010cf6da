"""Ports for servers that do not choose one themselves."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

# The system chooses higher ones for everything that does not name a port, also while our server still starts.
_OWN = range(12_000, 20_000)


def free_port() -> int:
    """Return a free port that the system gives to no other process by itself."""
    for port in random.sample(_OWN, 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError(f"no free port in {_OWN}")
