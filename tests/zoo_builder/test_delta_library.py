"""What a zoo gives without a generator, against scikit-learn and against the deltas themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from tests.zoo_builder.synthetic import seeded
from zoo_builder.delta_library import RIDGES, TEMPERATURES, DeltaLibrary, cosines, ridge_weights, similarity_weights
from zoo_builder.errors import ZooError

E, K, P = 12, 5, 30


@pytest.fixture(scope="module")
def library(whole, tmp_path_factory):
    return DeltaLibrary.of(whole, ("branch", "finetune"), tmp_path_factory.mktemp("library") / "deltas")


def made_up(embeddings, deltas, datasets):
    strengths = torch.ones(len(deltas))
    ids = tuple(f"entry{i}" for i in range(len(deltas)))
    shapes = {"weight": torch.Size([deltas.shape[1]])}
    return DeltaLibrary(ids, tuple(datasets), shapes, deltas.half(), strengths, embeddings)


@pytest.fixture
def linear():
    """Deltas that are a linear map of the embeddings, a little noise aside; four datasets of three entries."""
    embeddings = torch.randn(E, K, generator=seeded(0))
    deltas = embeddings @ torch.randn(K, P, generator=seeded(1)) + 0.01 * torch.randn(E, P, generator=seeded(2))
    return made_up(embeddings, deltas, [f"d{i // 3}" for i in range(E)])


def one(library, i):
    return torch.nn.functional.one_hot(torch.tensor(i), len(library.ids)).float()


def test_one_entry_is_its_delta_at_its_best_strength(library, whole):
    for i, name in enumerate(library.ids):
        entry = whole.entry(name)
        made = library.combine(one(library, i))
        for key, value in entry.delta().items():
            torch.testing.assert_close(made[key], entry.metrics["best_strength"] * value.half().float())


def test_combinations_are_linear(library):
    weights = torch.linspace(-1, 2, len(library.ids))
    whole = library.combine(weights)
    parts = [library.combine(one(library, i)) for i in range(len(library.ids))]
    for key, value in whole.items():
        expected = sum(w * p[key] for w, p in zip(weights, parts, strict=True))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_gram_holds_the_inner_products_of_the_deltas(library):
    flat = [
        torch.cat([v.flatten() for v in library.combine(one(library, i)).values()]) for i in range(len(library.ids))
    ]
    stacked = torch.stack(flat).double()
    torch.testing.assert_close(library.gram, stacked @ stacked.T, rtol=1e-4, atol=1e-7)


def test_a_file_that_is_there_is_read_not_made_again(library, whole, tmp_path):
    file = tmp_path / "deltas"
    DeltaLibrary.of(whole, ("branch",), file)
    before = file.stat()
    again = DeltaLibrary.of(whole, ("branch",), file)
    same = ("st_ino", "st_size", "st_mtime_ns", "st_mode")  # but for when it was read
    assert all(getattr(file.stat(), name) == getattr(before, name) for name in same)
    assert again.stacked.shape == (2, library.stacked.shape[1])


def test_entries_over_several_datasets_are_left_out(whole, tmp_path):
    with pytest.raises(ZooError, match="holds 0 entries of \\['mix'\\] over one dataset"):
        DeltaLibrary.of(whole, ("mix",), tmp_path / "deltas")


@pytest.mark.parametrize("ridge", [0.01, 1.0, 30.0])
def test_ridge_weights_predict_what_scikit_learn_predicts(linear, ridge):
    query = torch.randn(K, generator=seeded(5))
    z, deltas = linear.embeddings.double(), linear.stacked.double()
    alpha = ridge * float((z - z.mean(0)).square().sum(1).mean())
    expected = Ridge(alpha=alpha).fit(z.numpy(), deltas.numpy()).predict(query.double().numpy()[None])[0]
    made = ridge_weights(linear.embeddings, query, ridge).double() @ deltas
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_equal_embeddings_give_the_mean():
    torch.testing.assert_close(ridge_weights(torch.ones(3, 4), torch.arange(4.0), 0.1), torch.full((3,), 1 / 3))


def test_cosines_are_those_of_centred_embeddings(linear):
    query = torch.randn(K, generator=seeded(6))
    centre = linear.embeddings.mean(0)
    expected = cosine_similarity((linear.embeddings - centre).numpy(), (query - centre).numpy()[None])[:, 0]
    np.testing.assert_allclose(cosines(linear.embeddings, query).numpy(), expected, atol=1e-6)


def test_nearest_finds_the_entry_itself(linear):
    for i, embedding in enumerate(linear.embeddings):
        assert linear.nearest(embedding).argmax() == i


def test_similarity_goes_from_the_nearest_to_the_mean(linear):
    query = linear.embeddings[3] + 0.01
    cold, hot = (similarity_weights(linear.embeddings, query, t) for t in (1e-3, 1e3))
    torch.testing.assert_close(cold, linear.nearest(query))
    torch.testing.assert_close(hot, linear.mean(), rtol=1e-2, atol=1e-3)


def brute_error(library, weigh):
    """Leave a dataset out, make each of its entries of the others', in the space of the weights."""
    total = 0.0
    for i, name in enumerate(library.datasets):
        others = [j for j, other in enumerate(library.datasets) if other != name]
        made = weigh(library.embeddings[others], library.embeddings[i]) @ library.stacked[others].float()
        total += (made - library.stacked[i].float()).square().sum().item()
    return total / len(library.datasets)


def test_ridge_and_temperature_are_the_best_for_datasets_left_out(linear):
    noisy = replace(linear, stacked=(linear.stacked + 2 * torch.randn(E, P, generator=seeded(8))).half())
    for library in (linear, noisy):
        errors = {r: brute_error(library, lambda z, q, r=r: ridge_weights(z, q, r)) for r in RIDGES}
        torch.testing.assert_close(
            library.least_squares(torch.ones(K)),
            ridge_weights(library.embeddings, torch.ones(K), min(errors, key=errors.get)),
        )
        errors = {t: brute_error(library, lambda z, q, t=t: similarity_weights(z, q, t)) for t in TEMPERATURES}
        torch.testing.assert_close(
            library.by_similarity(torch.ones(K)),
            similarity_weights(library.embeddings, torch.ones(K), min(errors, key=errors.get)),
        )


def test_least_squares_generalises_where_the_truth_is_linear(linear):
    query = torch.randn(K, generator=seeded(7))
    truth = query @ torch.randn(K, P, generator=seeded(1))
    made = linear.least_squares(query) @ linear.stacked.float()
    assert (made - truth).square().sum() < 0.05 * (linear.mean() @ linear.stacked.float() - truth).square().sum()
