"""Ctrl-C in a command that keeps what it has finished."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
