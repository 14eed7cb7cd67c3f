"""Bundles damaged at random: each must end in a BundleError, or in a generator that works."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch

from d2nwg_init.benchmarks.mutations import Files, mutate
from d2nwg_init.benchmarks.peak_memory import peak_memory
from d2nwg_init.benchmarks.results import Row
from pretrained_generators.bundle import TrainedOn, load_bundle, save_bundle
from pretrained_generators.card import write_card
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
MEMORY_SLACK = 32 * 2**20  # bytes that an interpreter may gain for other reasons


@dataclass(frozen=True)
class Outcome:
    seed: int
    rehashed: bool
    end: str  # "refused", "loaded" or "crashed"
    seconds: float  # of the processor, for loading
    extra_bytes: int | None  # resident memory that loading gained at its peak; None: not known on this system
    file_bytes: int  # of the damaged bundle
    error: str = ""

    @property
    def too_much_memory(self) -> bool:
        """More than twice the files' size, beside the files themselves, which are mapped."""
        return self.extra_bytes is not None and self.extra_bytes > 3 * self.file_bytes + MEMORY_SLACK


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
    write_card(config, folder)


def damage_and_load(files: Files, seed: int, base: torch.nn.Module | None) -> Outcome:
    """One input: `files` is a sound bundle's, `base` the body of one that leaves it out."""
    files = dict(files)
    rehashed = mutate(Random(seed), files)
    with TemporaryDirectory() as folder:
        for name, contents in files.items():
            (Path(folder) / name).write_bytes(contents)
        generator, end, error = None, "loaded", ""
        before, began = _resident(), time.process_time()
        with peak_memory() as peak:
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
    extra = None if peak.bytes is None or before is None else peak.bytes - before
    return Outcome(seed, rehashed, end, seconds, extra, sum(map(len, files.values())), error.replace(folder, "BUNDLE"))


def _check_works(generator: Generator) -> None:
    """What `initialize` would do with it; values may be wild, which `initialize` sees and discards."""
    images = torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32)
    condition = generator.embed(images, torch.tensor([0, 0, 1, 1]), 2)
    deltas = [*generator.sample_deltas(condition, 1, seed=0, steps=2), *generator.probe_deltas()]
    shapes = {b.name: b.shape for b in generator.config.layout.blocks}
    for delta in deltas:
        if {k: tuple(v.shape) for k, v in delta.items()} != shapes:
            raise ValueError("a delta does not have the shapes of the layout")


def _resident() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def fuzz_bundle(folder: Path, inputs: int, base_of: Path | None = None, seed: int = 0) -> Iterator[Outcome]:
    """Outcomes of `inputs` damaged copies of the bundle in `folder`, in a process that may die of them.

    `base_of` is a bundle that has the base, where `folder` leaves it out.
    """
    with TemporaryDirectory() as work:
        written = Path(work) / "outcomes.jsonl"
        written.touch()
        done = 0
        while done < inputs:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                future = pool.submit(_damage_and_write, folder, range(seed + done, seed + inputs), base_of, written)
                while not future.done() or done < _lines(written):
                    for outcome in _read(written, done):
                        done += 1
                        yield outcome
                    time.sleep(0.2)
                try:
                    future.result()
                except BrokenProcessPool:
                    died = Outcome(seed + done, False, "crashed", HANGS_AFTER, None, 0, "the process died")
                    with written.open("a") as file:
                        file.write(json.dumps(asdict(died)) + "\n")


def _damage_and_write(folder: Path, seeds: range, base_of: Path | None, written: Path) -> None:
    torch.set_num_threads(1)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    base = load_bundle(base_of).generator.base if base_of else None
    with written.open("a") as file:
        for seed in seeds:
            signal.setitimer(signal.ITIMER_PROF, HANGS_AFTER)  # its signal ends the process
            file.write(json.dumps(asdict(damage_and_load(files, seed, base))) + "\n")
            file.flush()


def _lines(written: Path) -> int:
    return written.read_bytes().count(b"\n")


def _read(written: Path, skip: int) -> Iterator[Outcome]:
    for line in written.read_text().splitlines(keepends=True)[skip:]:
        if line.endswith("\n"):
            yield Outcome(**json.loads(line))


def fuzz_rows(bundle: str, outcomes: list[Outcome], seed: int) -> list[Row]:
    counts = {
        "inputs": len(outcomes),
        "inputs_rehashed": sum(o.rehashed for o in outcomes),
        "refused": sum(o.end == "refused" for o in outcomes),
        "loaded": sum(o.end == "loaded" for o in outcomes),
        "crashes": sum(o.end == "crashed" for o in outcomes),
        "over_a_second": sum(o.seconds > SLOW_AFTER for o in outcomes),
        "over_twice_the_memory": sum(o.too_much_memory for o in outcomes),
    }
    rows = [Row(bundle, "none", "load_bundle", seed, metric, float(n), "1") for metric, n in counts.items()]
    rows.append(Row(bundle, "none", "load_bundle", seed, "slowest_seconds", max(o.seconds for o in outcomes), "s"))
    extra = [o.extra_bytes for o in outcomes if o.extra_bytes is not None]
    if extra:
        rows.append(Row(bundle, "none", "load_bundle", seed, "most_extra_bytes", float(max(extra)), "B"))
    return rows
