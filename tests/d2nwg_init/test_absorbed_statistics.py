import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from d2nwg_init import hook
from d2nwg_init.absorbed_statistics import absorb_statistics, can_absorb
from d2nwg_init.accepted_model import working_copy
from d2nwg_init.candidates import become, propose
from d2nwg_init.hook import initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, same, seeded
from zoo_builder.backbones import extract_features
from zoo_builder.batchnorm import batchnorm_layers, batchnorm_training
from zoo_builder.support_set import SupportSet


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


def test_it_needs_batchnorm_with_weights_all_of_them_in_scope():
    model = trained()
    norms = {f"{n}.{k}" for n, m in model.named_modules() if m in batchnorm_layers(model) for k in ("weight", "bias")}
    assert can_absorb(model)
    assert can_absorb(model, norms)
    assert not can_absorb(model, norms - {"bn1.bias"})
    assert not can_absorb(timm.create_model("test_vit"))
    model.bn1 = nn.BatchNorm2d(model.bn1.num_features, affine=False)
    assert not can_absorb(model)


def test_the_model_as_it_is_becomes_what_was_judged():
    images, labels = labelled_images(300, 3)
    support, model = SupportSet(images, labels, 3), trained()
    features = model.forward_head(model.forward_features(images), pre_logits=True).detach()
    as_is = list(propose(working_copy(model), support, []))[1]
    assert (as_is.name, as_is.batchnorm) == ("own_body_as_is", "absorbed")
    become(model, as_is, support)
    after = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(after, features, rtol=1e-3, atol=1e-3)
    assert 100 * (model(images).argmax(1) == labels).float().mean() >= as_is.accuracy


def without_batchnorm():
    model = timm.create_model("test_convnext", num_classes=3)
    nn.init.normal_(model.head.norm.bias)  # else it would count as one that was never trained
    return model


@pytest.mark.parametrize(("make", "by_default"), [(trained, True), (new_model, False), (without_batchnorm, False)])
def test_of_no_bundle_what_was_trained_and_has_batchnorm_is_refined(make, by_default, loader):
    report = initialize(make(), loader, generator=None)
    assert report.bundle is None
    assert (report.refinement is not None) == by_default
    assert initialize(make(), loader, generator=None, refining_steps=1).refinement.steps == 1


def test_refining_begins_with_what_the_model_as_it_is_computed(loader, monkeypatch):
    begun = []

    def kept(model, support, *rest):
        begun.append((copy.deepcopy(model), support.images))

    monkeypatch.setattr(hook, "select", lambda cs: next(c for c in cs if c.name == "own_body_as_is"))
    monkeypatch.setattr(hook, "refine", kept)
    model = trained()
    passed = copy.deepcopy(model)
    assert initialize(model, loader, generator=None).chosen == "own_body_as_is"
    ((work, images),) = begun
    torch.testing.assert_close(extract_features(work, images), extract_features(passed, images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_a_refined_model(mode, loader):
    model = trained()
    with mode():
        report = initialize(model, loader, generator=None, refining_steps=1)
        assert not torch.is_grad_enabled()
    assert report.refinement.steps == 1
    assert all(p.requires_grad and not p.is_inference() for p in model.parameters())


@pytest.mark.parametrize(("batch", "count"), [(1, 9), (2, 9), (1, 17)])
def test_loaders_of_tiny_batches_are_refined_in_parts_that_batchnorm_can_bear(batch, count, monkeypatch):
    monkeypatch.setattr("d2nwg_init.refine.ACTIVATIONS", 1)
    images, labels = labelled_images(count, 3)
    tiny = list(zip(images.split(batch), labels.split(batch), strict=True))
    assert initialize(trained(), tiny, generator=None, refining_steps=1).refinement.steps == 1
