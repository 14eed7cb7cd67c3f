"""What is open around a call, and what a model does to the images it is given, change nothing of what comes out."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.transforms import Normalize

from d2nwg_init import initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import labelled_images, same, seeded
from zoo_builder.versions import versions

MEAN, DEVIATION = 0.4, 0.2


class Normalizing(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.model = in_place, new_model()

    def forward(self, x):
        if self.in_place:
            x -= MEAN
            x /= DEVIATION
        else:
            x = (x - MEAN) / DEVIATION
        return self.model(x)


def normalized(in_place):
    return nn.Sequential(Normalize([MEAN] * 3, [DEVIATION] * 3, inplace=in_place), new_model())


@pytest.fixture
def noisy():
    """Of which a refining step changes the loss."""
    images, labels = labelled_images(64, 3)
    return [(images + 3 * torch.randn(images.shape, generator=seeded(0)), labels)]


def test_an_open_autocast_changes_no_bit_and_is_open_afterwards(noisy, bundle):
    options = {"generator": bundle, "num_candidates": 1, "refining_steps": 4}
    alone, inside = new_model(), new_model()
    assert initialize(alone, noisy, **options).refinement.kept
    with torch.autocast("cpu", torch.bfloat16):
        initialize(inside, noisy, **options)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled()
    assert same(alone.state_dict(), inside.state_dict())


def test_a_model_that_opens_autocast_refines_alike_inside_another(noisy):
    class Autocasting(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = new_model()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.model(x).float()

    alone, inside = Autocasting(), Autocasting()
    options = {"generator": None, "head": "solve", "refining_steps": 4}
    initialize(alone, noisy, **options)
    with torch.autocast("cpu", torch.bfloat16):
        initialize(inside, noisy, **options)
    assert same(alone.state_dict(), inside.state_dict())


@pytest.mark.parametrize("make", [Normalizing, normalized])
def test_a_model_that_changes_its_images_in_place_becomes_what_it_becomes_otherwise(make, noisy):
    given, models = noisy[0][0].clone(), [make(in_place) for in_place in (False, True)]
    for model in models:
        assert initialize(model, noisy, generator=None, head="solve", refining_steps=2).chosen != "as_passed"
    assert same(*(m.state_dict() for m in models))
    assert torch.equal(noisy[0][0], given)


def test_an_empty_parameter_tells_nothing_of_training(loader):
    """Some keep one, to ask it for the device."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    model.register_parameter("device_of", nn.Parameter(torch.empty(0)))
    assert initialize(model, loader, generator=None, refining_steps=0).candidates


def test_generating_warns_of_nothing(loader, bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialize(new_model(), loader, generator=bundle, num_candidates=1, refining_steps=0)


def test_what_was_never_installed_has_no_version_and_no_error(monkeypatch):
    assert "unknown" not in versions().values()
    monkeypatch.setattr("sys.path", [])  # where the metadata lies
    assert set(versions().values()) == {"unknown"}
