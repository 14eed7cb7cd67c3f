"""Ctrl-C in a command that keeps what it has finished, and SIGTERM in any."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

Options = ParamSpec("Options")


def resumable(command: Callable[Options, None]) -> Callable[Options, None]:
    """One that says so when it is interrupted; of others nothing is there to go on from."""

    @functools.wraps(command)
    def run(*args: Options.args, **options: Options.kwargs) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as e:
            raise KeyboardInterrupt("What was finished is kept: the same command goes on from there.") from e

    return run


@contextmanager
def ended_alike() -> Iterator[None]:
    """Inside, SIGTERM, which schedulers and `timeout` send, ends a command as Ctrl-C does: by itself it would leave
    what lies in temporary folders. A terminal sends Ctrl-C to worker processes too, and so does this: the command would
    wait for what they are at, which may be many minutes."""
    if threading.current_thread() is not threading.main_thread():  # where no signal comes
        yield
        return

    def end(*_: object) -> None:
        for worker in multiprocessing.active_children():
            if not worker.daemon:  # those of a DataLoader, which end with it
                worker.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
