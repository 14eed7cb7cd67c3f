"""Bundles damaged at random: each must end in a BundleError, or in a generator that works."""

from __future__ import annotations

import functools
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from d2nwg_init.benchmarks.mutations import Files, mutate
from d2nwg_init.benchmarks.peak_memory import peak_memory
from d2nwg_init.benchmarks.results import Row
from pretrained_generators.bundle import TrainedOn, load_bundle, record_files, save_bundle
from pretrained_generators.dataset_encoder import EncoderConfig
from pretrained_generators.generator import Generator, GeneratorConfig
from pretrained_generators.latent_diffusion import DiffusionConfig
from pretrained_generators.weight_layout import WeightLayout
from pretrained_generators.weight_vae import VAEConfig
from zoo_builder.backbones import BackboneSpec
from zoo_builder.errors import BundleError

BASE_SOURCE = "the bundle tiny"
HANGS_AFTER = 60.0  # seconds of the processor; the process is ended then
SLOW_AFTER = 1.0  # seconds of the processor
MEMORY_SLACK = 16 * 2**20  # bytes of resident memory that an interpreter may gain for other reasons


@dataclass(frozen=True)
class Outcome:
    seed: int
    rehashed: bool
    end: str  # "refused", "loaded" or "crashed"
    seconds: float  # of the processor, for loading
    largest_bytes: int = 0  # of the tensors that loading allocated
    extra_bytes: int | None = None  # resident memory that loading gained at its peak; None: not known on this system
    file_bytes: int = 0  # of the damaged bundle
    error: str = ""

    @property
    def too_slow(self) -> bool:
        return self.seconds > SLOW_AFTER

    @property
    def too_much_memory(self) -> bool:
        """A tensor of more than twice the files' size, or that much in all beside the files, which are mapped."""
        allowed = 2 * self.file_bytes
        return self.largest_bytes > allowed or (self.extra_bytes or 0) > allowed + self.file_bytes + MEMORY_SLACK

    @property
    def failed(self) -> bool:
        return self.end == "crashed" or self.too_slow or self.too_much_memory


def tiny_bundle(folder: Path, base_source: str | None = None) -> None:
    """A generator that was not trained, of a transformer of one layer, in half precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = BackboneSpec("test_vit", img_size=32, args={"embed_dim": 16, "depth": 1, "num_heads": 2})
        layout = WeightLayout.of(backbone.create(), 1024)
        sizes = VAEConfig(2, 16, 1, 2), EncoderConfig(16, 4, 2, 8), DiffusionConfig(16, 1, 2)
        generator = Generator(GeneratorConfig(backbone, 32, layout, *sizes, probes=1)).half().float()
    config = save_bundle(
        generator, folder, base_source, name="tiny", trained_on=(TrainedOn("nothing", 1, "MIT"),), held_out=("all",),
        base_sha256="0" * 64, base_pretrained_on="nothing",
    )  # fmt: skip
    (folder / "metrics.jsonl").write_text("{}\n")  # a file beside the weights, which damage hits too
    record_files(config, folder)


def damage_and_load(files: Files, base: torch.nn.Module | None, seed: int) -> Outcome:
    """One input: `files` is a sound bundle's, `base` the body of one that leaves it out."""
    files = dict(files)
    rehashed = mutate(Random(seed), files)
    with TemporaryDirectory() as folder:
        for name, contents in files.items():
            (Path(folder) / name).write_bytes(contents)
        generator, end, error = None, "loaded", ""
        began = time.process_time()
        with peak_memory() as peak, _LargestTensor() as largest:
            try:
                generator = load_bundle(folder, base).generator
            except BundleError as e:
                end, error = "refused", str(e)
            except Exception as e:
                end, error = "crashed", repr(e)
        seconds = time.process_time() - began
        try:
            if generator is not None:
                _check_works(generator)
        except Exception as e:
            end, error = "crashed", repr(e)
    size = sum(map(len, files.values()))
    return Outcome(seed, rehashed, end, seconds, largest.bytes, peak.gained, size, error.replace(folder, "BUNDLE"))


class _LargestTensor(TorchDispatchMode):
    """The memory of the largest tensor that an operation inside gave, mapped or not; one in shapes alone has none."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def _check_works(generator: Generator) -> None:
    """What `initialize` would do with it; values may be wild, which `initialize` sees and discards."""
    images = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)
    condition = generator.embed(images, torch.tensor([0, 0, 1, 1]), 2)
    deltas = [*generator.sample_deltas(condition, 1, seed=0, steps=2), *generator.probe_deltas()]
    shapes = {b.name: b.shape for b in generator.config.layout.blocks}
    for delta in deltas:
        if {k: tuple(v.shape) for k, v in delta.items()} != shapes:
            raise ValueError("a delta does not have the shapes of the layout")


def fuzz_bundle(folder: Path, seeds: Sequence[int], base_of: Path | None = None) -> Iterator[Outcome]:
    """Outcomes of damaged copies of the bundle in `folder`, one for each seed, from a process that may die of them.

    `base_of` is a bundle that has the base, where `folder` leaves it out.
    """
    one = functools.partial(_in_process, folder, base_of)
    while seeds:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                for outcome in pool.map(one, seeds):
                    seeds = seeds[1:]
                    yield outcome
            except BrokenProcessPool:
                yield Outcome(seeds[0], False, "crashed", HANGS_AFTER, error="the process died")
                seeds = seeds[1:]


def _in_process(folder: Path, base_of: Path | None, seed: int) -> Outcome:
    signal.setitimer(signal.ITIMER_PROF, HANGS_AFTER)  # its signal ends the process
    return damage_and_load(*_sound(folder, base_of), seed)


@functools.cache
def _sound(folder: Path, base_of: Path | None) -> tuple[Files, torch.nn.Module | None]:
    torch.set_num_threads(1)
    base = load_bundle(base_of).generator.base if base_of else None
    return {p.name: p.read_bytes() for p in folder.iterdir()}, base


def fuzz_rows(bundle: str, outcomes: Sequence[Outcome]) -> list[Row]:
    counts = {
        "inputs": len(outcomes),
        "inputs_rehashed": sum(o.rehashed for o in outcomes),
        "refused": sum(o.end == "refused" for o in outcomes),
        "loaded": sum(o.end == "loaded" for o in outcomes),
        "crashes": sum(o.end == "crashed" for o in outcomes),
        "over_a_second": sum(o.too_slow for o in outcomes),
        "over_twice_the_memory": sum(o.too_much_memory for o in outcomes),
    }
    most = {
        "slowest_seconds": (max(o.seconds for o in outcomes), "s"),
        "largest_tensor_over_file_size": (max(o.largest_bytes / max(o.file_bytes, 1) for o in outcomes), "1"),
        "most_extra_bytes": (float(max(o.extra_bytes or 0 for o in outcomes)), "B"),
    }
    figures = {metric: (float(n), "1") for metric, n in counts.items()} | most
    return [
        Row(bundle, "none", "load_bundle", outcomes[0].seed, m, value, unit) for m, (value, unit) in figures.items()
    ]
