"""Recalibrated BatchNorm: statistics of the images at hand, and nothing else changed."""

import pytest
import timm
import torch
from torch import nn

from tests.zoo_builder.synthetic import copied, random_body, same, seeded
from zoo_builder.batchnorm import recalibrate_batchnorm


def images(n=24, size=32, seed=0):
    return torch.randn(n, 3, size, size, generator=seeded(seed)) * 2 + 1


def batchnorms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_every_layer_takes_the_statistics_of_what_it_sees_in_training_mode():
    model, x = random_body(), images()
    seen = {}
    hooks = [m.register_forward_pre_hook(lambda m, a: seen.update({m: a[0].detach()})) for m in batchnorms(model)]
    with torch.no_grad():
        model.train()(x)
    for hook in hooks:
        hook.remove()
    assert recalibrate_batchnorm(model, x) == len(seen) > 10
    for layer, inputs in seen.items():
        torch.testing.assert_close(layer.running_mean, inputs.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.running_var, inputs.var((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_features_after_it_are_those_of_training_mode_on_the_batch():
    model, x = random_body(), images(64)
    with torch.no_grad():
        expected = model.train()(x)
        before = model.eval()(x)
        recalibrate_batchnorm(model, x)
        after = model.eval()(x)
    assert (after - expected).norm() < 0.05 * expected.norm()
    assert (before - expected).norm() > 0.5 * expected.norm()


def test_earlier_statistics_are_forgotten_and_weights_are_not_touched():
    model, x = random_body(), images()
    weights = copied(dict(model.named_parameters()))
    recalibrate_batchnorm(model, x)
    once = copied(model.state_dict())
    recalibrate_batchnorm(model, 5 * images(seed=1))
    recalibrate_batchnorm(model, x)
    assert same(once, model.state_dict())
    assert same(weights, dict(model.named_parameters()))


def test_batches_count_the_same():
    model, x = nn.Sequential(nn.BatchNorm2d(3)), images(90)
    recalibrate_batchnorm(model, x, batch_size=30)
    variances = torch.stack([part.var((0, 2, 3)) for part in x.split(30)])
    torch.testing.assert_close(model[0].running_mean, x.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model[0].running_var, variances.mean(0), atol=1e-5, rtol=1e-5)


def test_no_batch_is_a_single_left_over_image():
    model = nn.Sequential(nn.BatchNorm1d(4))  # raises on a single vector
    assert recalibrate_batchnorm(model, torch.randn(257, 4, generator=seeded(0))) == 1


def mixed_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(), nn.BatchNorm2d(4))
    model.train()
    model[3].eval()
    return model


@pytest.mark.parametrize("channels", [3, 5], ids=["fits", "raises"])
def test_modes_and_momenta_are_put_back(channels):
    model, x = mixed_model(), torch.randn(8, channels, 8, 8, generator=seeded(0))
    if channels == 3:
        recalibrate_batchnorm(model, x)
    else:
        with pytest.raises(RuntimeError, match="channels"):
            recalibrate_batchnorm(model, x)
    assert [m.training for m in model] == [True, True, True, False]
    assert [model[1].momentum, model[3].momentum] == [0.3, 0.1]


def test_dropout_is_off():
    """With dropout on, the last layer would see half of its inputs at zero, and the random state would move."""
    model, x = mixed_model(), images(8)
    state = torch.get_rng_state()
    recalibrate_batchnorm(model, x)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        expected = model[1].eval()(model[0](x)).var((0, 2, 3))
    torch.testing.assert_close(model[3].running_var, expected, atol=0.02, rtol=0.02)


def test_model_without_batchnorm_is_left_alone():
    model = timm.create_model("test_vit", num_classes=2)
    before = copied(model.state_dict())
    assert recalibrate_batchnorm(model, torch.randn(2, 3, 160, 160)) == 0
    assert same(before, model.state_dict())
