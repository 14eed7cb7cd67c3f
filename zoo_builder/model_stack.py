"""Bodies of one architecture with weights of their own, passed through at once.

One body alone is called plainly; several are stacked with torch.func, which pays where a single small one leaves the
device idle (a GPU) and not where it fills it (a core).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call

from zoo_builder.batchnorm import batchnorm_training
from zoo_builder.small_maps import SmallMaps

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ModelStack:
    """M bodies. `body` lends structure and mode; of its tensors only buffers other than BatchNorm statistics are used.

    Args:
        weights: for each body all parameters by name, which are copied.
        trained: names of the parameters that take gradients.
    """

    def __init__(
        self, body: nn.Module, weights: Sequence[Mapping[str, torch.Tensor]], trained: Collection[str] = ()
    ) -> None:
        self.body = body
        self.parameters: dict[str, torch.Tensor] = {}  # [M, ...] each
        for name, _ in body.named_parameters():
            # Of one body a view, since stacking would lose the order of its memory (channels last).
            same = [w[name].detach() for w in weights]
            stacked = same[0].clone()[None] if len(same) == 1 else torch.stack(same)
            self.parameters[name] = stacked.requires_grad_(name in trained)
        self.statistics = {
            name: torch.stack([buffer] * len(weights))  # [M, ...] each
            for name, buffer in body.named_buffers()
            if name.rpartition(".")[2] in STATISTICS
        }

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def features(self, images: torch.Tensor, added: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """[M, B, d] of images [M, B, C, H, W], in the mode of `body`; in training mode the statistics move. `added` to
        the parameters for this pass: [M, ...] each, by name."""
        shifts = added or {}
        tensors = self.parameters | self.statistics | {k: self.parameters[k] + v for k, v in shifts.items()}
        if len(self) == 1:
            with SmallMaps():
                return functional_call(self.body, {k: v[0] for k, v in tensors.items()}, (images[0],))[None]
        return torch.vmap(self._one, randomness="different")(tensors, images)

    def _one(self, tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        return functional_call(self.body, tensors, (images,))

    def recalibrate(self, batches: Iterable[torch.Tensor], added: Mapping[str, torch.Tensor] | None = None) -> None:
        """BatchNorm statistics become the average over batches [M, B, C, H, W] of equal size; `added` as above."""
        with batchnorm_training(self.body) as layers, torch.no_grad():
            for i, batch in enumerate(batches):
                for layer in layers:
                    layer.momentum = 1 / (i + 1)
                self.features(batch, added)


def shifted(
    base: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], strength: float = 1.0
) -> dict[str, torch.Tensor]:
    """base + strength * delta; what `delta` lacks is the base's."""
    return {k: v + strength * delta[k].to(v) if k in delta else v for k, v in base.items()}
