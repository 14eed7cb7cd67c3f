"""What is measured: a base, and what is known beside it: the zoo of its deltas, a generator."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from d2nwg_init.benchmarks.transfer.regressor import NetworkRegressor
from d2nwg_init.benchmarks.transfer.splits import SPLITS
from pretrained_generators.bundle import Bundle, load_bundle, load_config
from pretrained_generators.training.zoo_data import load_bundle_beside
from zoo_builder.backbones import BackboneSpec, load_body
from zoo_builder.batchnorm_fit import BatchNormFit, fit_batchnorm
from zoo_builder.clusters import embed_dataset
from zoo_builder.datasets.same_dataset import is_among
from zoo_builder.delta_library import DeltaLibrary
from zoo_builder.errors import BundleError, ZooError
from zoo_builder.model_stack import shifted
from zoo_builder.store import Zoo

PROTOCOL = 4  # of the cells; another number is another folder


@dataclass(frozen=True)
class SubjectSpec:
    """Where it is; small, to be sent to workers. One of the two, or both, of the same base."""

    zoo: str | None
    bundle: str | None
    plans: tuple[str, ...]  # of the zoo, whose entries the rivals combine
    universal: str  # the zoo's plan of the one delta for all datasets


@dataclass(frozen=True)
class Subject:
    name: str
    backbone: BackboneSpec
    size: int  # pixels
    base: Mapping[str, torch.Tensor]  # the body's state dict
    library: DeltaLibrary | None
    universal: Mapping[str, torch.Tensor] | None  # a delta
    network: NetworkRegressor | None
    bundle: Bundle | None
    batchnorm: BatchNormFit  # of the base, as deltas are added to it

    @functools.cached_property
    def body(self) -> nn.Module:
        """The base in evaluation mode, to look at datasets through."""
        body = self.backbone.create().requires_grad_(False).eval()
        load_body(body, self.base, self.name)
        return body.to(memory_format=torch.channels_last)

    @property
    def bundle_digest(self) -> str | None:
        return self.bundle.config.weights_sha256[:10] if self.bundle else None

    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: self.base[name] for name, _ in self.body.named_parameters()}

    def fitted(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The base's parameters, BatchNorm fitted to normalised images [N, C, H, W]: what deltas are added to."""
        return shifted(self.parameters(), fit_batchnorm(self.body, images, self.batchnorm))

    def embed(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[k], as the zoo's entries are embedded; of normalised images [N, C, H, W]."""
        with torch.no_grad():
            return embed_dataset(self.body, images, labels)


def work_folder(spec: SubjectSpec, root: Path) -> Path:
    """The folder under `root` for all that is measured of a subject: another base or zoo has another one.

    Bundles of one zoo share it, and with it the rows that no bundle changes.
    """
    parts: dict[str, object] = {"protocol": PROTOCOL, "plans": spec.plans, "universal": spec.universal}
    if spec.zoo is not None:
        zoo = Zoo.open(spec.zoo)
        name, fit = zoo_name(zoo), zoo.batchnorm
        parts |= {"base": zoo.base_sha256, "entries": [e.sha256 for e in zoo.entries()]}
    else:
        name = identity(spec)[0]  # which raises where there is nothing to measure
        config = load_config(str(spec.bundle))
        fit = config.generator.batchnorm
        parts |= {"base": config.base_sha256}
    if fit != "rescaled":  # so that older folders keep their names
        parts["batchnorm"] = fit
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:10]
    return root / f"{name}-{digest}"


def open_subject(spec: SubjectSpec, folder: Path) -> Subject:
    """Read it; what takes long, the library's file and the regressor, is made in `folder` the first time.

    Raises:
        ZooError: neither a zoo nor a bundle, not of one base, or a zoo that knows datasets of the splits.
        BundleError: it cannot be read, or knows datasets of the splits.
    """
    name, backbone, size = identity(spec)
    if spec.bundle is not None and (seen := _measured(load_config(spec.bundle).seen)):
        raise BundleError(f"{spec.bundle} was trained on {seen}, which the benchmark measures on. Take another bundle.")
    if spec.zoo is None:
        alone = load_bundle(str(spec.bundle))
        fit = alone.config.generator.batchnorm
        return Subject(name, backbone, size, alone.generator.base.state_dict(), None, None, None, alone, fit)
    zoo = Zoo.open(spec.zoo)
    if spec.bundle is not None:
        config = load_config(spec.bundle)
        if (config.base_sha256, config.generator.batchnorm) != (zoo.base_sha256, zoo.batchnorm):
            raise ZooError(f"{spec.bundle} was trained on deltas to another base than {spec.zoo} has. Give its zoo.")
    entered = [d for e in zoo.entries() for d in (*e.task.datasets, *e.task.related)]
    if seen := _measured([*zoo.base_pretrained_on().split(", "), *entered]):
        raise ZooError(f"{spec.zoo} was trained on {seen}, which the benchmark measures on. Build it without them.")
    bundle = load_bundle_beside(zoo, spec.bundle) if spec.bundle is not None else None
    library = DeltaLibrary.of(zoo, spec.plans, folder / "deltas.f16")
    universal = next((e for e in zoo.entries([spec.universal])), None)
    if universal is None:
        raise ZooError(f"{spec.zoo} has no entry of the plan {spec.universal!r}: the row `universal` needs one.")
    subject = Subject(name, backbone, size, zoo.base(), library, universal.delta(), None, bundle, zoo.batchnorm)
    entries = [zoo.entry(i) for i in library.ids]
    network = NetworkRegressor.trained(subject.body, library, entries, folder)
    return replace(subject, network=network)


def _measured(names: Iterable[str]) -> list[str]:
    """Those that no zoo and no generator may have seen."""
    measured = [*SPLITS["development"], *SPLITS["held_out"]]
    return sorted({name for name in names if is_among(name, measured)})


def identity(spec: SubjectSpec) -> tuple[str, BackboneSpec, int]:
    """Its name, its backbone and the side of its images, in pixels.

    Raises:
        ZooError: neither a zoo nor a bundle.
    """
    if spec.bundle is not None:
        config = load_config(spec.bundle)
        return config.name, config.generator.backbone, config.generator.size
    if spec.zoo is None:
        raise ZooError("There is nothing to measure: give a --zoo, a --bundle, or both.")
    zoo = Zoo.open(spec.zoo)
    return zoo_name(zoo), zoo.backbone, zoo.size


def zoo_name(zoo: Zoo) -> str:
    return f"{zoo.model.rpartition(':')[2]}-{zoo.size}"
