"""Models of timm that keep attention biases in evaluation mode: weights that are set later have their effect."""

import pytest
import timm
import torch
from torch.func import functional_call

from d2nwg_init import initialize
from d2nwg_init.refine import refine
from tests.pretrained_generators.small import labelled_images, shaken
from zoo_builder.backbones import BackboneSpec, predict
from zoo_builder.batchnorm import batchnorm_training
from zoo_builder.support_set import SupportSet

NAME, SIZE = "efficientvit_m0", 64


@pytest.fixture(scope="module")
def images_and_labels():
    return labelled_images(24, 3, size=SIZE)


def new_model():
    """As timm makes it, attention would have no weight in the sum."""
    return shaken(timm.create_model(NAME, num_classes=3, img_size=SIZE), 0.1).eval()


def new_body(classes=0):
    return shaken(BackboneSpec(NAME, img_size=SIZE).create(num_classes=classes), 0.1).eval()


def other_biases(model):
    return {k: v + torch.randn_like(v) for k, v in model.named_parameters() if k.endswith("attention_biases")}


def test_substituted_biases_count_and_leave_nothing_behind(images_and_labels):
    body, images = new_body(), images_and_labels[0]
    with torch.no_grad(), batchnorm_training(body):
        before = body(images)
        assert not torch.allclose(functional_call(body, other_biases(body), (images,)), before)
        torch.testing.assert_close(body(images), before)


def test_it_can_be_refined(images_and_labels):
    model = new_body(3)
    assert refine(model, SupportSet(*images_and_labels, 3), 2, seed=0).steps == 2


def test_a_model_that_was_used_before_keeps_nothing_of_its_old_weights(images_and_labels):
    """It was used with gradients, so that what it keeps cannot even be copied."""
    model, images = new_model(), images_and_labels[0]
    model(images)
    report = initialize(model, [images_and_labels], generator=None)

    def as_good_as_new():
        fresh = new_model()
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(predict(model, images), predict(fresh, images))

    as_good_as_new()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.normal_()
    model.train().eval()(images)
    report.revert()
    as_good_as_new()
