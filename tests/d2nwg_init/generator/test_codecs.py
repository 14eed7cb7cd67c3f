import pytest
import torch

from d2nwg_init.benchmarks.generator.codecs import codecs, truncated_svd
from tests.pretrained_generators.small import random_generator, seeded

SHAPES = {"conv": (6, 4, 3, 3), "linear": (5, 8), "norm": (7,)}


def low_rank(rank, seed=0):
    noise = seeded(seed)
    delta = {"norm": torch.randn(7, generator=noise)}
    for name, (out, rest) in {"conv": (6, 36), "linear": (5, 8)}.items():
        matrix = torch.randn(out, rank, generator=noise) @ torch.randn(rank, rest, generator=noise)
        delta[name] = matrix.view(SHAPES[name])
    return delta


def cost(delta):
    """Numbers of the factors of a delta's matrices, and of its vectors that are not zero."""
    ranks = {n: torch.linalg.matrix_rank(t.flatten(1)).item() for n, t in delta.items() if t.ndim > 1}
    vectors = sum(t.numel() for t in delta.values() if t.ndim == 1 and t.any())
    return sum(r * (len(delta[n]) + delta[n][0].numel()) for n, r in ranks.items()) + vectors


def error(delta, other):
    return sum((delta[n] - other[n]).square().sum().item() for n in SHAPES)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_svd_is_exact_where_the_rank_suffices(rank):
    delta = low_rank(rank)
    rebuilt = truncated_svd(SHAPES, rank * (6 + 36 + 5 + 8) + 7, delta)
    for name in SHAPES:
        torch.testing.assert_close(rebuilt[name], delta[name], atol=1e-5, rtol=1e-4)


def test_svd_costs_no_more_than_it_may_and_errs_less_with_more_numbers():
    delta = low_rank(5)
    rebuilt = [truncated_svd(SHAPES, numbers, delta) for numbers in (0, 7, 40, 90, 150)]
    errors = [error(delta, r) for r in rebuilt]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(error(delta, {n: torch.zeros(s) for n, s in SHAPES.items()}))
    for numbers, r in zip((0, 7, 40, 90, 150), rebuilt, strict=True):
        assert cost(r) <= numbers


def test_numbers_go_to_the_layer_where_they_tell_most():
    delta = {n: torch.zeros(s) for n, s in SHAPES.items()} | {"linear": 3 * torch.ones(5, 8), "norm": torch.ones(7)}
    rebuilt = truncated_svd(SHAPES, 5 + 8, delta)
    torch.testing.assert_close(rebuilt["linear"], delta["linear"])
    assert not rebuilt["norm"].any()


def test_a_single_number_costs_one_and_is_kept_whole_or_not_at_all():
    """The gain of a residual that begins as nothing."""
    delta = {"gain": torch.tensor(0.5)}
    assert torch.equal(truncated_svd(["gain"], 1, delta)["gain"], delta["gain"])
    assert torch.equal(truncated_svd(["gain"], 0, delta)["gain"], torch.tensor(0.0))


def test_layers_outside_of_the_scope_are_left_out():
    assert truncated_svd(["linear"], 100, low_rank(1)).keys() == {"linear"}


@pytest.fixture(scope="module")
def generator():
    return random_generator()


@pytest.fixture(scope="module")
def learnt(generator):
    shapes = dict(generator.base.named_parameters())
    return [
        {n: 0.01 * torch.randn(p.shape, generator=noise) for n, p in shapes.items()} for noise in map(seeded, range(4))
    ]


def test_pca_rebuilds_what_lies_in_its_span_and_no_more(generator, learnt):
    mixed = {n: sum(w * d[n] for w, d in zip((0.5, 0.25, 0.15, 0.1), learnt, strict=True)) for n in learnt[0]}
    other = {n: torch.randn(t.shape, generator=seeded(9)) for n, t in mixed.items()}
    found = list(codecs(generator, learnt))
    for name in ("pca", "pca_chunks"):
        widest = min((c for c in found if c.name == name), key=lambda c: c.compression)
        for key, tensor in widest.rebuild(mixed).items():
            torch.testing.assert_close(tensor, mixed[key], atol=2e-4, rtol=1e-3)
        assert any((widest.rebuild(other)[k] - other[k]).abs().max() > 0.1 for k in other)
        narrow = max((c for c in found if c.name == name), key=lambda c: c.compression)
        assert any((narrow.rebuild(mixed)[k] - mixed[k]).abs().max() > 1e-3 for k in mixed)


def test_rivals_are_measured_at_the_compression_of_the_vae(generator, learnt):
    found = list(codecs(generator, learnt))
    (vae,) = (c for c in found if c.name == "vae")
    layout = generator.config.layout
    assert vae.compression == layout.size / (layout.num_chunks * generator.config.vae.latent)
    assert vae.compression in {c.compression for c in found if c.name == "svd"}
    assert vae.rebuild(learnt[0]).keys() == learnt[0].keys()
