import functools
import math
from typing import get_args

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretrained_generators.weight_layout import SCOPES, Block, Vectorisation, WeightLayout
from tests.pretrained_generators.small import copied, same, seeded
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError, RecipeError

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}
MODELS = {
    "resnet": lambda: timm.create_model("test_resnet", num_classes=3),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=3),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=3),
    "vit": lambda: timm.create_model("test_vit", num_classes=3),
    "swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **SMALL_SWIN),
    "squeezenet": lambda: torchvision.models.squeezenet1_1(num_classes=3),
}
VECTORISATIONS = get_args(Vectorisation)


def parameters_of(model):
    return copied(dict(model.named_parameters()))


@functools.cache
def structure(name):
    """Without values, and only read."""
    with torch.device("meta"):
        return MODELS[name]()


def some_layers(model):
    layers = [n for n, m in model.named_modules() if n and any(True for _ in m.parameters(recurse=False))]
    return layers[::3]


CASES = [(n, s) for n in MODELS for s in (*SCOPES, "layers") if (n, s) != ("squeezenet", "norm")]


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(("name", "scope"), CASES)
def test_round_trip_is_exact(name, scope, rank):
    model = structure(name)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    scope = some_layers(model) if scope == "layers" else scope
    for vectorisation in VECTORISATIONS:
        layout = WeightLayout.of(model, 1000, vectorisation, scope, rank)
        noise = seeded(0)
        tensors = {b.name: 10.0 ** (i % 7 - 3) * torch.randn(b.stored, generator=noise)
                   for i, b in enumerate(layout.blocks)}  # fmt: skip
        layout = layout.scaled_to([tensors])
        assert len({b.exponent for b in layout.blocks}) > 1
        chunks = layout.to_chunks(tensors)
        assert chunks.shape == (layout.num_chunks, layout.chunk)
        assert same(layout.to_tensors(chunks), tensors)
        assert all(shapes[b.name] == b.shape for b in layout.blocks)
        assert any(b.rank for b in layout.blocks) == bool(rank and scope != "norm")


@pytest.mark.parametrize("name", MODELS)
def test_a_list_of_layers_takes_their_own_parameters(name):
    model = structure(name)
    layers = some_layers(model)
    found = {b.layer for b in WeightLayout.of(model, scope=layers).blocks}
    assert found >= set(layers)
    assert all(any(f"{layer}.".startswith(f"{own}.") for own in layers) for layer in found)


def test_vectorisations_cut_where_they_say():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))  # layers of 8 and 3 numbers
    numbers = iter(range(1, 12))
    tensors = {
        n: torch.tensor([float(next(numbers)) for _ in p.flatten()]).view_as(p) for n, p in model.named_parameters()
    }
    assert {v: WeightLayout.of(model, 5, v).to_chunks(tensors).tolist() for v in VECTORISATIONS} == {
        "model": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]],
        "layer": [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 0, 0, 0, 0, 0]],
        "chunk": [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 0, 0, 0, 0]],
        "layer-chunk": [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0], [9, 10, 11, 0, 0]],
    }


def test_no_chunk_is_longer_than_what_is_cut():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))  # layers of 8 and 3 numbers
    for whole, cut in (("model", "chunk"), ("layer", "layer-chunk")):
        assert WeightLayout.of(model, 10**6, cut) == WeightLayout.of(model, vectorisation=whole)


@pytest.mark.parametrize("vectorisation", VECTORISATIONS)
def test_gradients_go_through_to_the_chunks(vectorisation):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    layout = WeightLayout.of(model, 5, vectorisation)
    chunks = torch.zeros(layout.num_chunks, layout.chunk, requires_grad=True)
    sum(t.sum() for t in layout.to_tensors(chunks).values()).backward()
    assert chunks.grad.sum() == layout.size  # ones where a number stands, and nothing where a chunk is filled up


@pytest.mark.parametrize("name", MODELS)
def test_scopes_part_the_parameters(name):
    model = structure(name)
    names = {s: {b.name for b in WeightLayout.of(model, scope=s).blocks} for s in ("all", "body", "head")}
    assert names["body"] | names["head"] == names["all"] == {n for n, _ in model.named_parameters()}
    assert not names["body"] & names["head"]
    classifier = find_classifier(model)
    assert names["head"] == {f"{classifier.name}.{n}" for n, _ in classifier.layer.named_parameters()}


@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"squeezenet"}))
def test_norms_are_vectors(name):
    assert all(len(b.shape) == 1 for b in WeightLayout.of(structure(name), scope="norm").blocks)


def test_norm_layers_are_found_by_kind():
    model = MODELS["resnet"]()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    norms = {f"{n}.{end}" for n in layers for end in ("weight", "bias")}
    chosen = WeightLayout.of(model, scope="norm")
    assert {b.name for b in chosen.blocks} == norms
    head = {b.name for b in WeightLayout.of(model, scope="head").blocks}
    assert {b.name for b in WeightLayout.of(model, scope="head+norm").blocks} == norms | head


def test_a_list_of_modules_takes_what_is_inside_them_and_no_other_of_a_like_name():
    model = nn.ModuleDict({n: nn.Sequential(nn.Linear(2, 2)) for n in ("a", "ab", "c")})
    layout = WeightLayout.of(model, scope=["a", "c.0"])
    assert [b.name for b in layout.blocks] == ["a.0.weight", "a.0.bias", "c.0.weight", "c.0.bias"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"vectorisation": "chunks"}, RecipeError, "did you mean 'chunk'"),
        ({"scope": "hed"}, RecipeError, "did you mean 'head'"),
        ({"scope": ["layer9"]}, ModelError, "no module 'layer9'"),
        ({"chunk": 0}, RecipeError, "got 0"),
    ],
)
def test_what_there_is_not_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        WeightLayout.of(MODELS["resnet"](), **arguments)


def test_a_scope_without_parameters_is_an_error():
    with pytest.raises(ModelError, match="no parameters in the scope 'norm'"):
        WeightLayout.of(MODELS["squeezenet"](), scope="norm")


shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    shapes=shapes,
    chunk=st.integers(1, 97),
    by_layer=st.booleans(),
    exponents=st.lists(st.integers(-20, 20), min_size=5),
    seed=st.integers(),
)
def test_any_tensors_in_any_chunks_come_back_exactly(shapes, chunk, by_layer, exponents, seed):
    noise = torch.Generator().manual_seed(seed % 2**32)
    tensors = {f"{i // 2}.t{i}": torch.randn(s, generator=noise) for i, s in enumerate(shapes)}  # two a layer
    blocks = tuple(Block(n, tuple(t.shape), exponents[i]) for i, (n, t) in enumerate(tensors.items()))
    layout = WeightLayout(blocks, chunk, by_layer)
    chunks = layout.to_chunks(tensors)
    sizes = list(map(math.prod, shapes))
    parts = [sum(sizes[i : i + 2]) for i in range(0, len(sizes), 2)] if by_layer else [sum(sizes)]
    assert chunks.shape == (sum(math.ceil(part / chunk) for part in parts), chunk)
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
    model = MODELS["resnet"]()
    samples = [parameters_of(model), parameters_of(MODELS["resnet"]())]
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
    assert [b.name for b in WeightLayout.of(tied, scope=["1"]).blocks] == ["0.weight", "1.bias"]
    changed = {n: p + 1 for n, p in parameters_of(tied).items()}
    tied.load_state_dict(layout.to_tensors(layout.to_chunks(changed)), strict=False)
    assert same(parameters_of(tied), changed)
    assert tied[1].weight is tied[0].weight


def test_buffers_are_left_out():
    model = MODELS["resnet"]()
    names = {b.name for b in WeightLayout.of(model, 1000).blocks}
    buffers = {n for n, _ in model.named_buffers()}
    assert buffers
    assert not names & buffers
    assert names == {n for n, _ in model.named_parameters()}


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
