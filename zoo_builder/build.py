"""A recipe, a base and a data folder -> a zoo. What is there already is kept; a failed task does not stop the rest."""

from __future__ import annotations

import functools
import json
import os
import platform
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from zoo_builder.backbones import BackboneSpec, body_state, check_body, load_body, prepare_images
from zoo_builder.checkpoint import read_tensors
from zoo_builder.clusters import cluster_datasets, embed_dataset
from zoo_builder.datasets import ImageDataset, dataset_names, load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.domain_images import SharedImages, sample_images
from zoo_builder.errors import DataError, ZooError
from zoo_builder.files import write_bytes
from zoo_builder.finetune import run_tasks
from zoo_builder.finetune_result import FineTuneResult, Start
from zoo_builder.leakage import check_leakage, held_out_datasets
from zoo_builder.progress import progress_bar
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask, ZooRecipe, choose_datasets, plan_tasks


@dataclass(frozen=True)
class SourceRecord:
    """What a zoo remembers of a dataset."""

    licence: str
    origin: str
    sha256: str
    cluster: int


@dataclass(frozen=True)
class Device:
    """Where bodies are trained, and how many in one pass."""

    name: str = "cpu"  # as torch names it
    at_once: int = 1  # models; a core is filled by one, a GPU by tens of small ones
    bf16: bool = False  # the forward pass in training


CPU = Device()


@dataclass(frozen=True)
class Job:
    """All that a worker needs to run tasks and to write their entries."""

    zoo: Zoo
    shared: SharedImages
    sources: dict[str, SourceRecord]
    device: Device

    def __call__(self, tasks: Sequence[FineTuneTask]) -> dict[str, str]:
        """Run tasks of one plan; the errors of those that failed, by id.

        Raises:
            ZooError: a full disk and the like, which is no failure of a task.
        """
        if all(task.id in self.zoo for task in tasks):  # another builder on the same store was first
            return {}
        try:
            return self._run(tasks)
        except OSError as e:
            raise ZooError(
                f"{self.zoo.path} cannot be written to ({e}). What is done is kept: free space, then run again."
            ) from e

    def _run(self, tasks: Sequence[FineTuneTask]) -> dict[str, str]:
        results: Mapping[str, FineTuneResult | Exception]
        if self.device.name != "cpu":  # or equal seeds would not give equal bits
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            base = self.zoo.backbone.create()
            load_body(base, self.zoo.base(), str(self.zoo.path))
            base = base.to(self.device.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
            starts = [self._start(task.start) for task in tasks]
            at_once, bf16 = self.device.at_once, self.device.bf16
            results = run_tasks(tasks, base, starts, self.shared, at_once=at_once, bf16=bf16)
        except OSError:
            raise
        except Exception as e:
            results = dict.fromkeys((task.id for task in tasks), e)
        for task in tasks:
            result = results[task.id]
            if isinstance(result, Exception):
                self.zoo.write_failure(task, "".join(traceback.format_exception(result)))
            elif task.id not in self.zoo:
                self.zoo.write(task, result, self._about(task))
        return {i: str(result) for i, result in results.items() if isinstance(result, Exception)}

    def _about(self, task: FineTuneTask) -> dict[str, object]:
        return {
            "versions": {name: version(name) for name in ("d2nwg-init", "torch", "timm")},
            "machine": platform.machine(),
            "device": asdict(self.device),
            "sources": {n: asdict(self.sources[n]) for n in (*task.datasets, *task.related)},
        }

    def _start(self, task_id: str | None) -> Start | None:
        if task_id is None:
            return None
        entry = self.zoo.entry(task_id)
        strength = entry.metrics["best_strength"]
        delta = {k: strength * v for k, v in entry.delta().items()}
        return Start(delta, entry.metrics["learning_rate"])


def begin_zoo(
    out: str | Path,
    backbone: BackboneSpec,
    base: str | Path,
    recipe: ZooRecipe,
    data_dir: Path,
    download: bool = False,
) -> tuple[Zoo, list[FineTuneTask], dict[str, SourceRecord]]:
    """The zoo at `out` from a base checkpoint (a file, or "pretrained"), its tasks, and what it knows of its datasets.

    The datasets are checked for leaks and clustered the first time; later that is read from the zoo.

    Raises:
        RecipeError: the recipe names a held-out or unknown dataset. DataError: a dataset cannot be read, or leaks.
        ModelError: the base does not fit the backbone, or gives no features. ZooError: `out` holds another zoo.
    """
    names = choose_datasets(recipe, dataset_names(data_dir))
    body = backbone.create(base)
    check_body(body, recipe.size, backbone.in_chans)
    pretraining = "{}" if base == "pretrained" else read_tensors(Path(base))[1].get("pretraining", "{}")
    zoo = Zoo.create(out, backbone, body_state(body), recipe, pretraining)
    record = zoo.path / "datasets.json"
    sources = _read_sources(record)
    if set(sources) != set(names):
        sources = _survey(zoo, recipe, names, data_dir, download)
        write_bytes(record, json.dumps({n: asdict(s) for n, s in sources.items()}, indent=1).encode())
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
        load = functools.partial(_load_unchanged, sources, data_dir, zoo.size, download)
        job = Job(zoo, SharedImages(Path(folder), tasks[0].size, load), sources, device)
        done = {t.id for t in tasks if t.id in zoo}
        waiting = [g for g in _groups(tasks, device.at_once) if any(t.id not in done | failed.keys() for t in g)]
        running: dict[Future[dict[str, str]], list[FineTuneTask]] = {}
        with progress_bar(f"building {zoo.path}", total=len(tasks), done=len(done | failed.keys())) as bar:
            try:
                while waiting or running:
                    settled = {None, *done, *failed}
                    for group in [g for g in waiting if all(t.start in settled for t in g)]:
                        waiting.remove(group)
                        for task in [t for t in group if t.start in failed]:
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
            except BrokenProcessPool as e:
                raise ZooError(
                    "A worker died (of too little memory?). Run again, with fewer --workers: what is done is kept."
                ) from e
            finally:
                executor.shutdown(wait=True, cancel_futures=True)
    return failed


def _groups(tasks: list[FineTuneTask], at_once: int) -> list[list[FineTuneTask]]:
    """Tasks of one plan, `at_once` of them together; in whatever state the zoo is, the same."""
    plans: dict[str, list[FineTuneTask]] = {}
    for task in tasks:
        plans.setdefault(task.plan, []).append(task)
    return [group[i : i + at_once] for group in plans.values() for i in range(0, len(group), at_once)]


def _survey(
    zoo: Zoo, recipe: ZooRecipe, names: tuple[str, ...], data_dir: Path, download: bool
) -> dict[str, SourceRecord]:
    """Look once at every dataset: leaks from the held-out ones, and what the base sees in each."""
    load = functools.partial(load_dataset, data_dir=data_dir, size=zoo.size, download=download)
    body = zoo.backbone.create()
    load_body(body, zoo.base(), str(zoo.path))
    check_body(body, zoo.size, zoo.backbone.in_chans)
    body.eval()
    embeddings, records = {}, {}
    with progress_bar("looking at the datasets", total=len(names)) as bar:
        for name in names:
            dataset = load(name)
            records[name] = (dataset.licence, dataset.origin, dataset.sha256)
            index = sample_images(torch.arange(len(dataset.x_train)), recipe.support, recipe.seed)[0].numpy()
            images = prepare_images(body, resize_images(dataset.x_train[index], zoo.size))
            embeddings[name] = embed_dataset(body, images, torch.from_numpy(dataset.y_train[index]))
            bar.advance()
    if recipe.leakage != "off":
        check_leakage(
            map(load, names), held_out_datasets(recipe.held_out, dataset_names(data_dir), load), recipe.leakage
        )
    clusters = cluster_datasets(embeddings, recipe.max_clusters)
    return {name: SourceRecord(*records[name], i) for i, cluster in enumerate(clusters) for name in cluster}


def _read_sources(path: Path) -> dict[str, SourceRecord]:
    if not path.exists():
        return {}
    return {name: SourceRecord(**values) for name, values in json.loads(path.read_text()).items()}


def _load_unchanged(
    sources: dict[str, SourceRecord], data_dir: Path, size: int, download: bool, name: str
) -> ImageDataset:
    """
    Raises:
        DataError: the dataset is not what it was when the zoo was begun.
    """
    dataset = load_dataset(name, data_dir, size=size, download=download)
    if dataset.sha256 != sources[name].sha256:
        raise DataError(
            f"The dataset {name!r} has changed since this zoo was begun. Put it back, or take another --out."
        )
    return dataset
