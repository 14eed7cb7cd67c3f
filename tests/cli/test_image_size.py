"""Images are read as large as they are used, and no smaller than they are stored."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from d2nwg_init.benchmarks.uncovered import Cell, _measure
from pretrained_generators.nearest_datasets import feature_statistics
from pretrained_generators.training.dataset_statistics import statistics_of_datasets
from tests.cli.conftest import ShortFineTuning, fail, succeed
from tests.pretrained_generators import small
from zoo_builder.backbones import create_backbone, prepare_images
from zoo_builder.checkpoint import write_atomically
from zoo_builder.datasets import load_dataset
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.errors import DataError

LARGE = 128


@pytest.fixture(scope="module")
def fine(tmp_path_factory):
    """A data folder with two classes that differ in stripes of one pixel, of which half the size keeps nothing."""
    root = tmp_path_factory.mktemp("fine")
    rng = np.random.default_rng(0)
    x = np.arange(LARGE)
    contrast = 40 * np.sin(np.pi * (x + 0.5) / LARGE) ** 2  # none at the edges, where a filter would leave some
    for i in range(40):
        noise = rng.normal(100, 15, (LARGE, LARGE))
        stripes = (noise + contrast * contrast[:, None] / 40 * (-1.0) ** x).clip(0, 255).astype(np.uint8)
        folder = root / "stripes" / ("across", "down")[i % 4 // 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes if folder.name == "down" else stripes.T).convert("RGB").save(folder / f"{i}.png")
    return root


def test_init_sees_images_of_the_size_that_is_asked_for(fine, tmp_path):
    command = ("init", "test_resnet", "--data", fine / "stripes", "--size", LARGE, "--bundle", "test_resnet-64")
    succeed(*command, "--candidates", 1, "--out", tmp_path / "weights")
    report = json.loads((tmp_path / "weights" / "report.json").read_text())
    chosen = next(c for c in report["candidates"] if c["name"] == report["chosen"])
    assert chosen["accuracy"] > 90


def test_a_cell_of_bench_uncovered_is_of_its_size(fine, tmp_path, monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.uncovered.FineTuning", ShortFineTuning)
    torch.manual_seed(0)
    write_atomically(tmp_path / "weights", create_backbone("test_resnet").state_dict())
    cell = Cell("test_resnet", str(tmp_path / "weights"), "0" * 64, LARGE, "stripes", "0" * 64, "solved", 0)
    assert _measure(fine, cell)["accuracy"]["0.001"][0] > 90


@pytest.mark.parametrize("size", [32, LARGE])
def test_statistics_of_datasets_are_of_the_generators_size(fine, size, monkeypatch):
    monkeypatch.setattr(small, "SIZE", size)
    generator = small.random_generator()
    (found,) = statistics_of_datasets(generator, ["stripes"], fine)
    x = load_dataset("stripes", fine, size=max(size, 64)).x_train
    x = x[torch.randperm(len(x), generator=small.seeded(0)).numpy()]
    features = generator.features(prepare_images(generator.base, resize_images(x, size)))
    torch.testing.assert_close(found, feature_statistics(generator, features))


@pytest.mark.parametrize("size", [32, LARGE])
@pytest.mark.parametrize("command", [("demo", "--bundle"), ("bench", "init"), ("bench", "hub", "org/name", "--bundle")])
def test_other_commands_read_images_of_the_size_of_the_bundle(command, size, fine, tmp_path, monkeypatch):
    def load(source, size):
        raise DataError(f"asked for {size} pixels")

    monkeypatch.setattr(small, "SIZE", size)
    small.save_random_bundle(tmp_path / "bundle")
    monkeypatch.setattr("zoo_builder.datasets.load_dataset", load)
    message = fail(*command, tmp_path / "bundle", "--data", fine / "stripes")
    assert f"asked for {max(size, 64)} pixels" in message
