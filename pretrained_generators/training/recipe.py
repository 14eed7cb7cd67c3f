"""What a generator's training is determined by."""

from __future__ import annotations

from dataclasses import dataclass, field

from pretrained_generators.dataset_encoder import EncoderConfig
from pretrained_generators.latent_diffusion import DiffusionConfig
from pretrained_generators.weight_layout import Vectorisation
from pretrained_generators.weight_vae import VAEConfig


@dataclass(frozen=True)
class Stage:
    steps: int
    learning_rate: float = 1e-3  # peak of one cycle, AdamW
    batch_size: int = 32  # zoo entries
    weight_decay: float = 0.01
    ema_decay: float = 0.99
    bf16: bool = False  # the forward pass in bfloat16, by autocast
    compile: bool = False  # transformer blocks by torch.compile; pays on a GPU


@dataclass(frozen=True)
class VAEStage(Stage):
    kl_weight: float = 1e-3
    noise: float = 0.1  # of the latent, in units of its standard deviation


@dataclass(frozen=True)
class EncoderStage(Stage):
    temperature: float = 0.1
    shots: int = 16  # images a class in a support set, at most
    classes: int = 20  # classes in a support set, at most


@dataclass(frozen=True)
class DiffusionStage(Stage):
    drop_condition: float = 0.1  # share of samples trained without a condition


@dataclass(frozen=True)
class FunctionalStage(Stage):
    """On what the weights are worth; 0 steps leave it out. Its `batch_size` is in images of an episode."""

    steps: int = 0
    learning_rate: float = 3e-4
    batch_size: int = 128
    episodes: int = 3  # in a step
    drop_condition: float = 0.15
    domains: tuple[str, ...] = ("plain",)  # that episodes are seen through; one named twice is drawn twice as often
    shares: dict[str, float] = field(default_factory=dict)  # dataset -> share of the episodes; the others' are equal


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
    held_back: int = 8  # entries kept out of training, to measure reconstruction on
    seed: int = 0
    vae: VAEConfig = field(default_factory=VAEConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
