"""Which weights a dataset wants, by what they are worth on it."""

import dataclasses

import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.training.train import train_generator
from pretrained_generators.training.transfer import measure_transfer, target_weights
from pretrained_generators.training.zoo_data import read_zoo_data
from tests.pretrained_generators.small import RECIPE, random_generator
from zoo_builder.checkpoint import write_atomically


@pytest.fixture
def data(zoo):
    generator = random_generator()
    pairs = zip(zoo.entries(datasets=["stripes"]), zoo.entries(datasets=["blobs"]), strict=True)
    entries = [entry for pair in list(pairs)[:2] for entry in pair]
    return generator, read_zoo_data(entries, generator.config.layout, generator)


def test_gains_are_of_each_entry_on_each_dataset_and_the_base_gains_nothing(data, tmp_path):
    generator, known = data
    gains = measure_transfer(generator, known, tmp_path / "gains")
    assert gains.shape == (4, 5)
    assert (gains[:, -1] == 0).all()
    assert torch.isfinite(gains).all()
    assert gains[:, :-1].unique().numel() > 4


def test_rows_that_are_done_are_not_measured_again(data, tmp_path):
    generator, known = data
    whole = measure_transfer(generator, known, tmp_path / "whole")
    write_atomically(tmp_path / "cut", {"gains": whole[:2] + 7})
    resumed = measure_transfer(generator, known, tmp_path / "cut")
    assert torch.equal(resumed[:2], whole[:2] + 7)
    assert torch.equal(resumed[2:], whole[2:])


def test_targets_are_the_best_foreign_entries_and_the_own_one_at_its_share(data):
    _, known = data  # of two datasets in turn
    gains = torch.tensor(
        [[0.9, 0.3, 0.9, 0.1, 0.0], [0.2, 0.9, 0.2, 0.9, 0.0], [0.9, -0.5, 0.9, -0.5, 0.0], [-9.0, 0.9, -9.0, 0.9, 0.0]]
    )
    weights = target_weights(known, gains, 0.02, 0.25)
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    torch.testing.assert_close(weights.diagonal(), torch.full((4,), 0.25))
    assert weights[0, 2] == 0  # of the same dataset
    assert weights[0, 1] == pytest.approx(0.75, abs=1e-3)
    assert weights[1, 0] == weights[1, 2] == pytest.approx(0.375, abs=1e-3)
    assert weights[2, 4] == weights[3, 4] == pytest.approx(0.75, abs=1e-3)  # where all harm: the base


def test_bundle_is_trained_on_what_transfers(zoo, tmp_path):
    stage = dataclasses.replace(RECIPE.diffusion_training, own_share=0.5)
    train_generator(zoo, dataclasses.replace(RECIPE, diffusion_training=stage), tmp_path / "transferred")
    train_generator(zoo, RECIPE, tmp_path / "own")
    one, other = (load_bundle(tmp_path / n).generator for n in ("transferred", "own"))
    assert not torch.equal(one.diffusion.token_out.weight, other.diffusion.token_out.weight)
    assert torch.equal(one.encoder.out.weight, other.encoder.out.weight)
