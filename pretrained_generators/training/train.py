"""A zoo and a recipe -> a bundle: layout, VAE, encoder, diffusion, measured and saved."""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretrained_generators.bundle import (
    BundleConfig,
    TrainedOn,
    load_config,
    record_files,
    replaced_bundle,
    save_bundle,
)
from pretrained_generators.bundle_config import check_can_be_told
from pretrained_generators.bundle_files import BESIDE, CONFIG, SAID_OF_WEIGHTS, STATISTICS, WEIGHTS
from pretrained_generators.generator import MAX_PROBES, Generator, GeneratorConfig
from pretrained_generators.low_rank import SharedSubspaces
from pretrained_generators.training.dataset_statistics import statistics_of_zoo
from pretrained_generators.training.diffusion import train_diffusion
from pretrained_generators.training.encoder import train_encoder
from pretrained_generators.training.episodes import EpisodeSource, probabilities
from pretrained_generators.training.functional import train_functional
from pretrained_generators.training.gates import GATES, reconstruction_gain_kept, sampling_gain_kept
from pretrained_generators.training.processes import is_first, process_count, wait_for_all
from pretrained_generators.training.recipe import GeneratorRecipe, check_recipe, check_shares
from pretrained_generators.training.vae import encode_all, train_vae
from pretrained_generators.training.zoo_data import probe_zoo, read_zoo_data, select_entries, target_delta
from pretrained_generators.training_plot import draw_training
from pretrained_generators.weight_layout import WeightLayout
from zoo_builder.backbones import load_body
from zoo_builder.datasets import dataset_names
from zoo_builder.errors import BundleError, DataError, RecipeError, ZooError
from zoo_builder.files import write_text_atomically
from zoo_builder.sources import read_sources
from zoo_builder.store import Zoo, ZooEntry, files_sha256

STAGES = ("vae", "encoder", "diffusion", "functional")
PLOT = "training.svg"
TRAINING = "training"  # a folder in that of the bundle, with what the stages resume from
MEASURED_ENTRIES = 16  # zoo entries that the samples are measured on
MEASURED_SAMPLES = 2  # samples for each


def train_generator(
    zoo: Zoo, recipe: GeneratorRecipe, out: Path, data_dir: Path | None = None, device: str = "cpu"
) -> BundleConfig:
    """Run the stages that are not finished and write a bundle to `out`; their state is kept in `out`/training.

    A bundle of the same recipe, base and entries that is there already is returned as it is. `data_dir` holds the
    zoo's datasets, for a recipe that trains end to end. `device` has all stages but the VAE's, which begins near its
    end. Processes of a group share the batches of these stages, and the first one writes.

    Raises:
        RecipeError: `out` holds a bundle or a begun training of another kind, or the recipe is wrong, or trains end to
            end and there is no `data_dir`, or no entry is of the plans that probe, or all are, or none trained what is
            in scope, or a group of processes cannot share a batch alike, or a stage diverges.
        DataError: a dataset of the zoo is not in `data_dir`, or has changed since. ZooError: an entry is not there that
            another went on from, or the base is beyond half precision. BundleError: a name or licence that no bundle
            can tell, or more entries and parameters; or `out` holds anything that is no bundle's.
    """
    check_recipe(recipe)
    _check_folder(out)
    if recipe.functional_training.steps and data_dir is None:
        raise RecipeError(f"{recipe.name} trains end to end, on the images of the zoo's datasets. Give their --data.")
    folder = out / TRAINING
    entries = select_entries(zoo, recipe.plans)
    if recipe.functional_training.steps and data_dir is not None:
        _check_datasets(entries, data_dir)
    work: dict[str, Any] = {"recipe": asdict(recipe), "base": zoo.base_sha256, "entries": files_sha256(entries)}
    if zoo.batchnorm != "rescaled":  # so that older bundles keep their hashes
        work["batchnorm"] = zoo.batchnorm
    trained_with = hashlib.sha256(json.dumps(work).encode()).hexdigest()
    if (out / CONFIG).exists():
        before = load_config(out)
        if before.trained_with != trained_with:
            raise RecipeError(f"{out} holds a bundle of another recipe or zoo. Remove it, or take another --out.")
        if is_first():
            finish(folder, out, before)
        wait_for_all()
        return load_config(out)
    others = [e for e in entries if e.task.plan not in recipe.probes]
    probes = len(entries) - len(others)
    if recipe.probes and not probes:
        raise RecipeError(f"no entry of {list(recipe.plans)} is of {list(recipe.probes)}, to be a probe.")
    if probes > MAX_PROBES:
        raise RecipeError(f"{probes} entries are of {list(recipe.probes)}, and at most {MAX_PROBES} can be probes.")
    if not others:
        raise RecipeError(f"every entry of {list(recipe.plans)} is a probe, and none can be held back: fewer probes.")
    count = min(recipe.held_back, max(1, len(others) // 2))
    held_back = random.Random(recipe.seed).sample(others, count)  # every n-th by id could be of one domain
    learnt = [e for e in entries if e not in held_back]
    check_shares(recipe, len(learnt), process_count())
    stage = recipe.functional_training
    unseen = _seen_through(held_back) - _seen_through(learnt)
    names = sorted({n for e in learnt for n in e.task.datasets if any((n, d) not in unseen for d in stage.domains)})
    if stage.steps:
        probabilities(names, stage.domains, stage.shares)  # raises where episodes could not be drawn
    licences = {n: s["licence"] for e in entries for a in e.ancestry() for n, s in a.about.get("sources", {}).items()}
    trained_on, base_saw = _trained_on(learnt, licences), zoo.base_pretrained_on().split(", ")
    about: dict[str, Any] = {
        "name": recipe.name,
        "trained_on": trained_on,
        "held_out": zoo.held_out,
        "base_sha256": zoo.base_sha256,
        "base_pretrained_on": ", ".join(base_saw),
        "base_licence": ", ".join(dict.fromkeys(licences.get(n, "unknown") for n in base_saw)),
        "learnt": tuple(e.id for e in learnt),
        "kept_back": tuple(e.id for e in held_back),
        "zoo_sha256": files_sha256(learnt),
        "trained_with": trained_with,
    }
    torch.manual_seed(recipe.seed)
    layout = WeightLayout.of(zoo.backbone.create(), recipe.chunk, recipe.vectorisation, recipe.scope, recipe.rank)
    models = recipe.vae, recipe.encoder, recipe.diffusion
    config = GeneratorConfig(zoo.backbone, zoo.size, layout, *models, probes, zoo.batchnorm)
    check_can_be_told(about | {"trained_on": [asdict(t) for t in trained_on], "generator": asdict(config)})
    if not any(target_delta(e)[b.name].any() for e in learnt for b in layout.blocks):
        raise RecipeError(
            f"scope: no entry of {list(recipe.plans)} trained a parameter in {recipe.scope!r}, and there is nothing to "
            "learn. Take a scope that the zoo's tasks trained."
        )
    _same_work_as_before(folder, trained_with)  # all that the recipe could have wrong is behind
    subspaces = SharedSubspaces(layout)
    subspaces.fit(target_delta(e) for e in learnt)
    layout = layout.scaled_to(subspaces.reduce(target_delta(e)) for e in learnt)
    generator = Generator(replace(config, layout=layout))
    generator.subspaces.load_state_dict(subspaces.state_dict())
    load_body(generator.base, zoo.base(), str(zoo.path / "base.safetensors"))
    _check_half(generator.base)

    data = read_zoo_data(learnt, generator)
    train_vae(generator.vae, data.chunks, recipe.vae_training, folder, recipe.seed)
    latents = encode_all(generator.vae, data.chunks)
    generator.to(device)
    data, latents = data.to(device), latents.to(device)
    data = probe_zoo(generator, data, latents, recipe.probes, folder / "probed.safetensors")
    train_encoder(generator.encoder, data, latents, recipe.encoder_training, folder, recipe.seed)
    train_diffusion(
        generator.diffusion,
        generator.encoder,
        data,
        latents - generator.anchor(data.probed),
        recipe.diffusion_training,
        recipe.encoder_training,
        folder,
        recipe.seed,
    )
    if stage.steps and data_dir is not None:
        with tempfile.TemporaryDirectory() as images:
            source = EpisodeSource(
                names, data_dir, zoo.size, Path(images), stage.domains, stage.shares, unseen, read_sources(zoo.path)
            )
            train_functional(generator, source, stage, folder, recipe.seed)
    _round_to_half(generator.cpu())

    wait_for_all()  # the first one removes what they resume from
    if not is_first():
        wait_for_all()
        return load_config(out)
    rebuilt = reconstruction_gain_kept(generator, held_back)
    some = learnt[:: max(1, len(learnt) // MEASURED_ENTRIES)]
    sampled, unseen_sampled = (
        sampling_gain_kept(generator, of, MEASURED_SAMPLES, recipe.seed) for of in (some, held_back)
    )
    measured = {
        "reconstruction_gain_kept": rebuilt.share,
        "reconstruction_gain_original": rebuilt.original,
        "sampling_gain_kept": sampled.share,
        "sampling_gain_original": sampled.original,
        "sampling_gain_kept_back": unseen_sampled.share,
        "compression": layout.size / (layout.num_chunks * recipe.vae.latent),
    }
    generator.statistics = statistics_of_zoo(generator, entries, [t.name for t in trained_on])
    measured = {k: v for k, v in measured.items() if math.isfinite(v)}  # JSON has no NaN; absent: no gain to keep
    bundle = save_bundle(generator, out, measured=measured, **about)
    bundle = finish(folder, out, bundle)
    wait_for_all()
    return bundle


def _check_folder(out: Path) -> None:
    """A bundle could be written there, and read."""
    before = replaced_bundle(out)
    files = {f.name for f in before.files} if before else set()
    known = files | {TRAINING, CONFIG, WEIGHTS, STATISTICS, *SAID_OF_WEIGHTS, *BESIDE}
    there = [p.name for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
    if strange := sorted(set(there) - known):
        raise BundleError(
            f"{out} holds {strange[0]!r}, which is no part of a bundle: beside it none could be read. Name a folder of "
            "the bundle's own."
        )


def finish(folder: Path, out: Path, bundle: BundleConfig) -> BundleConfig:
    """Keep the log with the bundle, and remove what the stages resume from; goes on where a kill ended this."""
    if not folder.exists():
        return bundle
    if not any(f.name == PLOT for f in bundle.files):  # else the log is whole, and what it was made of may not be
        write_log(folder, out, bundle.measured)
        bundle = record_files(bundle, out)
    shutil.rmtree(folder)
    return bundle


def write_log(folder: Path, out: Path, measured: Mapping[str, float]) -> None:
    """metrics.jsonl, the stages' losses and what was measured in the end, and training.svg, drawn from it."""
    logs = [(folder / f"{stage}.jsonl") for stage in STAGES]
    lines = [line for log in logs if log.exists() for line in log.read_text().splitlines() if _is_json(line)]
    # What was cut off after a line and before its checkpoint wrote the line again.
    steps = {(step["stage"], step["step"]): step for step in map(json.loads, lines)}.values()
    text = "".join(f"{json.dumps(line)}\n" for line in (*steps, {"stage": "measured", **measured}))
    write_text_atomically(out / "metrics.jsonl", text)
    write_text_atomically(out / PLOT, draw_training(list(steps), measured, GATES))


def _is_json(line: str) -> bool:
    """A loss of power may have cut a line, and the next one been written on to it."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _seen_through(entries: list[ZooEntry]) -> set[tuple[str, str]]:
    """Datasets and the domains that entries saw them through."""
    return {(name, domain) for e in entries for name in e.task.datasets for domain in e.task.domains}


def _trained_on(entries: list[ZooEntry], licences: Mapping[str, str]) -> tuple[TrainedOn, ...]:
    """All datasets that had a part in the weights of entries: their own, those related to them, and those of what they
    went on from. The first alone count as entries of a dataset."""
    counts = Counter(name for e in entries for name in e.task.datasets)
    tasks = [a.task for e in entries for a in e.ancestry()]
    names = sorted({name for t in tasks for name in (*t.datasets, *t.related)})
    return tuple(TrainedOn(n, counts[n], licences.get(n, "unknown")) for n in names)


def _check_datasets(entries: list[ZooEntry], data_dir: Path) -> None:
    """Those of the folder are there; others (`torchvision:NAME` and the like) are looked for when they are read."""
    there = dataset_names(data_dir)
    absent = sorted({n for e in entries for n in e.task.datasets if ":" not in n and n not in there})
    if absent:
        raise DataError(
            f"{data_dir} lacks datasets of the zoo: {', '.join(absent)}. Give the folder it was built from."
        )


def _same_work_as_before(folder: Path, trained_with: str) -> None:
    """A begun training goes on only with what it was begun with."""
    record = folder / "begun_with"
    if record.exists() and record.read_text() != trained_with:
        raise RecipeError(
            f"{folder} holds a training begun with another recipe or zoo. Remove it, or take another --out."
        )
    if is_first():
        write_text_atomically(record, trained_with)


def _check_half(base: nn.Module) -> None:
    """Before anything is trained: what is shipped is in half precision.

    Raises:
        ZooError: a tensor of the base has values beyond that.
    """
    most = torch.finfo(torch.float16).max
    for name, tensor in base.state_dict().items():
        if tensor.is_floating_point() and not (tensor.abs() <= most).all():
            raise ZooError(
                f"The base's {name} has values beyond {most:.0f}, which a bundle, in half precision, cannot hold. "
                "Build the zoo on another base."
            )


def _round_to_half(generator: Generator) -> None:
    """What is measured is what is shipped: bundles store half precision."""
    with torch.no_grad():
        for tensor in generator.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
