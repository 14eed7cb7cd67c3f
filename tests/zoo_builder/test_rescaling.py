import pytest
import timm
import torch
from torch import nn

from tests.zoo_builder.synthetic import seeded
from zoo_builder.backbones import evaluating
from zoo_builder.batchnorm import batchnorm_layers, recalibrate_batchnorm
from zoo_builder.datasets.image_dataset import standardize_channels
from zoo_builder.model_stack import shifted
from zoo_builder.rescaling import LOUDEST, batchnorm_rescaling, signal_left


def images(count=48, seed=0, size=16):
    return standardize_channels(torch.randn(count, 3, size, size, generator=seeded(seed)))


def body(seed=0):
    """Two BatchNorm layers with an activation between, and the statistics of some images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
    )
    for layer in batchnorm_layers(model):
        nn.init.uniform_(layer.weight, 0.5, 2.0)
    recalibrate_batchnorm(model, images())
    return model.eval()


def set_rescaled(model, x):
    model.load_state_dict(shifted(model.state_dict(), batchnorm_rescaling(model, x)))
    recalibrate_batchnorm(model, x)


def test_nothing_changes_on_images_that_vary_as_those_of_before():
    """Of the statistics' own images the ratio is one, by whatever a loader shifted and scaled them."""
    model, x = body(), images()
    for some in (x, 3 * x - 5):
        for name, change in batchnorm_rescaling(model, some).items():
            assert (change / model.get_parameter(name)).abs().max() < 1e-3


def test_the_body_computes_what_it_did_on_images_that_vary_otherwise():
    """Where BatchNorm's means stay, a rescaled and recalibrated body is the body as it was; recalibrated alone it is
    another one."""
    model = body()
    x = images(seed=1) * torch.rand(48, 1, 1, 1, generator=seeded(2))
    x = standardize_channels(x.repeat_interleave(4, dim=3)[..., :16])  # blurred along one side
    with evaluating(model):
        before = model(x)
    means = [layer.running_mean.clone() for layer in batchnorm_layers(model)]
    others = {"rescaled": body(), "recalibrated": body()}
    set_rescaled(others["rescaled"], x)
    recalibrate_batchnorm(others["recalibrated"], x)
    away = {}
    for name, other in others.items():
        with evaluating(other):
            after = other(x)
        away[name] = ((after - after.mean(0)) - (before - before.mean(0))).square().mean().sqrt().item()
    assert means
    assert away["rescaled"] < 0.3 * away["recalibrated"]


def test_a_channel_that_falls_silent_stays_so_and_none_explodes():
    model, x = body(), images()
    first = batchnorm_layers(model)[0]
    with torch.no_grad():
        model[0].weight[0] *= 1e-3
        model[0].bias[0] *= 1e-3
        model[0].weight[1] *= 100
    change = batchnorm_rescaling(model, x)["1.weight"]
    share = 1 + change / first.weight.detach()
    assert share[0] < 0.01
    assert share[1] == LOUDEST
    assert (share[2:] - 1).abs().max() < 1e-3


def test_the_body_stays_as_it_is():
    model = body().train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batchnorm_rescaling(model, images(seed=3))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert not any(m._forward_pre_hooks for m in model)


def test_an_error_leaves_the_body_as_it_is():
    model = body()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        batchnorm_rescaling(model, torch.randn(8, 5, 16, 16))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model)


def test_a_body_without_batchnorm_has_nothing_to_rescale():
    assert batchnorm_rescaling(timm.create_model("test_vit", num_classes=0), torch.randn(4, 3, 160, 160)) == {}


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_every_batchnorm_of_a_body_is_rescaled(name):
    model = timm.create_model(name, num_classes=0)
    found = batchnorm_rescaling(model, images(8, size=32))
    assert len(found) == len(batchnorm_layers(model))
    for key, change in found.items():
        assert change.shape == model.get_parameter(key).shape
        assert torch.isfinite(change).all()


def leaning_on_its_means(model):
    """Channels are high above zero by the means that BatchNorm holds, and near it or below without."""
    for layer in batchnorm_layers(model):
        layer.running_mean -= 6 * layer.running_var.sqrt()
        nn.init.constant_(layer.bias, -3.0)
    return model


def test_a_body_that_leans_on_its_means_is_told_from_others():
    model = timm.create_model("test_resnet", num_classes=0).eval()
    x = images(64, size=32)
    recalibrate_batchnorm(model, x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert 0.8 < signal_left(model, x) < 1.25  # of the statistics' own images
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert signal_left(leaning_on_its_means(model), x) < 0.1
    assert signal_left(timm.create_model("test_vit", num_classes=0), torch.randn(4, 3, 160, 160)) == 1
