"""How long a build will take and how much disk, from a few steps timed here."""

from __future__ import annotations

import time

import torch

from zoo_builder.finetune import QUERIES
from zoo_builder.job import Device
from zoo_builder.model_stack import ModelStack
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask

TIMED_IMAGES = 128  # of each model
SCORES = 5  # of an entry: the base, in single precision, and at three strengths


def estimate(zoo: Zoo, tasks: list[FineTuneTask], device: Device, workers: int) -> str:
    """A line of text on the tasks that are not there yet, with `workers` processes."""
    todo = [t for t in tasks if t.id not in zoo]
    forward, step = _seconds_an_image(zoo, device)
    seconds = 0.0
    for task in todo:
        trainings = 1 if task.training.rate_of_start is not None else len(task.training.learning_rates)
        scores = SCORES * (2 * task.support * len(task.datasets) + QUERIES)
        seconds += trainings * (task.training.steps * task.training.batch_size * step + scores * forward)
    size = sum(v.numel() * 2 for v in zoo.base().values()) + sum(t.support for t in tasks[:1]) * 3 * zoo.size**2
    return (
        f"{len(tasks)} tasks, {len(tasks) - len(todo)} of them done. The others take about "
        f"{seconds / workers / 60:.0f} minutes with {workers} at a time, and {len(todo) * size / 2**20:.0f} MiB."
    )


def _seconds_an_image(zoo: Zoo, device: Device) -> tuple[float, float]:
    """Of a forward pass and of a training step; on the CPU on one thread, as a worker has."""
    body = zoo.body().to(device.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = dict(body.named_parameters())
    stack = ModelStack(body, [weights] * device.at_once, trained=weights.keys())
    shape = (device.at_once, TIMED_IMAGES, zoo.backbone.in_chans, zoo.size, zoo.size)
    images = torch.zeros(shape[0] * shape[1], *shape[2:], device=device.name)
    images = images.contiguous(memory_format=torch.channels_last).view(shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        for _ in range(2):  # the first warms up
            began = time.perf_counter()
            with torch.no_grad():
                stack.features(images).sum().item()
            between = time.perf_counter()
            stack.features(images).sum().backward()
            next(iter(stack.parameters.values())).grad.sum().item()  # type: ignore[union-attr]
            count = device.at_once * TIMED_IMAGES
            times = [(between - began) / count, (time.perf_counter() - between) / count]
    finally:
        torch.set_num_threads(threads)
    return times[0], times[1]
