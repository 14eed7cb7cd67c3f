"""A bundle's body inside a user's model: behind a Normalize, or under a head of several layers."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from d2nwg_init import initialize
from d2nwg_init.bundles import find_bundle
from d2nwg_init.matching import match_body
from pretrained_generators import bundle as bundles
from pretrained_generators.bundle import Bundle
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import SIZE, labelled_images, random_generator
from zoo_builder.errors import BundleError

NOT_GENERATED = "nothing was generated for fc.0, which the bundle's body has not"


def with_hidden_layer(model=None, features=96):
    model = model or new_model()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.fc = nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
    return model


def normalised(mean=0.5, deviation=0.25, model=None):
    return nn.Sequential(torchvision.transforms.Normalize([mean] * 3, [deviation] * 3), model or new_model())


def brightened():
    """Which no factor and summand of a channel make up for."""
    return nn.Sequential(nn.Softplus(), new_model())


def test_a_body_under_a_head_of_several_layers_is_generated_and_the_hidden_ones_are_not(bundle, loader):
    model, plain = with_hidden_layer(), new_model()
    hidden = {k: v.clone() for k, v in model.fc[0].state_dict().items()}
    options = {"generator": bundle, "num_candidates": 1, "select": False, "refining_steps": 0}
    reports = [initialize(m, loader, **options) for m in (model, plain)]
    assert [r.chosen for r in reports] == ["generated_0"] * 2
    assert NOT_GENERATED in reports[0].notes
    assert NOT_GENERATED not in reports[1].notes
    body = {k: v for k, v in plain.state_dict().items() if not k.startswith("fc.")}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in body.items())
    assert all(torch.equal(v, hidden[k]) for k, v in model.fc[0].state_dict().items())
    images, labels = loader.dataset.tensors
    assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.8
    reports[0].revert()


def test_hidden_layers_of_a_head_are_refined_as_those_of_a_body_are(bundle, loader):
    """So it is for one that no bundle covers: what is not the classifier is the body."""
    for scope, refined in (("auto", True), (["layer3", "layer4"], False)):
        model = with_hidden_layer()
        before = model.fc[0].weight.detach().clone()
        report = initialize(model, loader, generator=bundle, num_candidates=1, select=False, scope=scope)
        assert report.from_bundle
        assert report.refinement.kept
        assert torch.equal(model.fc[0].weight, before) != refined


@pytest.mark.parametrize("make", [with_hidden_layer, normalised, lambda: normalised(model=with_hidden_layer())])
def test_auto_finds_the_bundle(make, bundle_path, monkeypatch):
    monkeypatch.setattr(bundles, "EMBEDDED", bundle_path.parent)
    found, reason = find_bundle(make(), "auto")
    assert found.config.name == "tiny-random"
    assert "match" in reason


def test_hidden_layers_and_other_names_go_together():
    generator = random_generator("mobilenetv2_100")
    model = torchvision.models.mobilenet_v2(num_classes=3)
    model.classifier = nn.Sequential(nn.Linear(1280, 32), nn.ReLU(), nn.Linear(32, 3))
    match = match_body(model, generator.base, SIZE)
    assert match.hidden == ("classifier.0",)
    assert not any(name.startswith("classifier") for name in match.names.values())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("channels", [3, 1])
def test_the_bundle_is_shown_images_as_the_models_body_gets_them(channels, in_place, bundle):
    inner = timm.create_model("test_resnet", num_classes=3, in_chans=channels)
    normalize = torchvision.transforms.Normalize([0.4] * channels, [0.2] * channels, in_place)
    model = nn.Sequential(normalize, inner)
    match = match_body(model, bundle.generator.base, SIZE)
    images = torch.rand(4, channels, SIZE, SIZE)
    expected = (images - 0.4) / 0.2
    plain = match_body(inner, bundle.generator.base, SIZE)
    torch.testing.assert_close(match.images(images), plain.images(expected), rtol=1e-3, atol=1e-3)
    assert any("normalised by the model" in note for note in match.notes)


def test_a_model_that_normalises_gets_the_weights_of_one_whose_loader_does(bundle):
    images, labels = labelled_images(48, 3)
    model, plain = normalised(0.5, 0.25), new_model()
    options = {"generator": bundle, "num_candidates": 1, "select": False, "refining_steps": 0}
    assert initialize(model, [(images, labels)], **options).chosen == "generated_0"
    initialize(plain, [((images - 0.5) / 0.25, labels)], **options)
    for k, v in plain.state_dict().items():
        torch.testing.assert_close(model[1].state_dict()[k], v, rtol=1e-2, atol=1e-2)


def test_why_a_body_behind_something_else_does_not_fit_is_told(bundle, bundle_path, monkeypatch):
    monkeypatch.setattr(bundles, "EMBEDDED", bundle_path.parent)
    words = "computes something else with parameters of the same shapes, or changes images before"
    found, reason = find_bundle(brightened(), "auto")
    assert found is None
    assert "tiny-random is of test_resnet and does not fit this Sequential: it " + words in reason
    assert "covers this architecture" not in reason
    with pytest.raises(BundleError, match=words):
        find_bundle(brightened(), bundle)


def test_a_body_with_a_layer_more_is_told_by_that_layer(bundle_path, monkeypatch):
    monkeypatch.setattr(bundles, "EMBEDDED", bundle_path.parent)
    model = new_model()
    model.bn1 = nn.Sequential(model.bn1, nn.Conv2d(32, 32, 1))
    assert "bn1.0.bias is (32,) in the model and None in the bundle" in find_bundle(model, "auto")[1]


def test_layers_in_the_heads_place_that_change_what_the_body_gives_are_behind_it(bundle):
    """Features are compared where they come in, not where the classifier sees them."""
    model = nn.Sequential(nn.Identity(), with_hidden_layer())
    assert match_body(model, bundle.generator.base, SIZE).hidden == ("1.fc.0",)
    assert find_bundle(model, Bundle(bundle.config, bundle.generator))[0]
