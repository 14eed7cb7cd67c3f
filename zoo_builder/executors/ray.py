"""Many machines: a Ray cluster. A task whose machine dies is run again on another."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any

from zoo_builder.errors import ZooError

RETRIES = 3


class RayExecutor(Executor):
    """Tasks of one core and `gpus` each, on the cluster at `address` (what `ray start` printed), or on a new local one
    of `workers` cores, or of all where that is 0.

    Raises:
        ZooError: Ray is not installed, or no cluster answers at the address, or it is to have another number of cores.
    """

    def __init__(self, address: str | None = None, gpus: int = 0, workers: int = 0) -> None:
        if address and workers:
            raise ZooError(
                f"The Ray cluster at {address} has the cores that it was started with, and no {workers} workers. Leave "
                "--workers out, or --address."
            )
        try:
            import ray
        except ImportError as e:
            raise ZooError("The Ray executor needs Ray. Install it with: pip install 'd2nwg-init[zoo]'") from e
        self._ray = ray
        self._began = not ray.is_initialized()
        if self._began:
            _check_answers(address)
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
            if address:
                ray.init(address, **quiet)
            else:  # of a cluster that ends with the build nobody opens the dashboard
                ray.init("local", num_cpus=workers or None, include_dashboard=False, **quiet)
        self._call = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As any executor; a BrokenExecutor where a task's worker died at each try."""
        done: Future[Any] = Future()
        self._call.remote(fn, *args, **kwargs).future().add_done_callback(lambda ours: self._pass_on(ours, done))
        return done

    def _pass_on(self, ours: Future[Any], done: Future[Any]) -> None:
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        error = ours.exception()
        if isinstance(error, WorkerCrashedError | OutOfMemoryError | NodeDiedError):
            died = BrokenExecutor(f"A worker of Ray died {RETRIES + 1} times: {error}")
            died.__cause__ = error
            done.set_exception(died)
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(ours.result())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._began:
            self._ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Ray itself tries for minutes and then ends the process."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as e:
        raise ZooError(f"No Ray cluster answers at {address} ({e}). Start one with: ray start --head") from e


def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    return fn(*args, **kwargs)
