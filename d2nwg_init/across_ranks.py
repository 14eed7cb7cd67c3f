"""Under torch.distributed the first rank decides for all, by the images of its own loader."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

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
            _from_the_first(report.to_json(), network)
            _share_state(network)
        except BaseException:
            if report:
                report.revert()
            else:
                with contextlib.suppress(Exception):  # the error that is raised is the one to be seen
                    _from_the_first("", network)  # for which the others wait
            raise
        return report

    return on_every_rank


def _follow(network: nn.Module) -> InitReport:
    text = _from_the_first("", network)
    if not text:
        raise D2NWGError("Rank 0 could not initialise the model: see its error. Nothing was changed on this rank.")
    with unchanged_on_error(network) as undo:
        _share_state(network)
        return InitReport.from_json(text, undo)


def _from_the_first(value: Any, network: nn.Module) -> Any:
    """What rank 0 has, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, 0, device=_gpu(network))
    return values[0]


def _gpu(network: nn.Module) -> torch.device | None:
    """Where the model is, be it the process' current GPU or not. Not on one: None, for which torch takes a device that
    the group works on, as NCCL works on no CPU."""
    device = next((p.device for p in network.parameters()), None)
    return device if device is not None and device.type == "cuda" else None


@torch.no_grad()
def _share_state(network: nn.Module) -> None:
    for tensor in network.state_dict().values():
        # Of a view all that it is a view of would be sent.
        tensor.copy_(_from_the_first(tensor.cpu().clone(), network))
