"""One machine: one process a core with one thread each, which beats fewer processes with more."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

import torch

from zoo_builder.errors import D2NWGError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def process_executor(workers: int) -> ProcessPoolExecutor:
    # Torch's threads do not survive a fork. A server that only imports has none, and each worker forked from it begins
    # at once and shares the memory of what was imported. On macOS forks may crash in the system's libraries.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["zoo_builder.executors.ended_by_ctrl_c", "timm", __name__])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start)


@contextlib.contextmanager
def telling_of_dead_workers(error: type[D2NWGError] = D2NWGError) -> Iterator[None]:
    """Around work that is kept as it is done.

    Raises:
        error: a worker died, as one does that the system ends.
    """
    try:
        yield
    except BrokenExecutor as e:  # of Ray too
        raise error(
            "A worker died (of too little memory?). Run again, with fewer --workers: what is done is kept."
        ) from e


def _start() -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):
        # Of glibc: keep freed memory. Given back and fetched again at every step it cost a fifth of the time.
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once and without a traceback


def _end_with_the_parent() -> None:
    """One that is killed shuts no worker down: they would finish their tasks and wait for others for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
