"""Small things to test with: a random generator, images whose classes are easy to tell apart, a made-up zoo."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from d2nwg_init.benchmarks.results import Row, results
from pretrained_generators.bundle import BundleConfig, TrainedOn, load_config, save_bundle
from pretrained_generators.card import write_card
from pretrained_generators.card_results import keep_results
from pretrained_generators.dataset_encoder import EncoderConfig
from pretrained_generators.generator import Generator, GeneratorConfig
from pretrained_generators.latent_diffusion import DiffusionConfig
from pretrained_generators.training import loop
from pretrained_generators.training.recipe import DiffusionStage, EncoderStage, GeneratorRecipe, VAEStage
from pretrained_generators.weight_layout import WeightLayout
from pretrained_generators.weight_vae import VAEConfig
from zoo_builder.backbones import BackboneSpec, is_norm
from zoo_builder.datasets import ImageDataset
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask, Training, ZooRecipe

MODEL, SIZE, CHUNK = "test_resnet", 32, 16384
VAE = VAEConfig(latent=4, width=16, depth=1, heads=2)
ENCODER = EncoderConfig(width=16, inducing=4, heads=2, embedding=8)
DIFFUSION = DiffusionConfig(width=16, depth=1, heads=2)
RECIPE_TOML = """
name = "by-hand"
chunk = 16384
held_back = 2
vae = {latent = 3, width = 16, depth = 1}
vae_training = {steps = 2, batch_size = 2}
encoder = {width = 16, embedding = 8}
encoder_training = {steps = 2, batch_size = 4}
diffusion = {width = 16, depth = 1}
diffusion_training = {steps = 2, batch_size = 4}
"""

RECIPE = GeneratorRecipe(
    name="tiny",
    vae_training=VAEStage(steps=6, batch_size=4),
    encoder_training=EncoderStage(steps=6, batch_size=4, shots=4),
    diffusion_training=DiffusionStage(steps=6, batch_size=4),
    chunk=CHUNK,
    held_back=2,
    vae=VAE,
    encoder=ENCODER,
    diffusion=DIFFUSION,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: torch.nn.Module, by: float, seed: int = 0) -> torch.nn.Module:
    """Noise on every parameter: those that start at zero would hide what they are for."""
    noise = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=noise))
    return module


def random_generator(model: str = MODEL, seed: int = 0) -> Generator:
    """Untrained, but what it samples differs, depends on the condition, and is small against the base."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = BackboneSpec(model, img_size=SIZE)
        layout = WeightLayout.of(backbone.create(), CHUNK)
        generator = Generator(GeneratorConfig(backbone, SIZE, layout, VAE, ENCODER, DIFFUSION))
    shaken(generator.diffusion, 0.2, seed)
    with torch.no_grad():
        generator.vae.basis.copy_(0.004 * torch.randn(generator.vae.basis.shape, generator=seeded(seed)))
    return generator.requires_grad_(False).eval()


@functools.cache
def _kept_bundle(size: int) -> tempfile.TemporaryDirectory:
    """Copied and never changed: hundreds of tests begin with one like it."""
    parent = tempfile.TemporaryDirectory(prefix="d2nwg-tests-")
    folder = Path(parent.name) / "bundle"
    folder.mkdir()
    save_random_bundle(folder)
    return parent


def save_random_bundle(path: Path, **changes: object) -> BundleConfig:
    if not changes and not path.exists():
        return load_config(Path(shutil.copytree(f"{_kept_bundle(SIZE).name}/bundle", path)))
    generator = changes.pop("generator", None) or random_generator()
    about = {
        "name": "tiny-random",
        "trained_on": (TrainedOn("stripes", 4),),
        "held_out": ("secret",),
        "base_sha256": "0" * 64,
        "base_pretrained_on": "unknown",
        "measured": {"compression": 4096.0},
    }
    return save_bundle(generator, path, **(about | changes))


def results_file(
    path: Path, of: BundleConfig, dataset: str = "insects", data: Sequence[ImageDataset] = (), bundle: str | None = None
) -> Path:
    """As a benchmark writes it: two seeds of three methods on one dataset, or on each of `data`, with the bundle `of`;
    its rows may have another bundle's name."""
    bundle = bundle or of.name
    rows = [
        Row(bundle, name, method, seed, "test_accuracy", 10 * seed + step + at, "%", step=step)
        for name in [d.name for d in data] or [dataset]
        for seed in (0, 1)
        for method, at in (("solved", 50.0), ("initialize", 60.0), ("generated_mean", 55.0))
        for step in (0, 10)
    ]
    rows.append(Row(bundle, dataset, "initialize", 0, "seconds_initialise", 2.5, "s"))
    path.write_text(json.dumps(results("demo", data, rows, of)))
    return path


def rewrite_config(path, change):
    """Of the bundle in a folder: what a stranger might have written."""
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


def write_measured_card(folder: Path, **about: object) -> BundleConfig:
    """Give a bundle results, and with them a card."""
    config = load_config(folder)
    keep_results(results_file(folder.with_name("measured.json"), config, **about), config, folder)
    return write_card(config, folder)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names and equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in state.items()}


def labelled_images(count: int, classes: int, seed: int = 0, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Float images [count, 3, size, size] in random order with a bright band at a place of its own for each class."""
    noise = seeded(seed)
    labels = torch.arange(count) % classes
    labels = labels[torch.randperm(count, generator=noise)]
    images = torch.randn(count, 3, size, size, generator=noise)
    width = size // classes
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, label * width : (label + 1) * width] += 2
        image[label % 3] += 0.5
    return images, labels


def small_zoo(path: Path, entries: int = 10, size: int = SIZE, in_chans: int = 3, scope: str = "all") -> Zoo:
    """Branches of two datasets, whose deltas lie along a direction of their dataset's; three classes each. Of the scope
    "head" their deltas are empty, of "head+norm" of the normalisation layers."""
    backbone = BackboneSpec(MODEL, in_chans)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = backbone.create()
    norms = tuple(name for name, module in base.named_modules() if is_norm(module))
    trained = {"all": "", "head+norm": norms, "head": ()}[scope]  # what names begin with
    recipe = ZooRecipe(plans=(), held_out=("secret",), size=size, support=12)
    zoo = Zoo.create(path / "zoo", backbone, base.state_dict(), recipe)
    for i in range(entries):
        dataset, noise = ("stripes", "blobs")[i % 2], seeded(i)
        direction = seeded(100 + i % 2)
        delta = {
            k: 0.01 * (torch.randn(p.shape, generator=direction) + 0.3 * torch.randn(p.shape, generator=noise))
            for k, p in base.named_parameters()
        }
        images, labels = labelled_images(12, 3, seed=i, size=size)
        pixels = (images * 40 + 100 + 50 * (i % 2)).clamp(0, 255).byte()
        metrics = {
            "solved_accuracy": 50.0,
            "accuracy": 60.0,
            "best_accuracy": 61.0,
            "best_strength": (0.5, 1.0)[i % 3 == 0],
            "gain": 11.0,
            "learning_rate": 0.02,
            "last_loss": 1.0,
            "seconds": 0.1,
        }
        task = FineTuneTask(
            "branch",
            "episodic",
            (dataset,),
            (),
            ("plain",),
            scope,
            Training(1),
            1.0,
            None,
            size=size,
            support=12,
            seed=i,
        )
        halved = {k: v.half() for k, v in delta.items() if k.startswith(trained)}
        zoo.write(task, FineTuneResult(halved, {}, pixels, labels, torch.zeros(4), metrics, [(1, 1.0)]))
    return zoo


def interrupted_stage(name, module, settings, loss, folder, seed, after=5):
    """`train_stage`, of which Ctrl-C stops the step that comes `after` so many."""
    calls = iter(range(after))

    def until_then(generator: torch.Generator) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return loss(generator)

    loop.train_stage(name, module, settings, until_then, folder, seed)
