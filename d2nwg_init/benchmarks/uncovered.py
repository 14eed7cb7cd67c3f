"""What initialize() is worth to a model that no bundle covers: its own pretrained body, trained from a fresh head, from
a solved head, and from what the hook makes of it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import nn

from d2nwg_init.benchmarks.fine_tuning import FineTuning, fine_tune, shuffled_loader
from d2nwg_init.benchmarks.kept import kept, measure_missing
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.hook import initialize
from d2nwg_init.undo import copied_state
from zoo_builder.backbones import BackboneSpec, prepare_images
from zoo_builder.datasets import ImageDataset, load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.datasets.read_images import stored_size
from zoo_builder.errors import ModelError

METHODS = ("pretrained", "solved", "initialize")
RATES = (3e-4, 1e-3, 3e-3)  # of which each method has the best, see `rows_of`
TRAIN_IMAGES, TEST_IMAGES = 2000, 1000  # at most
PROTOCOL = 2  # of the cells; another number is another file


@dataclass(frozen=True)
class Cell:
    model: str
    weights: str  # a safetensors file
    weights_sha256: str
    size: int  # pixels
    dataset: str
    dataset_sha256: str
    method: str
    seed: int

    @property
    def id(self) -> str:
        which = f"{self.model.replace(':', '_')}-{self.weights_sha256[:10]}-{self.size}"
        return f"{which}-{self.dataset}-{self.dataset_sha256[:10]}-{self.method}-{self.seed}-v{PROTOCOL}"


def cells(model: str, weights: Path, size: int, datasets: Mapping[str, str], seeds: int) -> list[Cell]:
    """Of a file of weights, which is read, and of datasets by name with their SHA-256.

    Raises:
        ModelError: no such file.
    """
    if not weights.is_file():
        raise ModelError(f"No file {weights}. Expected pretrained weights of {model}, as safetensors.")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    which = itertools.product(datasets.items(), METHODS, range(seeds))
    return [Cell(model, str(weights), digest, size, *d, m, s) for d, m, s in which]


def run_cells(todo: Sequence[Cell], data: Path, folder: Path, executor: Executor) -> None:
    """Measure those that are not kept in `folder` yet."""
    measure_missing(todo, functools.partial(_measure, data), folder, executor)


def _measure(data: Path, cell: Cell) -> dict[str, object]:
    return measure(cell, load_dataset(cell.dataset, data, size=stored_size(cell.size)))


def measure(cell: Cell, dataset: ImageDataset) -> dict[str, object]:
    """Test accuracy (%) by learning rate and step, the seconds of the call, and what it chose."""
    torch.manual_seed(cell.seed)
    model = BackboneSpec(cell.model, img_size=cell.size).create(cell.weights, num_classes=dataset.num_classes)
    train = _drawn(model, dataset.x_train, dataset.y_train, cell.size, TRAIN_IMAGES, cell.seed)
    test = _drawn(model, dataset.x_test, dataset.y_test, cell.size, TEST_IMAGES, 0)
    began, chosen = time.perf_counter(), None
    if cell.method != "pretrained":
        loader, steps = shuffled_loader(*train, cell.seed), 0 if cell.method == "solved" else None
        report = initialize(model, loader, generator=None, refining_steps=steps, seed=cell.seed, progress=False)
        chosen = report.chosen
    seconds = time.perf_counter() - began
    start = copied_state(model)
    accuracy = {}
    for rate in RATES:
        model.load_state_dict(start)
        torch.manual_seed(cell.seed)
        recipe = replace(FineTuning(), learning_rate=rate)
        accuracy[str(rate)] = fine_tune(model, shuffled_loader(*train, cell.seed, whole=True), test, recipe)
    return {"accuracy": accuracy, "seconds": seconds, "chosen": chosen}


def rows_of(done: Sequence[Cell], folder: Path) -> list[Row]:
    """Of each cell `test_accuracy` (%) by step, at its method's learning rate: the one with the best mean over
    datasets, seeds and steps 30 and 100. `condition` tells it, and what was chosen; `seconds` is of the call, on one
    thread."""
    found = {c: measured for c in done if (measured := kept(folder, c))}
    rows: list[Row] = []
    for method in METHODS:
        of_method = {c: f for c, f in found.items() if c.method == method}
        rate = max(
            map(str, RATES), key=lambda r: mean(f["accuracy"][r][s] for f in of_method.values() for s in ("30", "100"))
        )
        for cell, f in of_method.items():
            condition = f"{cell.model}, {cell.size} pixels, learning rate {rate}"
            if f["chosen"]:
                condition += f", chosen: {f['chosen']}"
            about = ("", cell.dataset, method, cell.seed)
            for step, value in f["accuracy"][rate].items():
                rows.append(Row(*about, "test_accuracy", value, "%", step=int(step), condition=condition))
            if f["chosen"]:
                rows.append(Row(*about, "seconds", f["seconds"], "s", condition=condition, device="cpu"))
    return rows


def _drawn(
    model: nn.Module, x: np.ndarray, y: np.ndarray, size: int, most: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most so many images [N, 3, size, size] as the model takes them, and their labels [N]."""
    drawn = np.random.default_rng(seed).permutation(len(y))[:most]
    return prepare_images(model, resize_images(x[drawn], size)), torch.from_numpy(y[drawn])
