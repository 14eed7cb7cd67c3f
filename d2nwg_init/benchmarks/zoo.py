"""How many zoo entries an hour: the builder against the loop that a practitioner would write, on the same tasks.

Not timed: the survey of the datasets before a build; the plain loop's folders of PNG files and its start, which is the
builder's own (the base with a solved head). Timed for the builder: the start of its processes, reading and resizing the
datasets, and an entry's score at several strengths. The plain loop has only its own test accuracy to take.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from d2nwg_init.benchmarks.plain_loop import plain_loop, write_folders
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.candidates import set_body_and_solve
from zoo_builder.backbones import BackboneSpec, prepare_images
from zoo_builder.batchnorm_fit import fit_batchnorm
from zoo_builder.build import begin_zoo, build
from zoo_builder.datasets import load_dataset
from zoo_builder.domain_images import DomainImages, SharedImages, sample_images
from zoo_builder.errors import ZooError
from zoo_builder.executors.processes import process_executor
from zoo_builder.job import CPU, Device
from zoo_builder.model_stack import shifted
from zoo_builder.progress import progress_bar
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask, Plan, Training, ZooRecipe

METHODS = ("builder", "plain_loop", "one_at_a_time")  # the last is the builder where it could train several at once
LEARNING_RATE, CLASSES = 0.01, 20  # of both methods alike; the shipped recipes, by Adam, have less
ALL = "all"  # in place of a dataset's name: a figure of all tasks together


@dataclass(frozen=True)
class Made:
    """What one method made of the tasks."""

    seconds: float  # for all of them
    accuracies: list[float]  # test accuracy in percent, a task each


def bench_recipe(recipe: ZooRecipe, names: Sequence[str], count: int, steps: int) -> ZooRecipe:
    """Plain fine-tuning on up to `count` of the datasets `names`, spread evenly; on more seeds where they do not
    suffice."""
    chosen = tuple(names[i * len(names) // count] for i in range(count)) if count < len(names) else tuple(names)
    training = Training(steps, learning_rates=(LEARNING_RATE,))
    plan = Plan("bench", "finetune", training, class_subset=CLASSES, seeds=-(-count // len(chosen)))
    return ZooRecipe((plan,), recipe.held_out, chosen, size=recipe.size, support=recipe.support, leakage="off")


def run_zoo_benchmark(
    recipe: ZooRecipe,
    count: int,
    backbone: BackboneSpec,
    base: str | Path,
    data: Path,
    workers: int,
    device: Device = CPU,
) -> list[Row]:
    """Rows of `entries_per_hour` over the first `count` tasks of `recipe` (see bench_recipe), and of `test_accuracy`
    (%) for each task and, with the dataset "all", in the mean. The methods run one after the other, on one device.

    Raises:
        DataError: a dataset cannot be read or has no test images. ModelError: the base does not fit.
        ZooError: the builder failed on a task.
    """
    with tempfile.TemporaryDirectory(prefix="d2nwg-bench-") as folder:
        built = functools.partial(run_builder, backbone, base, recipe, count, data, workers)
        zoo, tasks, builder = built(Path(folder) / "zoo", device)
        made = {"builder": builder, "plain_loop": run_plain_loops(zoo, tasks, data, Path(folder), device.name)}
        if device.at_once > 1:
            made["one_at_a_time"] = built(Path(folder) / "one", replace(device, at_once=1))[2]
    processes = f"{workers} processes of 1 thread" if device.name == "cpu" else "1 process"
    precision = "forward in bfloat16" if device.bf16 else "float32"
    timed = "its time includes the score of every entry"
    conditions = {
        "builder": f"{processes}, {device.at_once} models at once, {precision}; {timed}",
        "one_at_a_time": f"{processes}, 1 model at once, {precision}; {timed}",
        "plain_loop": f"1 process of {torch.get_num_threads()} threads, 2 loader workers",
    }
    rows = []
    for method, result in made.items():
        row = functools.partial(
            Row,
            bundle="",
            method=method,
            device=device.name,
            step=tasks[0].training.steps,
            condition=conditions[method],
        )
        seed = tasks[0].seed
        per_hour, average = 3600 * count / result.seconds, mean(result.accuracies)
        rows.append(row(dataset=ALL, seed=seed, metric="entries_per_hour", value=per_hour, unit="1/h"))
        rows.append(row(dataset=ALL, seed=seed, metric="test_accuracy", value=average, unit="%"))
        for task, value in zip(tasks, result.accuracies, strict=True):
            rows.append(row(dataset=task.datasets[0], seed=task.seed, metric="test_accuracy", value=value, unit="%"))
    return rows


def run_builder(
    backbone: BackboneSpec,
    base: str | Path,
    recipe: ZooRecipe,
    count: int,
    data: Path,
    workers: int,
    out: Path,
    device: Device,
) -> tuple[Zoo, list[FineTuneTask], Made]:
    zoo, tasks, sources = begin_zoo(out, backbone, base, recipe, data)
    tasks = sorted(tasks, key=lambda t: t.seed)[:count]  # every dataset before one comes again
    began = time.perf_counter()
    failed = build(zoo, tasks, sources, data, process_executor(workers), device=device)
    seconds = time.perf_counter() - began
    if failed:
        raise ZooError(f"The builder failed on {len(failed)} of {count} tasks: {next(iter(failed.values()))}")
    return zoo, tasks, Made(seconds, [zoo.entry(t.id).metrics["head_accuracy"] for t in tasks])


def run_plain_loops(zoo: Zoo, tasks: list[FineTuneTask], data: Path, folder: Path, device: str) -> Made:
    """Every task by the plain loop, in turn; its images and its start are made before the clock runs."""
    shared = SharedImages(folder / "arrays", zoo.size, functools.partial(load_dataset, data_dir=data, size=zoo.size))
    seconds, accuracies = 0.0, []
    with progress_bar("plain loop", total=len(tasks)) as bar:
        for task in tasks:
            images = shared.view(task.datasets[0], task.domains[0], task)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                write_folders(images, task, Path(place))
                model = start_model(zoo, images, task)
                began = time.perf_counter()
                accuracies.append(plain_loop(model.to(device), Path(place), task))
                seconds += time.perf_counter() - began
            bar.advance()
            bar.note(f"{task.id}: {accuracies[-1]:.1f} %")
    return Made(seconds, accuracies)


def start_model(zoo: Zoo, images: DomainImages, task: FineTuneTask) -> nn.Module:
    """The zoo's base, BatchNorm fitted to the task's images, with the head that the builder begins this task with."""
    model = zoo.body(images.num_classes)
    some, index = sample_images(images.x_train, task.support, task.seed)
    support = prepare_images(model, some)
    fitted = shifted(dict(model.named_parameters()), fit_batchnorm(model, support, zoo.batchnorm))
    set_body_and_solve(model, fitted, support, images.y_train[index])
    return model


def figure(rows: Sequence[Row], method: str, metric: str, device: str = "cpu") -> float:
    """Of all tasks together; NaN where it was not measured."""
    wanted = (ALL, method, metric, device)
    return next((r.value for r in rows if (r.dataset, r.method, r.metric, r.device) == wanted), float("nan"))


def accuracies(rows: Sequence[Row], method: str, device: str = "cpu") -> list[float]:
    """Test accuracy in percent, a task each, in the order of the tasks."""
    wanted = (method, "test_accuracy", device)
    return [r.value for r in rows if (r.method, r.metric, r.device) == wanted and r.dataset != ALL]
