"""Recalibrated BatchNorm: statistics of the images at hand, and nothing else changed."""

import timm
import torch
from torch import nn

from zoo_builder.batchnorm import recalibrate_batchnorm


def test_statistics_are_those_of_the_batch():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0)
    images = torch.randn(32, 3, 32, 32) * 2 + 1
    weights = {k: v.clone() for k, v in model.named_parameters()}
    assert recalibrate_batchnorm(model, images) > 10
    stem = model.conv1[0](images)
    torch.testing.assert_close(model.conv1[1].running_mean, stem.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.conv1[1].running_var, stem.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        expected = model.train()(images)
        torch.testing.assert_close(model.eval()(images), expected, atol=0.05, rtol=0.05)
    assert all(torch.equal(v, weights[k]) for k, v in model.named_parameters())


def test_modes_and_momentum_are_put_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(), nn.BatchNorm2d(4))
    model.train()
    model[3].eval()
    recalibrate_batchnorm(model, torch.randn(8, 3, 8, 8))
    assert [m.training for m in model] == [True, True, True, False]
    assert [model[1].momentum, model[3].momentum] == [0.3, 0.1]


def test_several_batches_count_the_same():
    model = nn.Sequential(nn.BatchNorm2d(2))
    images = torch.randn(90, 2, 4, 4)
    recalibrate_batchnorm(model, images, batch_size=30)
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)


def test_a_model_without_batchnorm_is_left_alone():
    assert recalibrate_batchnorm(timm.create_model("test_vit", num_classes=2), torch.randn(2, 3, 160, 160)) == 0
