"""How long a build will take and how much disk, from a few steps timed here."""

from __future__ import annotations

import time

import torch

from zoo_builder.backbones import load_body
from zoo_builder.scoring import STRENGTHS
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask

TIMED_IMAGES = 128
QUERIES = 1000  # images of an entry's score, about


def estimate(zoo: Zoo, tasks: list[FineTuneTask], workers: int) -> str:
    """A line of text on the tasks that are not there yet, at `workers` at a time."""
    todo = [t for t in tasks if t.id not in zoo]
    body = zoo.backbone.create()
    load_body(body, zoo.base(), str(zoo.path))
    forward, step = _seconds_an_image(body.to(memory_format=torch.channels_last), zoo)  # type: ignore[call-overload]
    seconds = 0.0
    for task in todo:
        trainings = 1 if task.training.rate_of_start is not None else len(task.training.learning_rates)
        scores = (len(STRENGTHS) + 2) * (2 * task.support * len(task.datasets) + QUERIES)
        seconds += trainings * (task.training.steps * task.training.batch_size * step + scores * forward)
    size = sum(v.numel() * 2 for v in zoo.base().values()) + sum(t.support for t in tasks[:1]) * 3 * zoo.size**2
    return (
        f"{len(tasks)} tasks, {len(tasks) - len(todo)} of them done. The others take about "
        f"{seconds / workers / 60:.0f} minutes with {workers} at a time, and {len(todo) * size / 2**20:.0f} MiB."
    )


def _seconds_an_image(body: torch.nn.Module, zoo: Zoo) -> tuple[float, float]:
    """Of a forward pass and of a training step, on one thread, as a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.zeros(TIMED_IMAGES, zoo.backbone.in_chans, zoo.size, zoo.size).contiguous(
        memory_format=torch.channels_last
    )
    times = []
    try:
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            with torch.no_grad():
                body(images)
            between = time.perf_counter()
            body(images).sum().backward()
            times = [(between - began) / TIMED_IMAGES, (time.perf_counter() - between) / TIMED_IMAGES]
    finally:
        torch.set_num_threads(threads)
    return times[0], times[1]
