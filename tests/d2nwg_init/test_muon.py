"""Muon in float32: timm's steps but for their rounding."""

import pytest
import torch
from timm.optim import Muon as Timms
from torch import nn

from d2nwg_init.muon import Muon

SHAPES = ((8, 6), (12, 5, 3, 3), (4, 32))


def _stepped(make, dtype=torch.float32, steps=4):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    began = [p.detach().clone() for p in parameters]
    optimizer = make(parameters)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
        optimizer.step()
    return [(p.detach() - b).double() for p, b in zip(parameters, began, strict=True)]


def test_steps_are_timms_but_for_rounding_to_bfloat16():
    ours = _stepped(lambda p: Muon(p, lr=0.03))
    theirs = _stepped(lambda p: Timms(p, lr=0.03, momentum=0.9, nesterov=True))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_steps_are_computed_in_the_precision_of_the_weights():
    ours = [_stepped(lambda p: Muon(p, lr=0.03), dtype) for dtype in (torch.float32, torch.float64)]
    for a, b in zip(*ours, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()  # bfloat16 would be 4e-3 away


def test_a_step_is_the_orthogonal_factor_and_as_large_as_of_adamw():
    for step, shape in zip(_stepped(lambda p: Muon(p, lr=0.03), steps=1), SHAPES, strict=True):
        values = torch.linalg.svdvals(step.flatten(1)) / (0.03 * 0.2 * max(shape[0], step[0].numel()) ** 0.5)
        assert values.tolist() == pytest.approx([1.0] * len(values), abs=0.35)
