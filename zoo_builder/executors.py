"""Run the tasks that are not done yet: one process a core, one thread each. Workers write their own entries."""

from __future__ import annotations

import functools
import multiprocessing
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from zoo_builder.backbones import create_backbone
from zoo_builder.datasets import ImageDataset, dataset_names, load_dataset
from zoo_builder.errors import DataError, ZooError, nearest_names
from zoo_builder.finetune import run_task
from zoo_builder.progress import progress_bar
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask


def build(zoo: Zoo, tasks: list[FineTuneTask], data_dir: Path, workers: int) -> list[str]:
    """Bring the zoo to hold every task; what is there already is kept. Returns the ids of tasks that failed.

    Trunks run first, for branches go on from them. A task that fails is recorded and does not stop the others.

    Raises:
        DataError: a dataset of a task is not in `data_dir`.
        ZooError: a trunk failed, so that its branches cannot start.
    """
    known = set(dataset_names(data_dir))
    for name in sorted({n for t in tasks for n in (t.dataset, *t.related)} - known):
        raise DataError(f"The recipe uses the dataset {name!r}, which {data_dir} lacks; {nearest_names(name, known)}")
    done = sum(t.id in zoo for t in tasks)
    failed: list[str] = []
    context = multiprocessing.get_context("spawn")
    with progress_bar(f"building {zoo.path}", total=len(tasks), done=done) as bar:
        for wave in ([t for t in tasks if t.start is None], [t for t in tasks if t.start is not None]):
            todo = [t for t in wave if t.id not in zoo]
            for trunk in sorted({t.start for t in todo if t.start and t.start not in zoo}):
                raise ZooError(f"The trunk {trunk} failed: {zoo.failures().get(trunk, 'unknown error')}")
            pool = ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
            try:
                for future in as_completed([pool.submit(_run, zoo, task, data_dir) for task in todo]):
                    task_id, note = future.result()
                    if task_id not in zoo:
                        failed.append(task_id)
                    bar.advance()
                    bar.note(f"{task_id}: {note}")
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _run(zoo: Zoo, task: FineTuneTask, data_dir: Path) -> tuple[str, str]:
    try:
        base = create_backbone(zoo.model, zoo.path / "base.safetensors")
        start = zoo.entry(task.start).delta() if task.start else None
        result = run_task(task, base.to(memory_format=torch.channels_last), start, _loader(data_dir))
        zoo.write(task, result)
        m = result.metrics
        return task.id, f"{m['solved_accuracy']:.1f} -> {m['accuracy']:.1f} % in {m['seconds']:.0f} s"
    except Exception as e:
        zoo.write_failure(task, "".join(traceback.format_exception(e)))
        return task.id, f"failed: {e}"


@functools.cache
def _loader(data_dir: Path) -> functools._lru_cache_wrapper[ImageDataset]:
    """A worker reads each dataset once."""
    return functools.cache(lambda name: load_dataset(name, data_dir))
