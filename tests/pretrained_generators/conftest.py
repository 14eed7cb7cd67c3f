import numpy as np
import pytest
import torch

from pretrained_generators.training.train import train_generator
from tests.pretrained_generators.small import RECIPE, labelled_images, random_generator, small_zoo


@pytest.fixture(scope="session")
def generator():
    """Shared and only read."""
    return random_generator()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Shared and only read."""
    return small_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def trained(zoo, tmp_path_factory):
    """The folder of the bundle that was trained on it; shared and only read."""
    folder = tmp_path_factory.mktemp("trained") / "bundle"
    train_generator(zoo, RECIPE, folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Images of the datasets of `small_zoo`; shared and only read."""
    folder = tmp_path_factory.mktemp("data")
    for i, name in enumerate(("stripes", "blobs")):
        images, labels = labelled_images(48, 3, seed=i)
        images += 2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(i))  # not all too easy
        pixels = (images * 40 + 100 + 50 * i).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        y = labels.numpy()
        np.savez(folder / f"{name}.npz", x_train=pixels, y_train=y, x_test=pixels[:6], y_test=y[:6])
    return folder
