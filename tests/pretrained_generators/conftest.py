import pytest

from tests.pretrained_generators.small import random_generator, small_zoo


@pytest.fixture(scope="session")
def generator():
    """Shared and only read."""
    return random_generator()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """Shared and only read."""
    return small_zoo(tmp_path_factory.mktemp("zoo"))
