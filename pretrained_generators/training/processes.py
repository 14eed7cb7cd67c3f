"""Training by one process, or by several that torchrun started. What is trained does not depend on how many they are,
but for the order of sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from zoo_builder.errors import RecipeError

Batch = TypeVar("Batch", torch.Tensor, list)
Loss = Callable[[torch.Generator], torch.Tensor]


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """The processes of a torchrun, by gloo and, each on a GPU of its own, NCCL; of no effect in any other process."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait for as long as the first one measures.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(days=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


def process_count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if process_count() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return _rank() == 0


def wait_for_all() -> None:
    if process_count() > 1:
        dist.barrier()


def own_share(batch: Batch) -> Batch:
    """Of a batch that all processes drew alike, what this one works on. One process alone has all of it.

    Raises:
        RecipeError: it cannot be shared alike.
    """
    size, rest = divmod(len(batch), process_count())
    if rest:
        raise RecipeError(
            f"{process_count()} processes cannot share {len(batch)} samples alike: take a multiple for a batch."
        )
    return batch[_rank() * size : (_rank() + 1) * size]


def all_shares(own: torch.Tensor) -> torch.Tensor:
    """The whole batch, of the shares [b, ...] of all processes; for a loss of `with_gradients_of_all`."""
    if process_count() == 1:
        return own
    shares = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(shares, own.detach())
    # What is made of the whole has its gradient here for the own share alone, and the mean is taken over all processes.
    shares[_rank()] = own.detach() + process_count() * (own - own.detach())
    return torch.cat(shares)


def mean_of_all(value: torch.Tensor) -> float:
    if process_count() > 1:
        dist.all_reduce(value)
    return value.item() / process_count()


def with_gradients_of_all(module: nn.Module, loss: Loss) -> Loss:
    """A loss over this process's share of a batch, whose gradients are those of the mean over all processes."""
    if process_count() == 1:
        return loss
    # A share may use parameters that another does not: a dropped condition.
    return DistributedDataParallel(_Step(module, loss), find_unused_parameters=True)


class _Step(nn.Module):
    """A loss in the form of a forward pass."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, generator: torch.Generator) -> torch.Tensor:
        return self.loss(generator)
