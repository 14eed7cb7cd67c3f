"""Layers that a model calls as layer(input=x)."""

import pytest
import timm
import torch
from torch import nn

from d2nwg_init import initialize
from d2nwg_init.unit_features import bring_features_to_unit_size
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import labelled_images, same
from zoo_builder.absorbed_statistics import batchnorm_absorbing
from zoo_builder.backbones import extract_features
from zoo_builder.rescaling import batchnorm_rescaling


def call_by_keyword(model):
    """The same model, whose layers see no positional argument."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm):
            module.__class__ = type("ByKeyword", (type(module),), {"__call__": called_by_keyword})
    return model


def called_by_keyword(self, x):
    parameter = "x" if isinstance(self, timm.layers.BatchNormAct2d) else "input"
    return nn.Module.__call__(self, **{parameter: x})


@pytest.mark.parametrize("measure", [batchnorm_rescaling, batchnorm_absorbing, extract_features])
def test_layers_called_by_keyword_are_measured_as_those_called_by_position(measure):
    images, models = labelled_images(16, 3)[0], [new_model(), call_by_keyword(new_model())]
    expected, found = (measure(model.eval(), images) for model in models)
    if isinstance(expected, dict):
        assert expected
        assert same(found, expected)
    else:
        assert torch.equal(found, expected)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def test_features_of_layers_called_by_keyword_are_brought_to_unit_size():
    images, models = labelled_images(16, 3)[0], [plain(), call_by_keyword(plain())]
    assert all(bring_features_to_unit_size(model, images) for model in models)
    assert same(models[1].state_dict(), models[0].state_dict())


def test_a_model_that_calls_its_batchnorm_by_keyword_is_initialised(loader):
    model, other = new_model(), new_model()
    call_by_keyword(other.layer2)
    for m in (model, other):
        nn.init.normal_(m.bn1.running_mean)  # else it would count as one that was never trained
        initialize(m, loader, generator=None, refining_steps=1)
    assert same(other.state_dict(), model.state_dict())


class WithHead(nn.Module):
    def __init__(self, by_keyword):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc, self.by_keyword = new_model(classes=0), nn.Linear(96, 3), by_keyword

    def forward(self, x):
        features = self.body(x)
        return self.fc(input=features) if self.by_keyword else self.fc(features)


def test_a_model_that_calls_its_head_by_keyword_is_initialised(loader):
    models = [WithHead(by_keyword) for by_keyword in (False, True)]
    for model in models:
        assert initialize(model, loader, generator=None, head="solve", refining_steps=1).chosen != "as_passed"
    assert same(*(m.state_dict() for m in models))
