"""Ports for processes that tests start."""

import itertools
import os
import socket

_turns = itertools.count()


def free_port() -> int:
    """A port that nobody listens on, below those that systems hand out to whoever asks for any.

    Between this answer and the moment a process listens there, another worker's test may ask for any port:
    it gets one of 32768 and more, and calls of this function in other processes begin elsewhere.
    """
    while True:
        port = 20_000 + (101 * os.getpid() + next(_turns)) % 12_000
        try:
            with socket.create_server(("", port)):
                return port
        except OSError:  # in use
            continue
    raise AssertionError
