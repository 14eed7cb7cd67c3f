"""What is measured, cut into cells: one method on one dataset with one seed. Each is a file, whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from d2nwg_init.benchmarks.results import source_commit
from zoo_builder.checkpoint import read_tensors, write_atomically

CURVE_IMAGES = 300  # test images, at most, that a curve is drawn from; steps and epochs are measured on all
Training = Literal["none", "rates", "short", "long"]


@dataclass(frozen=True)
class Cell:
    dataset: str
    shots: int | None  # train images of a class; None is all
    seed: int
    method: str
    training: Training = "none"  # see run.py
    condition: str = "right"  # "right", "shuffled" or "null"
    sample: int | None = None  # which of a generator's samples
    sigma: float | None = None  # of the noise, in units of each tensor's root mean square
    strength: float | None = None  # of the delta; None where the method has none
    learning_rate: float | None = None  # None where nothing is trained
    bundle: str | None = None  # the beginning of its weights' SHA-256, where it has an influence
    other: str | None = None  # the dataset that a shuffled condition is of
    data: str | None = None  # the beginning of the dataset's SHA-256, and of the other's

    @property
    def id(self) -> str:
        """A readable name that tells all fields, and is that of a file: a dataset may be called hf:ORG/NAME."""
        shots = "all" if self.shots is None else self.shots
        rest = {"n": self.sample, "sigma": self.sigma, "x": self.strength, "lr": self.learning_rate}
        extra = "".join(f"-{k}{v:g}" for k, v in rest.items() if v is not None)
        extra += "".join(f"-{v}" for v in (self.bundle, self.other, self.data) if v)
        name = f"{self.dataset}-{shots}-{self.seed}-{self.method}-{self.condition}-{self.training}{extra}"
        return name.replace("/", "%2F")  # of hf:ORG/NAME


@dataclass(frozen=True)
class Measured:
    """What a cell came to."""

    correct: dict[str, np.ndarray]  # bool [test images], at "step/0", ..., "epoch/1", "epoch/10"
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds of training, accuracy (%)
    seconds: dict[str, float] = field(default_factory=dict)  # "initialise"; of training until "step/10", ...
    notes: dict[str, str | float] = field(default_factory=dict)
    commit: str | None = field(default_factory=source_commit)  # that measured it; None: it is not known

    def accuracy(self, at: str) -> float:
        """Test accuracy in percent."""
        return 100 * float(self.correct[at].mean())


def curve_images(count: int) -> torch.Tensor:
    """Places of those that a curve is drawn from among `count` test images."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:CURVE_IMAGES]


def write_cell(folder: Path, cell: Cell, measured: Measured) -> None:
    bits = {k: torch.from_numpy(np.packbits(v)) for k, v in measured.correct.items()}
    about = {
        "cell": asdict(cell),
        "images": {k: len(v) for k, v in measured.correct.items()},
        "curve": measured.curve,
        "seconds": measured.seconds,
        "notes": measured.notes,
        "commit": measured.commit,
    }
    write_atomically(folder / f"{cell.id}.safetensors", bits, {"cell": json.dumps(about)})


def read_cell(folder: Path, cell: Cell) -> Measured:
    tensors, metadata = read_tensors(folder / f"{cell.id}.safetensors")
    about = json.loads(metadata["cell"])
    correct = {k: np.unpackbits(tensors[k].numpy(), count=n).astype(bool) for k, n in about["images"].items()}
    curve = [tuple(p) for p in about["curve"]]
    return Measured(correct, curve, about["seconds"], about["notes"], about.get("commit"))


def missing(folder: Path, cells: Iterable[Cell]) -> list[Cell]:
    there = {p.stem for p in folder.glob("*.safetensors")}
    return [c for c in cells if c.id not in there]
