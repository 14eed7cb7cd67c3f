"""Bodies side by side are the bodies alone."""

import pytest
import torch

from tests.zoo_builder.synthetic import copied, same, seeded
from zoo_builder.backbones import BackboneSpec
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.model_stack import ModelStack, shifted

MODELS = {
    "test_resnet": 64,
    "test_efficientnet": 64,
    "test_convnext": 64,
    "test_vit": 160,
    "mobilenetv3_small_050": 64,
    "swin_tiny_patch4_window7_224": 64,
    "torchvision:squeezenet1_1": 64,
}


SMALL = {  # of what there is no test model of
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)},
}


def bodies(name, count=3):
    """One body and the weights of several, near each other."""
    torch.manual_seed(0)
    body = BackboneSpec(name, img_size=MODELS[name], args=SMALL.get(name, {})).create().eval()
    base = {k: p.detach() for k, p in body.named_parameters()}
    noise = [{k: torch.randn(v.shape, generator=seeded(i)) for k, v in base.items()} for i in range(count)]
    return body, [shifted(base, delta, 0.02) for delta in noise]


def images_for(name, count=3):
    return torch.randn(count, 4, 3, MODELS[name], MODELS[name], generator=seeded(9))


@pytest.mark.parametrize("name", MODELS)
def test_features_and_gradients_of_several_are_those_of_each_alone(name):
    body, weights = bodies(name)
    images = images_for(name)
    together = ModelStack(body, weights, trained=weights[0].keys())
    features = together.features(images)
    features.square().sum().backward()
    for i, own in enumerate(weights):
        alone = ModelStack(body, [own], trained=own.keys())
        expected = alone.features(images[i][None])
        torch.testing.assert_close(features[i], expected[0], atol=1e-3, rtol=1e-3)
        expected.square().sum().backward()
        for key, parameter in alone.parameters.items():
            if parameter.grad is not None:
                scale = parameter.grad.abs().max().item()
                found = together.parameters[key].grad[i]
                torch.testing.assert_close(found, parameter.grad[0], atol=1e-3 * scale + 1e-5, rtol=1e-2)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_statistics_of_each_are_those_of_its_own_images_and_the_body_keeps_its(name):
    body, weights = bodies(name)
    images = torch.randn(3, 12, 3, 64, 64, generator=seeded(9))
    before = copied(body.state_dict())
    together = ModelStack(body, weights)
    together.recalibrate(images.split(6, dim=1))
    assert same(copied(body.state_dict()), before)
    assert not body.training
    for i, own in enumerate(weights):
        body.load_state_dict(own, strict=False)
        recalibrate_batchnorm(body, images[i], batch_size=6)
        for key, value in body.state_dict().items():
            if "running" in key:
                torch.testing.assert_close(together.statistics[key][i], value, atol=1e-4, rtol=1e-3)


def test_only_what_is_trained_takes_gradients_and_the_given_weights_stay():
    body, weights = bodies("test_resnet")
    name = next(iter(weights[0]))
    given = [copied(w) for w in weights]
    stack = ModelStack(body, weights, trained=[name])
    stack.features(images_for("test_resnet")).sum().backward()
    assert [k for k, p in stack.parameters.items() if p.grad is not None] == [name]
    with torch.no_grad():
        stack.parameters[name].zero_()
    assert all(same(a, b) for a, b in zip(weights, given, strict=True))
