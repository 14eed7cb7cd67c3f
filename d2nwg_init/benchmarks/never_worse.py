"""How often initialize() chooses worse than the best of the simple choices: random draws of dataset, model, shots and
seed, each a file, so that a run goes on where it was interrupted.

What is `chosen` is measured before refining, which would hide a bad choice; `initialize` is what the user gets. The
best simple choice is known in hindsight only: how often each, always taken, is worse than it says what that is worth.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import nn

from d2nwg_init.benchmarks.fine_tuning import FineTuning, train_steps
from d2nwg_init.benchmarks.kept import kept, measure_missing
from d2nwg_init.benchmarks.plain_base import plain_base
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.benchmarks.transfer.statistics import LEVEL, paired_bootstrap
from d2nwg_init.candidates import set_body_and_solve, solve_in_place
from d2nwg_init.hook import initialize
from pretrained_generators.bundle import Bundle, load_bundle
from zoo_builder.backbones import load_body, predict, prepare_images
from zoo_builder.datasets import ImageDataset, load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.support_set import SupportSet, read_support_set

SHOTS = (1, 2, 5, 16, 64, None)  # train images of each class; None is all
BODIES = ("random", "base")  # of the model that is passed
SIMPLE = ("as_passed", "own_body", "own_body_as_is", "base")
MARGIN = 1.0  # points of test accuracy
JUDGED = ("chosen", "initialize")
AT: dict[str, tuple[int | None, int | None]] = {"step_0": (0, None), "epoch_1": (None, 1)}  # step and epoch
TRAIN_IMAGES = 2000  # at most
TEST_IMAGES = 1000
NUM_SUPPORT = 1024

# "names": what was chosen; by AT, test accuracy (%) by method; by "clearly worse, AT", whether a method would be below
# the best simple choice of other test images too.
Result = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Draw:
    number: int  # also the seed of the model, the images and what is generated
    dataset: str
    dataset_sha256: str
    bundle: str
    weights_sha256: str  # of the bundle
    body: str
    shots: int | None

    @property
    def id(self) -> str:
        dataset = f"{self.dataset}-{self.dataset_sha256[:10]}"
        bundle = f"{Path(self.bundle).name}-{self.weights_sha256[:10]}"
        return f"{self.number:04}-{dataset}-{bundle}-{self.body}-{self.shots or 'all'}"


def draws(count: int, datasets: Mapping[str, str], bundles: Mapping[str, str], seed: int = 0) -> Iterator[Draw]:
    """Of datasets, and of bundles, by name with their SHA-256. The first ones are the same for a larger `count`."""
    rng = random.Random(seed)
    which = list(datasets.items()), list(bundles.items())
    for number in range(count):
        dataset, bundle = map(rng.choice, which)
        yield Draw(number, *dataset, *bundle, rng.choice(BODIES), rng.choice(SHOTS))


def measure(draw: Draw, dataset: ImageDataset, bundle: Bundle) -> Result:
    """Test accuracy (%) of every method, before training and after an epoch on the same batches; and which are
    below the best simple choice by more than the test images leave to chance."""
    backbone, size = bundle.config.generator.backbone, bundle.config.generator.size

    def passed() -> nn.Module:
        torch.manual_seed(draw.number)
        model = backbone.create(num_classes=dataset.num_classes)
        if draw.body == "base":
            load_body(model, bundle.generator.base.state_dict(), bundle.config.name)
        return model

    def tensors(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return prepare_images(bundle.generator.base, resize_images(x, size)), torch.from_numpy(y)

    index = np.random.default_rng(draw.number).permutation(len(dataset.y_train))[:TRAIN_IMAGES]
    if draw.shots is not None:
        y = dataset.y_train[index]
        index = np.concatenate([index[y == c][: draw.shots] for c in range(dataset.num_classes)])
    train = tensors(dataset.x_train[index], dataset.y_train[index])
    drawn = np.random.default_rng(0).permutation(len(dataset.y_test))[:TEST_IMAGES]
    test = tensors(dataset.x_test[drawn], dataset.y_test[drawn])
    shuffled = torch.randperm(len(index), generator=torch.Generator().manual_seed(draw.number))
    batches = [(train[0][i], train[1][i]) for i in shuffled.split(FineTuning.batch_size)]
    support = read_support_set(batches, NUM_SUPPORT, dataset.num_classes)
    names = {}

    def initialized(method: str, refining_steps: int | None) -> nn.Module:
        model = passed()
        how = {"num_support": NUM_SUPPORT, "refining_steps": refining_steps, "seed": draw.number, "progress": False}
        names[method] = initialize(model, batches, generator=bundle, **how).chosen  # type: ignore[arg-type]
        return model

    def solved(body: Mapping[str, torch.Tensor]) -> nn.Module:
        model = passed()
        set_body_and_solve(model, body, support.images, support.labels)
        return model

    made = {
        "as_passed": passed,
        "own_body": lambda: solved({}),
        "own_body_as_is": lambda: _solved_as_is(passed(), support),
        "base": lambda: solved(plain_base(bundle.generator, support.images)),
        "chosen": lambda: initialized("chosen", 0),
        "initialize": lambda: initialized("initialize", None),
    }
    correct: dict[str, dict[str, np.ndarray]] = {at: {} for at in AT}
    for method, make in made.items():
        model = make()
        correct["step_0"][method] = _correct(model, *test)
        torch.manual_seed(draw.number)
        for _ in train_steps(model, [b for b in batches if len(b[1]) > 1], FineTuning(), len(batches)):
            pass
        correct["epoch_1"][method] = _correct(model, *test)
    result: Result = {"names": names}
    for at, by_method in correct.items():
        best = by_method[max(SIMPLE, key=lambda m: by_method[m].mean())]
        result[at] = {method: 100 * float(c.mean()) for method, c in by_method.items()}
        result[f"clearly worse, {at}"] = {
            method: paired_bootstrap([c], [best]).p_loss <= LEVEL for method, c in by_method.items()
        }
    return result


def _correct(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """bool [N]"""
    return (predict(model, images).argmax(1) == labels).numpy()


def _solved_as_is(model: nn.Module, support: SupportSet) -> nn.Module:
    """With a solved head, BatchNorm as it was passed."""
    solve_in_place(model, support.images, support.labels)
    return model


def run_draws(todo: Sequence[Draw], data: Path, folder: Path, executor: Executor) -> None:
    """Measure the draws that are not kept in `folder` yet."""
    measure_missing(todo, functools.partial(_measure, data), folder, executor)


def _measure(data: Path, draw: Draw) -> Result:
    return measure(draw, _dataset(draw.dataset, data), _bundle(draw.bundle))


@functools.lru_cache
def _dataset(name: str, data: Path) -> ImageDataset:
    return load_dataset(name, data)


@functools.lru_cache
def _bundle(name: str) -> Bundle:
    return load_bundle(name)


def rows_of(todo: Sequence[Draw], folder: Path) -> list[Row]:
    """Of the draws that are measured: `test_accuracy` (%) of each method. Of all together, and by the images of a
    class, beside the best simple choice in hindsight: `worse_share` (%), of draws that are worse by more than MARGIN;
    `clearly_worse_share` (%), of those in which chance in the test images is no explanation; `over_best` (points), the
    mean difference."""
    rows: list[Row] = []
    over: defaultdict[tuple[str, str, str], list[tuple[float, bool]]] = defaultdict(list)
    for draw in todo:
        result = kept(folder, draw)
        if result is None:
            continue
        for method, (at, (step, epoch)) in itertools.product((*SIMPLE, *JUDGED), AT.items()):
            condition = f"{draw.body} body; chosen: {result['names']['chosen']}"
            about = (draw.bundle, draw.dataset, method, draw.number, "test_accuracy", result[at][method], "%")
            rows.append(Row(*about, step=step, epoch=epoch, shots=draw.shots, condition=condition))
            points = result[at][method] - max(result[at][m] for m in SIMPLE)
            for which in ("all draws", f"{draw.shots or 'all'} of a class"):
                over[method, at, which].append((points, result[f"clearly worse, {at}"][method]))
    for (method, at, which), found in over.items():
        step, epoch = AT[at]
        for metric, value, unit in (
            ("worse_share", 100 * mean(points < -MARGIN for points, _ in found), "%"),
            ("clearly_worse_share", 100 * mean(points < -MARGIN and clearly for points, clearly in found), "%"),
            ("over_best", mean(points for points, _ in found), "points"),
        ):
            rows.append(Row("all", "all", method, 0, metric, value, unit, step=step, epoch=epoch, condition=which))
    return rows
