"""Under torch.distributed the first rank decides for all, by the images of its own loader."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
import torch.distributed as dist
from torch import nn

from d2nwg_init.accepted_model import unwrapped
from d2nwg_init.report import InitReport
from d2nwg_init.undo import unchanged_on_error
from zoo_builder.errors import D2NWGError

P = ParamSpec("P")
Initialize = Callable[Concatenate[nn.Module, P], InitReport]


def decided_by_the_first_rank(initialize: Initialize[P]) -> Initialize[P]:
    """Let rank 0 alone work, and every rank end with its weights and report; with one process it is `initialize`."""

    @functools.wraps(initialize)
    def on_every_rank(model: nn.Module, *args: P.args, **kwargs: P.kwargs) -> InitReport:
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if alone or not isinstance(model, nn.Module):  # which every rank refuses
            return initialize(model, *args, **kwargs)
        network = unwrapped(model)
        if dist.get_rank() > 0:
            return _follow(network)
        report = None
        try:
            report = initialize(model, *args, **kwargs)
            _broadcast_text(report.to_json(), network)
            _broadcast_state(network)
        except BaseException:
            if report:
                report.revert()
            else:
                with contextlib.suppress(Exception):  # the error that is raised is the one to be seen
                    _broadcast_text("", network)  # for which the others wait
            raise
        return report

    return on_every_rank


def _follow(network: nn.Module) -> InitReport:
    text = _broadcast_text("", network)
    if not text:
        raise D2NWGError("Rank 0 could not initialise the model: see its error. Nothing was changed on this rank.")
    with unchanged_on_error(network) as undo:
        _broadcast_state(network)
        return InitReport.from_json(text, undo)


def _broadcast_text(text: str, network: nn.Module) -> str:
    """The text of rank 0, on every rank."""
    device = _device(network)
    sent = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    size = torch.tensor([len(sent)], device=device)
    dist.broadcast(size, 0)
    received = sent if dist.get_rank() == 0 else sent.new_zeros(int(size))
    if int(size):
        dist.broadcast(received, 0)
    return bytes(received.tolist()).decode()


@torch.no_grad()
def _broadcast_state(network: nn.Module) -> None:
    device = _device(network)
    for tensor in network.state_dict().values():
        sent = tensor.to(device).contiguous()
        dist.broadcast(sent, 0)
        tensor.copy_(sent)


def _device(network: nn.Module) -> torch.device:
    """By which the ranks talk: the model's, or, where the group works on none such, as NCCL does not on a CPU, this
    process' current accelerator."""
    device = next(network.parameters()).device
    if f"{device.type}:" in dist.get_backend_config():
        return device
    return torch.accelerator.current_accelerator() or device
