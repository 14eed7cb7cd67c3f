import pytest
import timm
import torch
from torch.utils.data import DataLoader, TensorDataset

from pretrained_generators.bundle import load_bundle
from tests.pretrained_generators.small import MODEL, labelled_images, save_random_bundle


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "tiny-random"
    save_random_bundle(path)
    return path


@pytest.fixture(scope="session")
def bundle(bundle_path):
    return load_bundle(bundle_path)


@pytest.fixture
def model():
    return new_model()


@pytest.fixture
def loader():
    """48 images of three classes that are easy to tell apart, shuffled by a generator of its own."""
    data = TensorDataset(*labelled_images(48, 3))
    return DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(7))


def new_model(name=MODEL, classes=3, seed=0, **args):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, num_classes=classes, **args)
