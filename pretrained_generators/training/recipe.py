"""What a generator's training is determined by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pretrained_generators.bundle_config import check_plain
from pretrained_generators.dataset_encoder import EncoderConfig
from pretrained_generators.latent_diffusion import DiffusionConfig
from pretrained_generators.weight_layout import Vectorisation
from pretrained_generators.weight_vae import VAEConfig
from zoo_builder.errors import RecipeError
from zoo_builder.recipe import parse_config

Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**43), lt=2**44)]  # each step's is a million times as large, and torch takes 64 bits


@dataclass(frozen=True)
class Stage:
    steps: NonNegativeInt
    learning_rate: PositiveFloat = 1e-3  # peak of one cycle, AdamW
    batch_size: PositiveInt = 32  # zoo entries
    weight_decay: NonNegativeFloat = 0.01
    ema_decay: Share = 0.99
    bf16: bool = False  # the forward pass in bfloat16, by autocast
    compile: bool = False  # transformer blocks by torch.compile; pays on a GPU


@dataclass(frozen=True)
class VAEStage(Stage):
    steps: PositiveInt
    kl_weight: NonNegativeFloat = 1e-3
    noise: NonNegativeFloat = 0.1  # of the latent, in units of its standard deviation


@dataclass(frozen=True)
class EncoderStage(Stage):
    steps: PositiveInt
    temperature: PositiveFloat = 0.1
    shots: PositiveInt = 16  # images a class in a support set, at most
    classes: Annotated[int, Field(ge=2)] = 20  # classes in a support set, at most


@dataclass(frozen=True)
class DiffusionStage(Stage):
    drop_condition: Share = 0.1  # share of samples trained without a condition


@dataclass(frozen=True)
class FunctionalStage(Stage):
    """On what the weights are worth; 0 steps leave it out. Its `batch_size` is in images of an episode."""

    steps: NonNegativeInt = 0
    learning_rate: PositiveFloat = 3e-4
    batch_size: PositiveInt = 128
    episodes: PositiveInt = 3  # in a step
    drop_condition: Share = 0.15
    # That episodes are seen through; one named twice is drawn twice as often.
    domains: Annotated[tuple[str, ...], Field(min_length=1)] = ("plain",)
    shares: dict[str, Share] = field(default_factory=dict)  # dataset -> share of the episodes; the others' are equal


@dataclass(frozen=True)
class GeneratorRecipe:
    name: str
    vae_training: VAEStage
    encoder_training: EncoderStage
    diffusion_training: DiffusionStage
    functional_training: FunctionalStage = FunctionalStage()
    scope: str | tuple[str, ...] = "all"  # of the body's parameters, see WeightLayout.of
    vectorisation: Vectorisation = "chunk"
    chunk: int = 1024  # weights in a chunk
    rank: int = 0  # of the subspaces, a pair for each layer, that deltas are reduced to; 0 keeps them whole
    plans: tuple[str, ...] = ("branch",)  # of the zoo recipe, whose entries to learn from
    probes: tuple[str, ...] = ()  # plans whose entries are tried on a dataset before anything is generated for it
    held_back: PositiveInt = 8  # entries kept out of training, to measure reconstruction and samples on
    seed: Seed = 0
    vae: VAEConfig = field(default_factory=VAEConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)


def check_recipe(recipe: GeneratorRecipe) -> None:
    """What can be seen to be wrong before anything is trained, in a file's recipe or one made in Python.

    Raises:
        RecipeError: naming the key.
    """
    parse_config(asdict(recipe), GeneratorRecipe)
    try:
        check_plain([recipe.name])
    except ValueError as e:
        raise RecipeError(f"name: {e}") from e
    if recipe.scope in ("head", "head+norm"):
        raise RecipeError(
            f"scope: {recipe.scope!r} has a head, and a generator has none: it is solved on the user's images. Take "
            "'all', 'norm', or a list of modules of the body."
        )
    for part in ("vae", "encoder", "diffusion"):
        config = getattr(recipe, part)
        if config.width % config.heads:
            raise RecipeError(f"{part}: a width of {config.width} cannot be split into {config.heads} heads alike.")
    if recipe.diffusion.width % 2:
        raise RecipeError(f"diffusion: expected an even width, got {recipe.diffusion.width}.")


def check_shares(recipe: GeneratorRecipe, entries: int, processes: int) -> None:
    """Whether every batch of a training on so many `entries` can be shared alike by so many processes; the VAE's is not
    shared.

    Raises:
        RecipeError: naming the key.
    """
    encoder, diffusion, functional = recipe.encoder_training, recipe.diffusion_training, recipe.functional_training
    batches = {"encoder_training.batch_size": min(encoder.batch_size, entries)}
    if diffusion.steps:
        batches["diffusion_training.batch_size"] = diffusion.batch_size
    if functional.steps:
        batches["functional_training.episodes"] = functional.episodes
    for key, size in batches.items():
        if size % processes:
            raise RecipeError(
                f"{key}: {processes} processes cannot share {size} alike ({entries} entries are learnt from). Set it "
                f"to a multiple of {processes} in a recipe of your own, or start another number of processes."
            )
