import copy
import dataclasses

import pytest
import timm
import torch
from torch import nn

from d2nwg_init import hook
from d2nwg_init.accepted_model import working_copy
from d2nwg_init.candidates import become, propose
from d2nwg_init.hook import initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import labelled_images, random_generator, save_random_bundle
from tests.zoo_builder.test_absorbed_statistics import trained
from zoo_builder.backbones import extract_features
from zoo_builder.support_set import SupportSet


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


@pytest.mark.parametrize(("make", "by_default"), [(trained, True), (new_model, False), (without_batchnorm, True)])
def test_of_no_bundle_what_was_trained_is_refined(make, by_default, loader):
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


def save_bundle_of(fit, path):
    generator = random_generator()
    generator.config = dataclasses.replace(generator.config, batchnorm=fit)
    save_random_bundle(path, generator=generator)


@pytest.mark.parametrize(("fit", "careful"), [("rescaled", False), ("absorbed", True)])
def test_the_body_of_a_bundle_whose_base_absorbs_is_refined_with_care(fit, careful, loader, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(hook, "refine", lambda *arguments: asked.append(arguments[-1]))
    save_bundle_of(fit, tmp_path)
    assert initialize(new_model(), loader, generator=tmp_path).chosen not in ("as_passed", "own_body")
    assert asked == [careful]


def test_a_scope_without_all_batchnorm_gets_no_body_of_a_base_that_absorbs(loader, tmp_path):
    for fit in ("rescaled", "absorbed"):
        save_bundle_of(fit, tmp_path / fit)
        report = initialize(new_model(), loader, generator=tmp_path / fit, scope=["layer2"], refining_steps=0)
        assert any(c.kind == "generated" for c in report.candidates) == (fit == "rescaled")
        assert any("needs all BatchNorm weights" in note for note in report.notes) == (fit == "absorbed")


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
