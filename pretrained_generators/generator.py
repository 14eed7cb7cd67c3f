"""The whole generator: support images -> embedding -> latent -> chunks -> weights of a body."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import torch
from huggingface_hub import ModelHubMixin
from pydantic import Field
from torch import nn

from pretrained_generators.dataset_encoder import DatasetEncoder, EncoderConfig
from pretrained_generators.latent_diffusion import DiffusionConfig, LatentDiffusion
from pretrained_generators.low_rank import SharedSubspaces
from pretrained_generators.probes import IMAGES, Probes, worth_of
from pretrained_generators.weight_layout import WeightLayout
from pretrained_generators.weight_vae import VAEConfig, WeightVAE
from zoo_builder.backbones import EVAL_BATCH, BackboneSpec, check_body, evaluating
from zoo_builder.batchnorm_fit import BatchNormFit, fit_batchnorm
from zoo_builder.datasets.image_dataset import channel_statistics, spread_evenly
from zoo_builder.model_stack import shifted

if TYPE_CHECKING:
    from pretrained_generators.bundle_config import BundleConfig

MAX_PROBES = 256  # each is a body, tried on a user's images


@dataclass(frozen=True)
class GeneratorConfig:
    backbone: BackboneSpec  # of the body
    size: int  # pixels of the images in the zoo
    layout: WeightLayout  # of the body's parameters
    vae: VAEConfig = field(default_factory=VAEConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    probes: Annotated[int, Field(ge=0, le=MAX_PROBES)] = 0  # deltas that are tried on a dataset to see what it wants
    batchnorm: BatchNormFit = "rescaled"  # of the base, as deltas are added to it


class Generator(nn.Module, ModelHubMixin):
    """Composes parts that take plain tensors and do not know each other. What it generates are deltas to `base`, whose
    BatchNorm is fitted to the images."""

    bundle: BundleConfig | None = None  # what the bundle says that it was loaded from
    folder: Path | None = None  # of that bundle
    revision: str | None = None  # of that bundle, a commit of the Hub
    statistics: torch.Tensor | None = None  # [D, 2, f] of the bundle's datasets: see `nearest_datasets`

    def __init__(self, config: GeneratorConfig, base: nn.Module | None = None) -> None:
        """`base` is the body that the config describes, where it is made already."""
        super().__init__()
        self.config = config
        layout = config.layout
        self.base = config.backbone.create() if base is None else base
        self.subspaces = SharedSubspaces(layout)
        self.vae = WeightVAE(layout.num_chunks, layout.chunk, config.vae)
        feature_dim = check_body(self.base, config.size, config.backbone.in_chans)
        self.encoder = DatasetEncoder(feature_dim, config.encoder)
        self.probes = Probes(config.probes, layout.num_chunks, config.vae.latent) if config.probes else None
        condition = config.encoder.embedding + (self.probes.size if self.probes else 0)
        self.diffusion = LatentDiffusion(layout.num_chunks, config.vae.latent, condition, config.diffusion)
        self.eval()

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The base's pooled features [N, f] of float images [N, C, H, W], with its own BatchNorm statistics.

        Each channel is standardised over the whole set, so that whatever normalisation a loader applied drops out.
        """
        mean, std = channel_statistics(images)
        with evaluating(self.base):
            return torch.cat([self.base((batch - mean) / std) for batch in images.split(EVAL_BATCH)])

    @torch.no_grad()
    def embed(self, images: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        """The condition [c] of support images [N, C, H, W] with labels [N]: the dataset embedding, and what the probes
        are worth on them."""
        embedding = self.encoder(self.features(images), labels, num_classes)[1]
        return self.with_probes(embedding, images, labels, num_classes)

    def with_probes(
        self, embedding: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, num_classes: int
    ) -> torch.Tensor:
        """The condition [c] of which `embedding` is the first part; differentiable in it."""
        if self.probes is None:
            return embedding
        return torch.cat([embedding, self.probes.standardised(self.probe(images, labels, num_classes))])

    def anchor(self, condition: torch.Tensor) -> torch.Tensor:
        """Latents [..., n, latent] that the diffusion's are added to, for conditions [..., c]; zero without probes."""
        if self.probes is None:
            return condition.new_zeros(*condition.shape[:-1], *self.diffusion.latent_mean.shape)
        return self.probes.anchor(condition[..., -self.probes.size :])

    @torch.no_grad()
    def probe(self, images: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
        """`worth_of` the decoded probes, as a vector."""
        tried = spread_evenly(len(labels), IMAGES)
        return self.worth_of(self.probe_deltas(), images, labels, num_classes, tried).flatten()

    def probes_worth(self, condition: torch.Tensor) -> torch.Tensor:
        """By how much each probe changes the loss [J], as `embed` measured it for this condition [c]."""
        return condition[:0] if self.probes is None else self.probes.changes(condition[-self.probes.size :])

    def worth_of(
        self,
        deltas: Iterable[Mapping[str, torch.Tensor]],
        images: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        tried: torch.Tensor,
    ) -> torch.Tensor:
        """`probes.worth_of` D deltas to the base, [1 + D, 2], by those `tried` [M] of images [N, C, H, W] in any
        normalisation."""
        mean, std = channel_statistics(images)
        seen = (images[tried] - mean) / std
        return worth_of(self.base, deltas, seen, labels[tried], num_classes, self.config.batchnorm)

    @torch.no_grad()
    def probe_deltas(self) -> list[dict[str, torch.Tensor]]:
        """The probes as deltas to the base's parameters, by name; none where there are no probes."""
        if self.probes is None:
            return []
        return [self.decoded(latent) for latent in self.probes.latents]

    @torch.no_grad()
    def sample_deltas(
        self, embedding: torch.Tensor | None, num_samples: int, seed: int, steps: int = 20, guidance: float = 1.0
    ) -> list[dict[str, torch.Tensor]]:
        """Deltas to the base's parameters, by name; deterministic in `seed`.

        `embedding` is a condition as `embed` gives it; None is no condition.
        """
        return [self.decoded(z) for z in self.sample_latents(embedding, num_samples, seed, steps, guidance)]

    @torch.no_grad()
    def sample_latents(
        self, embedding: torch.Tensor | None, num_samples: int, seed: int, steps: int = 20, guidance: float = 1.0
    ) -> torch.Tensor:
        """Latents [num_samples, n, latent], of which each is small and its delta as large as the base."""
        noise = torch.Generator().manual_seed(seed)
        latents = self.diffusion.sample(embedding, num_samples, noise, steps, guidance)
        return latents if embedding is None else latents + self.anchor(embedding)

    @torch.no_grad()
    def decoded(self, latent: torch.Tensor) -> dict[str, torch.Tensor]:
        """The delta to the base's parameters, by name, of a latent [n, latent]."""
        return self.to_delta(self.vae.decode(latent[None])[0])

    def to_chunks(self, delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A delta by parameter name -> standardised chunks [n, chunk]."""
        return self.config.layout.to_chunks(self.subspaces.reduce(delta))

    def to_delta(self, chunks: torch.Tensor) -> dict[str, torch.Tensor]:
        """The inverse, but for what lies outside of the subspaces of a layout with a rank; differentiable."""
        return self.subspaces.expand(self.config.layout.to_tensors(chunks))

    def base_copy(self) -> nn.Module:
        """The base as a body of its own, to try weights in."""
        return copy.deepcopy(self.base).requires_grad_(False)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        base: nn.Module | None = None,
    ) -> Generator:
        """A generator from an embedded bundle by name, a folder, or ORG/NAME (or ORG/NAME@REVISION) of the Hub.

        Unlike ModelHubMixin's own, it believes no file before it is checked. `base` is a model whose body is the base,
        for a bundle that leaves its base out.

        Raises:
            BundleError: no such bundle, it cannot be had, or it fails a check; the message says what to do.
        """
        from pretrained_generators.hub import open_bundle

        return open_bundle(
            pretrained_model_name_or_path,
            base,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        ).generator

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **push: Any
    ) -> str | None:
        """Write the bundle that it was loaded from anew. Results, and with them a card, are kept if the weights are.

        With `push_to_hub` it is pushed as well, to `repo_id` or the folder's name; `push` is that method's.

        Raises:
            BundleError: it never was in a bundle; and what `push_to_hub` raises.
        """
        from pretrained_generators.push import save_again

        save_again(self, Path(save_directory))
        return self.push_to_hub(repo_id or Path(save_directory).name, **push) if push_to_hub else None

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        commit_message: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Push what `save_pretrained` writes, in one commit, as `push_bundle` does; the URL of the commit.

        Raises:
            BundleError: it has no results and hence no card, or the Hub refuses.
        """
        from pretrained_generators.push import push_bundle, save_again

        with TemporaryDirectory() as folder:
            save_again(self, Path(folder))
            pushed = push_bundle(Path(folder), repo_id, private, branch, token, commit_message, create_pr)
        return pushed.commit_url

    def base_parameters(self) -> dict[str, torch.Tensor]:
        return {k: v.detach() for k, v in self.base.named_parameters()}

    def fitted_base(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The base's parameters for images [N, C, H, W] in any normalisation, which deltas are added to."""
        return shifted(self.base_parameters(), fit_batchnorm(self.base, images, self.config.batchnorm))
