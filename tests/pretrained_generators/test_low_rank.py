import dataclasses
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrained_generators.bundle import load_bundle
from pretrained_generators.low_rank import SharedSubspaces
from pretrained_generators.training.train import train_generator
from pretrained_generators.weight_layout import Vectorisation, WeightLayout
from tests.pretrained_generators.small import RECIPE, labelled_images, seeded
from zoo_builder.errors import RecipeError

MODEL = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12, 10))


def low_rank_deltas(rank, count, seed):
    """Deltas whose matrices share subspaces of `rank`; vectors of any kind."""
    noise = seeded(seed)
    sides = {
        n: (torch.randn(len(p), rank, generator=noise), torch.randn(rank, p[0].numel(), generator=noise))
        for n, p in MODEL.named_parameters()
        if p.ndim > 1
    }

    def draw(name, shape):
        if name not in sides:
            return torch.randn(shape, generator=noise)
        left, right = sides[name]
        return (left @ torch.randn(rank, rank, generator=noise) @ right).view(shape)

    return [{n: draw(n, p.shape) for n, p in MODEL.named_parameters()} for _ in range(count)]


def fitted(rank, deltas, vectorisation="chunk"):
    layout = WeightLayout.of(MODEL, 32, vectorisation, rank=rank)
    subspaces = SharedSubspaces(layout)
    subspaces.fit(deltas)
    return layout.scaled_to(map(subspaces.reduce, deltas)), subspaces


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-4, rtol=1e-4)


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 99), st.sampled_from(get_args(Vectorisation)))
@settings(max_examples=20, deadline=None)
def test_round_trip_is_exact_where_the_rank_suffices(rank, more, seed, vectorisation):
    deltas = low_rank_deltas(rank, 3, seed)
    layout, subspaces = fitted(rank + more, deltas, vectorisation)
    mixed = {n: 0.3 * deltas[0][n] - 2 * deltas[1][n] for n in deltas[0]}
    for delta in (*deltas, mixed):
        back = subspaces.expand(layout.to_tensors(layout.to_chunks(subspaces.reduce(delta))))
        assert_close(back, delta)


def test_what_lies_outside_is_lost_and_a_second_time_nothing_more():
    inside = low_rank_deltas(2, 3, 0)
    _, subspaces = fitted(2, inside)
    other = {n: torch.randn(p.shape, generator=seeded(5)) for n, p in MODEL.named_parameters()}
    once = subspaces.expand(subspaces.reduce(other))
    assert (once["3.weight"] - other["3.weight"]).norm() > 0.5 * other["3.weight"].norm()
    assert torch.equal(once["1.bias"], other["1.bias"])
    assert_close(subspaces.expand(subspaces.reduce(once)), once)


def test_reducing_is_linear():
    first, second, other = low_rank_deltas(5, 3, 0)
    _, subspaces = fitted(2, [first, second])
    reduced = subspaces.reduce({n: first[n] + 0.5 * other[n] for n in first})
    parts = [subspaces.reduce(d) for d in (first, other)]
    assert_close(reduced, {n: parts[0][n] + 0.5 * parts[1][n] for n in first})


def test_only_what_gets_smaller_has_a_rank_and_the_rest_is_whole():
    layout = WeightLayout.of(MODEL, 32, rank=9)
    stored = {b.name: b.stored for b in layout.blocks}
    assert stored["0.weight"] == (9, 9)
    assert stored["1.weight"] == stored["2.bias"] == (12,)
    assert stored["3.weight"] == (9, 9)
    assert layout.size == sum(p.numel() for p in MODEL.parameters())
    whole = WeightLayout.of(MODEL, 32)
    assert layout.num_chunks < whole.num_chunks
    assert WeightLayout.of(MODEL, 32, rank=100) == whole
    assert SharedSubspaces(whole).state_dict() == {}


def test_negative_rank_is_an_error():
    with pytest.raises(RecipeError, match="rank"):
        WeightLayout.of(MODEL, 32, rank=-1)


def test_bundle_of_a_rank_is_smaller_and_generates_whole_deltas(zoo, tmp_path):
    once = {f"{stage}_training": dataclasses.replace(getattr(RECIPE, f"{stage}_training"), steps=1)
            for stage in ("vae", "encoder", "diffusion")}  # fmt: skip
    for rank in (0, 4):
        train_generator(zoo, dataclasses.replace(RECIPE, **once, rank=rank, chunk=1024), tmp_path / str(rank))
    sizes = [(tmp_path / r / "generator.safetensors").stat().st_size for r in ("0", "4")]
    assert sizes[1] < sizes[0] / 2
    config, generator = load_bundle(tmp_path / "4").config, load_bundle(tmp_path / "4").generator
    assert config.measured["compression"] > load_bundle(tmp_path / "0").config.measured["compression"]
    images, labels = labelled_images(24, 3)
    (delta,) = generator.sample_deltas(generator.embed(images, labels, 3), 1, 0, steps=4)
    shapes = {n: p.shape for n, p in generator.base.named_parameters()}
    assert {n: d.shape for n, d in delta.items()} == shapes
    matrix = next(d.flatten(1) for d in delta.values() if d.ndim > 1 and min(len(d), d[0].numel()) > 8)
    assert torch.linalg.matrix_rank(matrix, rtol=1e-3) <= 4
