import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from tests.pretrained_generators.small import copied, labelled_images, same, seeded
from zoo_builder.absorbed_statistics import absorb_statistics, batchnorm_absorbing, can_absorb
from zoo_builder.batchnorm import batchnorm_layers, batchnorm_training, recalibrate_batchnorm
from zoo_builder.model_stack import shifted


def trained(name="test_resnet", **options):
    """A body whose BatchNorm holds statistics of its own, as after a training."""
    model = timm.create_model(name, num_classes=3, **options).eval()
    generator = seeded(1)
    with torch.no_grad():
        for layer in batchnorm_layers(model):
            layer.running_mean.add_(torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.mul_(0.3 + 2 * torch.rand(layer.running_var.shape, generator=generator))
            layer.weight.add_(torch.randn(layer.weight.shape, generator=generator) / 3)
            layer.bias.add_(torch.randn(layer.bias.shape, generator=generator) / 3)
    return model


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv2_050"])
def test_a_body_computes_what_it_did_and_does_so_with_the_statistics_of_a_batch_too(name):
    model, (images, _) = trained(name), labelled_images(96, 3)
    before = model(images).detach()
    absorb_statistics(model, images)
    torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-3)
    with batchnorm_training(model), torch.no_grad():  # whose variance is that of a population, not of a sample
        assert (model(images) - before).norm() < 0.02 * before.norm()


def test_a_layer_that_is_called_twice_computes_what_it_did_and_one_that_is_not_called_stays():
    norm, idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm).eval()
    model.idle = idle
    model.forward = lambda x: norm(F.relu(norm(x)) + 1)
    nn.init.normal_(norm.running_mean)
    nn.init.normal_(norm.bias)
    before, images = copied(idle.state_dict()), torch.randn(300, 3, 8, 8, generator=seeded(0))
    was = model(images).detach()
    absorb_statistics(model, images)
    torch.testing.assert_close(model(images), was, rtol=1e-4, atol=1e-4)
    assert same(idle.state_dict(), before)


def test_without_it_the_statistics_of_a_batch_change_what_is_computed():
    model, (images, _) = trained(), labelled_images(96, 3)
    before = model(images).detach()
    with batchnorm_training(model), torch.no_grad():
        assert (model(images) - before).norm() > 0.3 * before.norm()


def test_a_body_to_which_it_is_added_computes_what_it_did_once_recalibrated():
    body, (images, _) = trained().eval(), labelled_images(96, 3)
    before, was = body(images).detach(), copied(body.state_dict())
    changes = batchnorm_absorbing(body, images)
    assert same(body.state_dict(), was)
    assert {name.rpartition(".")[2] for name in changes} == {"weight", "bias"}
    body.load_state_dict(shifted(was, changes))
    recalibrate_batchnorm(body, images)
    torch.testing.assert_close(body(images), before, rtol=2e-2, atol=2e-2)  # of a sample, not of a population


def test_it_needs_batchnorm_with_weights_all_of_them_in_scope():
    model = trained()
    norms = {f"{n}.{k}" for n, m in model.named_modules() if m in batchnorm_layers(model) for k in ("weight", "bias")}
    assert can_absorb(model)
    assert can_absorb(model, norms)
    assert not can_absorb(model, norms - {"bn1.bias"})
    assert not can_absorb(timm.create_model("test_vit"))
    model.bn1 = nn.BatchNorm2d(model.bn1.num_features, affine=False)
    assert not can_absorb(model)
