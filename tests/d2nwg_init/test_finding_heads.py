"""Which layer is the head: in classes of the user's own, and where layers are not registered as they are run."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from d2nwg_init import initialize
from tests.d2nwg_init.conftest import new_model
from zoo_builder.backbones import create_backbone, torchvision_classifiers
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError


class Head(nn.Module):
    def __init__(self, features, classes=3):
        super().__init__()
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(features, classes)

    def forward(self, x):
        return self.out(self.drop(x))


class TwoOutputs(nn.Module):
    """Whose logits are the mean of two layers'."""

    def __init__(self, features, classes=3):
        super().__init__()
        self.a, self.b = nn.Linear(features, classes), nn.Linear(features, classes)

    def forward(self, x):
        return (self.a(x) + self.b(x)) / 2


class Net(nn.Module):
    """Its parts, in the order in which they are registered, are run in another."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.order = run

    def forward(self, x):
        for name in self.order.split():
            x = self.get_submodule(name)(x)
        return x


def body():
    return new_model(classes=0)


def timms_with(head):
    model = new_model()
    model.fc = head
    return model


def torchvisions_with(head):
    model = torchvision.models.shufflenet_v2_x0_5()
    model.fc = head
    return model


FOUND = {
    "a class of one's own on timm": (lambda: timms_with(Head(96)), "fc.out"),
    "a class of one's own on torchvision": (lambda: torchvisions_with(Head(1024)), "fc.out"),
    "an identity in front, registered behind": (
        lambda: Net("body neck drop fc", body=body(), fc=nn.Linear(96, 3), drop=nn.Dropout(), neck=nn.Identity()),
        "fc",
    ),
    "the head first": (lambda: Net("body head", head=nn.Linear(96, 3), body=body()), "head"),
    "a head of several layers first": (
        lambda: Net("body head", head=nn.Sequential(nn.Dropout(), nn.Linear(96, 3)), body=body()),
        "head.1",
    ),
    "in a wrapper": (lambda: Net("net", net=Net("body head", head=Head(96), body=body())), "net.head.out"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_head_is_found_and_solved(case, loader):
    make, name = FOUND[case]
    model = make()
    assert find_classifier(model).name == name
    initialize(model, loader, generator=None, refining_steps=0)
    images, labels = loader.dataset.tensors
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9


def test_a_head_of_ones_own_that_is_no_single_layer_is_refused(loader):
    with pytest.raises(ModelError, match=r"are not those of its last layer, fc\.b"):
        initialize(timms_with(TwoOutputs(96)), loader, generator=None)


UNCLEAR = {
    "two that may be it": lambda: Net("body a b", a=nn.Linear(96, 96), b=nn.Linear(96, 3), body=body()),
    "none of timm's": lambda: nn.Sequential(nn.Flatten(), timm.create_model("test_vit", num_classes=0)),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_where_none_is_the_last_that_is_what_is_told(case, loader):
    with pytest.raises(ModelError, match=r"found none that is the last; .*assign the head last"):
        initialize(UNCLEAR[case](), loader)


@pytest.mark.parametrize("name", ["crossvit_9_240", "levit_128s", "repvit_m0_9"])
def test_a_list_and_a_class_of_timms_in_the_heads_place_are_no_heads(name):
    with torch.device("meta"), pytest.raises(ModelError, match=r"no linear classifier.*found \w+\)"):
        find_classifier(timm.create_model(name, num_classes=3))


@pytest.mark.parametrize("name", [n for n in torchvision_classifiers() if "regnet" not in n])  # which need values
def test_a_body_of_torchvision_has_no_head(name):
    with torch.device("meta"), pytest.raises(ModelError, match="no linear classifier"):
        find_classifier(create_backbone(f"torchvision:{name}"))
