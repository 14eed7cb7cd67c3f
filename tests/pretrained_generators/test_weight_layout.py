import math

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrained_generators.weight_layout import Block, WeightLayout
from tests.pretrained_generators.small import copied, same

MODELS = {
    "batchnorm_resnet": lambda: timm.create_model("test_resnet", num_classes=3),
    "batchnorm_mobile": lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
    "vit": lambda: timm.create_model("test_vit", num_classes=3),
    "no_batchnorm": lambda: torchvision.models.squeezenet1_1(num_classes=3),
}


def parameters_of(model):
    return copied(dict(model.named_parameters()))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "scaled"])
def test_round_trip_is_exact(name, scaled):
    parameters = parameters_of(MODELS[name]())
    layout = WeightLayout.of(MODELS[name](), chunk=1000)
    if scaled:
        layout = layout.scaled_to([parameters])
        assert len({b.exponent for b in layout.blocks}) > 1
    chunks = layout.to_chunks(parameters)
    assert chunks.shape == (layout.num_chunks, 1000)
    assert same(layout.to_tensors(chunks), parameters)


shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    shapes=shapes, chunk=st.integers(1, 97), exponents=st.lists(st.integers(-20, 20), min_size=5), seed=st.integers()
)
def test_any_tensors_in_any_chunks_come_back_exactly(shapes, chunk, exponents, seed):
    noise = torch.Generator().manual_seed(seed % 2**32)
    tensors = {f"t{i}": torch.randn(s, generator=noise) for i, s in enumerate(shapes)}
    layout = WeightLayout(tuple(Block(f"t{i}", s, exponents[i]) for i, s in enumerate(shapes)), chunk)
    chunks = layout.to_chunks(tensors)
    assert chunks.shape == (math.ceil(sum(map(math.prod, shapes)) / chunk), chunk)
    assert same(layout.to_tensors(chunks), tensors)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), chunk=st.integers(1, 30))
def test_numbers_stand_in_order_and_the_rest_is_zero(sizes, chunk):
    layout = WeightLayout(tuple(Block(str(i), (n,)) for i, n in enumerate(sizes)), chunk)
    total = sum(sizes)
    numbers = torch.arange(1.0, total + 1)
    chunks = layout.to_chunks(dict(zip(map(str, range(len(sizes))), numbers.split(sizes), strict=True)))
    assert torch.equal(chunks.flatten()[:total], numbers)
    assert not chunks.flatten()[total:].any()
    assert chunks.numel() - total < chunk


def test_scales_are_near_the_root_mean_square():
    model = MODELS["batchnorm_resnet"]()
    samples = [parameters_of(model), parameters_of(MODELS["batchnorm_resnet"]())]
    layout = WeightLayout.of(model, 1000).scaled_to(samples)
    for block in layout.blocks:
        rms = torch.stack([s[block.name].square().mean() for s in samples]).mean().sqrt().item()
        if rms:
            assert 2**-0.51 < rms / 2.0**block.exponent < 2**0.51
        else:
            assert block.exponent == 0


def test_chunks_are_divided_by_the_scale():
    layout = WeightLayout((Block("a", (2,), 3), Block("b", (1,), -1)), 3)
    chunks = layout.to_chunks({"a": torch.tensor([8.0, 16.0]), "b": torch.tensor([3.0])})
    assert chunks.tolist() == [[1.0, 2.0, 6.0]]


def test_tied_parameters_are_held_once():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    layout = WeightLayout.of(tied, 8)
    assert [b.name for b in layout.blocks] == ["0.weight", "0.bias", "1.bias"]
    assert layout.size == 16 + 4 + 4


def test_buffers_are_left_out():
    model = MODELS["batchnorm_resnet"]()
    names = {b.name for b in WeightLayout.of(model, 1000).blocks}
    buffers = {n for n, _ in model.named_buffers()}
    assert buffers
    assert not names & buffers
    assert names == {n for n, _ in model.named_parameters()}


def test_excluded_prefixes_are_left_out_and_nothing_else():
    model = MODELS["batchnorm_resnet"]()
    whole, body = (WeightLayout.of(model, 1000, exclude) for exclude in ((), ("fc.",)))
    assert {b.name for b in whole.blocks} - {b.name for b in body.blocks} == {"fc.weight", "fc.bias"}


def test_more_weights_give_more_chunks():
    small, large = (WeightLayout.of(nn.Linear(n, n), 64) for n in (10, 40))
    assert small.num_chunks == math.ceil(110 / 64)
    assert large.num_chunks == math.ceil(1640 / 64)
    assert WeightLayout.of(nn.Linear(8, 7), 63).num_chunks == 1  # 63 numbers: a chunk that is just full


def test_missing_tensor_is_an_error():
    layout = WeightLayout.of(nn.Linear(2, 2), 4)
    with pytest.raises(KeyError, match="bias"):
        layout.to_chunks({"weight": torch.zeros(2, 2)})


def test_wrong_shape_is_an_error_even_with_as_many_numbers():
    layout = WeightLayout.of(nn.Linear(2, 3), 4)
    with pytest.raises(ValueError, match="weight"):
        layout.to_chunks({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)})


def test_chunks_do_not_share_memory_with_the_model():
    model = nn.Linear(2, 2)
    before = parameters_of(model)
    WeightLayout.of(model, 6).to_chunks(dict(model.named_parameters())).fill_(9)
    assert same(parameters_of(model), before)
