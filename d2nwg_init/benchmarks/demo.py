"""The main job on one dataset: five initialisations of one model, each fine-tuned briefly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from d2nwg_init.benchmarks.fine_tuning import FineTuning, as_tensors, fine_tune, shuffled_loader
from d2nwg_init.benchmarks.plain_base import plain_base
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.candidates import set_body_and_solve
from d2nwg_init.hook import initialize
from pretrained_generators.bundle import Bundle
from pretrained_generators.svg import default_style
from zoo_builder.datasets import ImageDataset
from zoo_builder.model_stack import shifted
from zoo_builder.progress import progress_bar
from zoo_builder.support_set import read_support_set

METHODS = ("scratch", "pretrained", "solved", "generated_mean", "initialize")


def run_demo(
    dataset: ImageDataset,
    bundle: Bundle,
    recipe: FineTuning,
    *,
    seeds: int,
    num_samples: int = 2,
    num_support: int = 1024,
) -> list[Row]:
    """Rows of `test_accuracy` (%) by step and of `seconds` (to initialise; to fine-tune) for each method and seed.

    `generated_mean` has a row for each of `num_samples` samples, none of them selected.
    """
    rows: list[Row] = []
    with progress_bar(f"demo on {dataset.name}", total=seeds * (len(METHODS) - 1 + num_samples)) as bar:
        for seed in range(seeds):
            bench = _Bench(dataset, bundle, seed, num_support)
            for method, sample, make in bench.methods(num_samples):
                began = time.perf_counter()
                model = make()
                made = time.perf_counter()
                accuracies = fine_tune(model, bench.loader(whole=True), bench.test, recipe)
                seconds = {"initialise": made - began, "fine_tune": time.perf_counter() - made}
                about = (bundle.config.name, dataset.name, method, seed)
                for step, value in accuracies.items():
                    rows.append(Row(*about, "test_accuracy", value, "%", step=step, sample=sample))
                for stage, value in seconds.items():
                    rows.append(Row(*about, f"seconds_{stage}", value, "s", sample=sample))
                bar.advance()
                bar.note(f"{method} {accuracies[0]:.1f} %")
    return rows


class _Bench:
    """One dataset and seed: every method gets the same model, images and order of training."""

    def __init__(self, dataset: ImageDataset, bundle: Bundle, seed: int, num_support: int) -> None:
        self.dataset, self.bundle, self.seed, self.num_support = dataset, bundle, seed, num_support
        self.size = bundle.config.generator.size
        self.test = as_tensors(dataset, bundle.generator.base, self.size, "test")
        self._train = as_tensors(dataset, bundle.generator.base, self.size, "train")
        self.support = read_support_set(self.loader(), num_support, dataset.num_classes)

    def loader(self, whole: bool = False) -> DataLoader:
        """Over the train images; in `whole` batches to train on."""
        return shuffled_loader(*self._train, self.seed, whole=whole)

    def methods(self, num_samples: int) -> Iterator[tuple[str, int | None, Callable[[], nn.Module]]]:
        """Name, sample and maker of each method."""
        yield "scratch", None, self.scratch
        yield "pretrained", None, self.pretrained
        yield "solved", None, lambda: self.with_head(plain_base(self.bundle.generator, self.support.images))
        for i in range(num_samples):
            yield "generated_mean", i, lambda i=i: self.with_head(self.generated(i))  # type: ignore[misc]
        yield "initialize", None, self.initialized

    def scratch(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.bundle.config.generator.backbone.create(num_classes=self.dataset.num_classes)

    def pretrained(self) -> nn.Module:
        """The base checkpoint, BatchNorm statistics included, with a fresh head: what users do today."""
        model = self.scratch()
        model.load_state_dict(self.bundle.generator.base.state_dict(), strict=False)
        return model

    def with_head(self, body: dict[str, torch.Tensor]) -> nn.Module:
        model = self.scratch()
        set_body_and_solve(model, body, self.support.images, self.support.labels)
        return model

    def generated(self, sample: int) -> dict[str, torch.Tensor]:
        generator = self.bundle.generator
        embedding = generator.embed(self.support.images, self.support.labels, self.support.num_classes)
        # A seed of its own: these samples are not among those that initialize() chooses from.
        delta = generator.sample_deltas(embedding, 1, 1_000_000 + 1_000 * self.seed + sample)[0]
        return shifted(generator.fitted_base(self.support.images), delta)

    def initialized(self) -> nn.Module:
        model = self.scratch()
        self.report = initialize(
            model, self.loader(), generator=self.bundle, num_support=self.num_support, seed=self.seed, progress=False
        )
        return model


@default_style()
def draw_curves(rows: list[Row], path: Path) -> None:
    """A PNG of test accuracy against steps, mean over seeds and samples, a panel for each dataset."""
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(r.dataset for r in rows))
    figure = Figure(figsize=(5.5 * len(datasets), 4))
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axis, dataset in zip(axes, datasets, strict=True):
        for method in METHODS:
            means = mean_accuracies([r for r in rows if r.dataset == dataset], method)
            axis.plot(list(means), list(means.values()), marker="o", label=method)
        axis.set(xscale="symlog", xlabel="fine-tuning steps", ylabel="test accuracy (%)")
        axis.set_title(dataset, parse_math=False)
        axis.set_xticks(list(means), labels=[str(s) for s in means])
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")


def mean_accuracies(rows: list[Row], method: str) -> dict[int, float]:
    """Step -> mean over seeds and samples of one method's test accuracy."""
    values: dict[int, list[float]] = {}
    for r in rows:
        if r.method == method and r.metric == "test_accuracy" and r.step is not None:
            values.setdefault(r.step, []).append(r.value)
    return {step: sum(v) / len(v) for step, v in values.items()}


def mean_seconds(rows: list[Row], method: str, stage: str) -> float:
    values = [r.value for r in rows if r.method == method and r.metric == f"seconds_{stage}"]
    return sum(values) / len(values)
