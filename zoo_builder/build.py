"""A recipe, a base and a data folder -> a zoo. What is there already is kept; a failed task does not stop the rest."""

from __future__ import annotations

import functools
import tempfile
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

from zoo_builder.backbones import BackboneSpec, body_state, check_body
from zoo_builder.checkpoint import read_tensors
from zoo_builder.datasets import dataset_names
from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.domain_images import SharedImages
from zoo_builder.errors import RecipeError, ZooError
from zoo_builder.executors.processes import telling_of_dead_workers
from zoo_builder.job import CPU, Device, Job
from zoo_builder.progress import progress_bar
from zoo_builder.sources import SourceRecord
from zoo_builder.store import Zoo, pretrained_on
from zoo_builder.survey import load_unchanged, surveyed
from zoo_builder.tasks import FineTuneTask, ZooRecipe, check_recipe, choose_datasets, plan_tasks


def begin_zoo(
    out: str | Path,
    backbone: BackboneSpec,
    base: str | Path,
    recipe: ZooRecipe,
    data_dir: Path,
    download: bool = False,
    remember: bool = True,
) -> tuple[Zoo, list[FineTuneTask], dict[str, SourceRecord]]:
    """The zoo at `out` from a base checkpoint (a file, or "pretrained"), its tasks, and what it knows of its datasets.

    The datasets are looked at, checked for leaks and clustered the first time; later that is read from the zoo. A zoo
    that was begun already stays as it is without `remember`.

    Raises:
        RecipeError: the recipe names a held-out or unknown dataset, or holds out what the base was pretrained on, or
            cannot be built, see `check_recipe`. DataError: a dataset cannot be read, or leaks.
        ModelError: the base does not fit the backbone, or gives no features. ZooError: `out` holds another zoo.
    """
    check_recipe(recipe)
    names = choose_datasets(recipe, dataset_names(data_dir))
    body = backbone.create(base)
    check_body(body, recipe.size, backbone.in_chans)
    pretraining = "{}" if base == "pretrained" else read_tensors(Path(base))[1].get("pretraining", "{}")
    if seen := [name for name in pretrained_on(pretraining).split(", ") if is_among(name, recipe.held_out)]:
        raise RecipeError(
            f"The base {base} was pretrained on {', '.join(seen)}, which the recipe holds out. A held-out dataset "
            "measures the result and must not train it: take another base, or remove it from held_out."
        )
    zoo = Zoo.create(out, backbone, body_state(body), recipe, pretraining)
    zoo, sources = surveyed(zoo, recipe, names, data_dir, download, remember)
    clusters: dict[int, list[str]] = {}
    for name, source in sources.items():
        clusters.setdefault(source.cluster, []).append(name)
    return zoo, plan_tasks(recipe, [clusters[c] for c in sorted(clusters)]), sources


def build(
    zoo: Zoo,
    tasks: list[FineTuneTask],
    sources: dict[str, SourceRecord],
    data_dir: Path,
    executor: Executor,
    *,
    retry_failed: bool = False,
    device: Device = CPU,
    download: bool = False,
) -> dict[str, str]:
    """Bring the zoo to hold every task; returns the errors of those that failed, by id.

    A task starts as soon as the one that it goes on from is there. One that failed before is run again only with
    `retry_failed`. Tasks that a device trains at once are always the same ones, so that a build that was interrupted
    trains them to the same bits.

    Raises:
        ZooError: a worker died.
    """
    failed = {} if retry_failed else {k: e for k, e in zoo.failures().items() if k in {t.id for t in tasks}}
    with tempfile.TemporaryDirectory(prefix="d2nwg-images-") as folder:
        load = functools.partial(load_unchanged, sources, data_dir, zoo.size, download)
        job = Job(zoo, SharedImages(Path(folder), tasks[0].size, load), sources, device)
        done = {t.id for t in tasks if t.id in zoo}
        waiting = [g for g in _groups(tasks, device.at_once) if any(t.id not in done | failed.keys() for t in g)]
        running: dict[Future[dict[str, str]], list[FineTuneTask]] = {}
        bar_of = progress_bar(f"building {zoo.path}", total=len(tasks), done=len(done | failed.keys()))
        with bar_of as bar, telling_of_dead_workers(ZooError):
            try:
                while waiting or running:
                    settled = {None, *done, *failed}
                    for group in [g for g in waiting if all(t.start in settled for t in g)]:
                        waiting.remove(group)
                        for task in [t for t in group if t.start in failed and t.id not in done]:
                            bar.advance(task.id not in failed)
                            failed[task.id] = f"the task that it goes on from failed: {task.start}"
                            zoo.write_failure(task, failed[task.id])
                        possible = [t for t in group if t.start not in failed]
                        if possible:
                            running[executor.submit(job, possible)] = possible
                    for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                        group, errors = running.pop(future), future.result()
                        for task in group:
                            bar.advance(task.id not in done | failed.keys())
                            if task.id in errors:
                                failed[task.id] = errors[task.id]
                            else:
                                failed.pop(task.id, None)
                                done.add(task.id)
                            bar.note(f"{task.id}: {'failed: ' + errors[task.id] if task.id in errors else 'done'}")
            finally:
                executor.shutdown(wait=True, cancel_futures=True)
    return failed


def _groups(tasks: list[FineTuneTask], at_once: int) -> list[list[FineTuneTask]]:
    """Tasks of one plan, `at_once` of them together; in whatever state the zoo is, the same."""
    plans: dict[str, list[FineTuneTask]] = {}
    for task in tasks:
        plans.setdefault(task.plan, []).append(task)
    return [group[i : i + at_once] for group in plans.values() for i in range(0, len(group), at_once)]
