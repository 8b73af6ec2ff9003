"""End a run whose workers do not come up, or whose Ray is gone, and say why.

Ray itself waits for ever for the former, and ends the process without a word for the latter.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray

from harness.cluster import ray_internals
from harness.study.errors import RayLostError

START = 75.0
"""Seconds that the first worker may take to come up, once there is room for it."""

LOOK_EVERY = 0.5
"""Seconds between two looks at Ray's processes."""

KNOCK_EVERY = 5.0
"""Seconds between two attempts to reach the head of a cluster, and of each attempt."""

SILENCE = 45.0
"""Seconds without an answer after which a head is lost: a restarted one may come back before, and Ray
ends the process after 60, with a line about itself."""


def describe_silence(where: str) -> str:
    """That no worker came up, and what Ray's logs on this machine say about it."""
    logs = ray_internals.find_logs()
    said = "\n  ".join(ray_internals.read_complaints()) or "nothing; look for it on that machine"
    return f"no worker came up on {where} within {START:.0f} s. {logs} says:\n  {said}"


@contextmanager
def ending_with_ray() -> Iterator[None]:
    """End this process if one of Ray's that it needs ends within the block.

    Its main thread may be waiting in Ray's C++ then, so that no exception would be heard.
    """
    processes = ray_internals.open_processes()
    head = ray.get_runtime_context().gcs_address
    over = threading.Event()

    def watch() -> None:
        heard = knocked = time.monotonic()
        while not over.wait(LOOK_EVERY):
            ended, _, _ = select.select(processes.values(), [], [], 0)
            if ended and not over.is_set():
                names = " and ".join(name for name, each in processes.items() if each in ended)
                _end_process(
                    f"Ray's {names} ended under the run: killed, or out of memory (dmesg and "
                    f"{ray_internals.find_logs()} may say)"
                )
            if "gcs_server" in processes or time.monotonic() < knocked + KNOCK_EVERY:
                continue
            knocked = time.monotonic()
            if _answers(head):
                heard = time.monotonic()
            elif time.monotonic() > heard + SILENCE and not over.is_set():
                _end_process(
                    f"the head of the cluster, {head}, was lost under the run: its machine, its "
                    "network or its gcs_server (/tmp/ray/session_latest/logs there may say)"
                )

    thread = threading.Thread(target=watch, name="guard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for descriptor in processes.values():
            os.close(descriptor)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_EVERY).close()
        return True
    return False


def _end_process(reason: str) -> None:
    error = RayLostError(f"{reason}. What is finished is kept. To go on, give the command again")
    screen = sys.__stderr__
    if screen is not None:
        show_cursor = "\x1b[?25h" if screen.isatty() else ""
        print(f"{show_cursor}\nharness.run: {error}", file=screen, flush=True)
    ray_internals.end_own_processes()
    os._exit(error.exit_code)
