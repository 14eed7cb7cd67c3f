"""What initialize() costs: beside a forward pass, beside an epoch of fine-tuning, in memory, and to import.

Seconds are those of one thread's processor time, which other work on the machine disturbs least. All figures of one
bundle are measured side by side in one run.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from d2nwg_init.accepted_model import working_copy
from d2nwg_init.benchmarks.fine_tuning import FineTuning, as_tensors, shuffled_loader, train_steps
from d2nwg_init.benchmarks.peak_memory import gained_alone
from d2nwg_init.benchmarks.results import Row
from d2nwg_init.bundles import find_bundle
from d2nwg_init.candidates import SAMPLING_STEPS, placed, propose
from d2nwg_init.hook import initialize
from d2nwg_init.planned_bodies import PlannedBodies
from d2nwg_init.refine import BATCH, default_steps, refine
from pretrained_generators.bundle import Bundle, load_bundle
from zoo_builder.backbones import predict
from zoo_builder.datasets import ImageDataset
from zoo_builder.support_set import SupportSet, read_support_set

EPOCH_IMAGES = 6000
REPEATS = 2  # of which the quickest counts, for what is short
# By name, for the package alone imports nothing.
IMPORT = (
    "import timm, time; began = time.perf_counter(); from d2nwg_init import initialize; "
    "print(time.perf_counter() - began)"
)


def run_init_benchmark(
    name: str, dataset: ImageDataset, *, num_candidates: int = 8, num_support: int = 1024, seed: int = 0
) -> list[Row]:
    """Rows of an embedded bundle, or one in a folder, on images of `dataset`, which come shifted again up to an epoch.

    seconds                       by method: "initialize", its stages, a "forward" pass of the images read, an "epoch"
    evaluation_over_forward       calibrating, solving and scoring all candidates, probes too, over one forward pass
    total_over_epoch              initialize() over an epoch
    peak_extra_bytes              memory of a first call, its imports too, beyond bundle, images read and the
                                  activations of one batch
    peak_over_weights             the same over the bytes of the model's weights

    Raises:
        BundleError: no such bundle.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _Bench(name, dataset, num_candidates, num_support, seed).rows()
    finally:
        torch.set_num_threads(threads)


class _Bench:
    def __init__(self, name: str, dataset: ImageDataset, num_candidates: int, num_support: int, seed: int) -> None:
        self.name, self.dataset, self.seed = name, dataset, seed
        self.num_candidates, self.num_support = num_candidates, num_support
        self.bundle = load_bundle(name)
        self.size = self.bundle.config.generator.size
        images, labels = as_tensors(dataset, self.bundle.generator.base, self.size, "train")
        times = -(-EPOCH_IMAGES // len(images))
        # Each time a pixel farther: an image that comes again is not read.
        epoch = torch.cat([images.roll(i, dims=-1) for i in range(times)])[:EPOCH_IMAGES]
        self.images = TensorDataset(epoch, labels.repeat(times)[:EPOCH_IMAGES])

    def rows(self) -> list[Row]:
        extra, weights = self.memory()
        seconds = self.seconds()
        forward, evaluation = seconds["forward"], seconds["evaluation"]
        figures = [("seconds", stage, value, "s") for stage, value in seconds.items()]
        figures += [
            ("evaluation_over_forward", "initialize", evaluation / forward, "1"),
            ("total_over_epoch", "initialize", seconds["initialize"] / seconds["epoch"], "1"),
        ]
        if extra is not None:
            figures.append(("peak_extra_bytes", "initialize", float(extra), "B"))
            figures.append(("peak_over_weights", "initialize", extra / weights, "1"))
        return [
            Row(self.bundle.config.name, self.dataset.name, method, self.seed, metric, value, unit, device="cpu")
            for metric, method, value, unit in figures
        ]

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.bundle.config.generator.backbone.create(num_classes=self.dataset.num_classes)

    def loader(self) -> DataLoader:
        images, labels = self.images.tensors
        return shuffled_loader(images, labels, self.seed)

    def support(self) -> SupportSet:
        return read_support_set(self.loader(), self.num_support, self.dataset.num_classes, self.seed)

    def initialize(self, generator: str | Bundle) -> None:
        initialize(
            self.model(),
            self.loader(),
            generator=generator,
            num_candidates=self.num_candidates,
            num_support=self.num_support,
            seed=self.seed,
            progress=False,
        )

    def memory(self) -> tuple[int | None, int]:
        """The most bytes beyond the images, the bundle and a batch's activations; and the bytes of the weights."""
        given = (self.name, self.dataset, self.num_candidates, self.num_support, self.seed)
        activations, whole = (gained_alone(functools.partial(one, *given)) for one in (_one_batch, _one_call))
        weights = sum(t.nbytes for t in self.model().state_dict().values())
        if whole is None or activations is None:
            return None, weights
        return whole - activations - len(self.support()) * self.images[0][0].nbytes, weights

    def seconds(self) -> dict[str, float]:
        """Of the whole call, of its stages and of what it is compared with."""
        self.initialize(self.bundle)  # what is imported and filled at a first call is not timed
        model, generator = self.model(), self.bundle.generator
        seconds = {"initialize": _timed(lambda: self.initialize(self.name), repeats=1), "reading": _timed(self.support)}
        seconds["bundle"] = _timed(lambda: find_bundle(model, self.name))
        support = self.support()
        given = (support.images, support.labels, support.num_classes)
        seconds["embedding"] = _timed(lambda: generator.encoder(generator.features(support.images), *given[1:]))
        condition = generator.embed(*given)
        seconds["sampling"] = _timed(
            lambda: generator.sample_deltas(condition, self.num_candidates, self.seed, SAMPLING_STEPS)
        )
        work = working_copy(model)
        plan = PlannedBodies(work, self.bundle, "auto", self.num_candidates, screen=True)
        candidates = _timed(lambda: list(propose(work, support, plan.until(None, support, self.seed))))
        seconds["evaluation"] = candidates - seconds["embedding"] - seconds["sampling"]
        work.load_state_dict(model.state_dict())
        steps = default_steps(len(support))
        seconds["refining"] = _timed(lambda: refine(work, support, steps, self.seed, plan.names), repeats=1)
        seconds["forward"] = _timed(lambda: predict(work, placed(support.images, work)))
        epoch = train_steps(model, self.loader(), FineTuning(), -(-EPOCH_IMAGES // FineTuning.batch_size))
        seconds["epoch"] = _timed(lambda: list(epoch), repeats=1)
        return seconds


def _one_batch(*given: Any) -> Callable[[], object]:
    """Forward and backward, in a process of its own."""
    torch.set_num_threads(1)
    bench = _Bench(*given)
    model, image = bench.model(), bench.images[0][0]
    return lambda: model(image.expand(BATCH, *image.shape)).sum().backward()


def _one_call(*given: Any) -> Callable[[], object]:
    """initialize(), in a process of its own."""
    torch.set_num_threads(1)
    bench = _Bench(*given)
    return lambda: bench.initialize(bench.bundle)


def import_row() -> Row:
    """Seconds that importing `initialize` takes after `import timm`, in an interpreter of its own."""
    runs = [
        subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True) for _ in range(3)
    ]
    return Row("", "none", "import", 0, "import_extra_seconds", min(float(r.stdout) for r in runs), "s")


def _timed(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Processor seconds of the quickest of `repeats` runs."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)
