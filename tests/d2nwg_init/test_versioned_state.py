"""torchvision's mnasnet, which loads no state dict that does not tell its version."""

import pytest
import torch
import torchvision

from d2nwg_init import initialize
from tests.pretrained_generators.small import copied, same


def test_a_model_that_loads_no_state_without_its_version_is_taken():
    model = torchvision.models.get_model("mnasnet0_5", num_classes=3)
    images, labels = torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    report = initialize(model, [(images, labels)], generator=None)
    assert report.chosen in ("as_passed", "own_body", "own_body_as_is")


@pytest.mark.parametrize("options", [{"refining_steps": 2}, {"head": "fresh"}])
def test_a_model_that_takes_no_state_without_its_version_is_refined_and_comes_back(options, loader, monkeypatch):
    """torchvision's mnasnet; its refining is not kept here, so that it comes back from that too."""
    monkeypatch.setattr("d2nwg_init.refine.RATES", (1e30, 1e30))
    torch.manual_seed(0)
    model = torchvision.models.get_model("mnasnet0_5", num_classes=3)
    before = copied(model.state_dict())
    report = initialize(model, loader, generator=None, **options)
    assert not same(model.state_dict(), before)
    report.revert()
    assert same(model.state_dict(), before)
