"""Which bundle fits what the libraries call the same; a wrong pairing is never believed; other numbers of channels."""

import pytest
import timm
import torch
import torchvision
from timm.models import adapt_input_conv
from torch import nn

from d2nwg_init import initialize
from d2nwg_init.bundles import find_bundle
from d2nwg_init.matching import channel_map, match_body
from pretrained_generators import bundle as bundles
from pretrained_generators.bundle import Bundle
from tests.pretrained_generators.small import SIZE, copied, labelled_images, random_generator, same, save_random_bundle
from zoo_builder.backbones import BackboneSpec, extract_features
from zoo_builder.errors import BundleError

RENAMED = "the bundle names this architecture's parameters otherwise; they were paired as they are run"
ALIKE = {
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mobilenetv2_100": "mobilenet_v2",
    "efficientnet_b0": "efficientnet_b0",
    "mnasnet_100": "mnasnet1_0",
}


def seeded_body(name, seed=0, **args):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BackboneSpec(name, **args).create().eval()


def of_torchvision(name, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torchvision.models.get_model(name, weights=None, num_classes=classes)


def load(model, match, body):
    """The body's parameters and BatchNorm's statistics, which are all alike here: a new body has 0 and 1."""
    with torch.no_grad():
        for name, value in match.parameters(dict(body.named_parameters())).items():
            model.get_parameter(name).copy_(value)


@pytest.mark.parametrize("name", ALIKE)
def test_a_body_of_timm_computes_the_same_under_torchvisions_names(name):
    body, model = seeded_body(name), of_torchvision(ALIKE[name])
    before = copied(model.state_dict())
    match = match_body(model, body, SIZE)
    assert same(model.state_dict(), before)  # it was tried on a copy
    assert match.notes == (RENAMED,)
    assert sorted(match.names) == sorted(n for n, _ in body.named_parameters())
    load(model, match, body)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = next(b.eps for b in body.modules() if isinstance(b, nn.BatchNorm2d))
    images = labelled_images(4, 2, size=48)[0]
    with torch.no_grad():
        torch.testing.assert_close(extract_features(model, images), body(images), rtol=1e-3, atol=1e-4)


def test_resnets_match_by_name_and_nothing_is_noted():
    for model in (timm.create_model("resnet18", num_classes=3), of_torchvision("resnet18")):
        match = match_body(model, seeded_body("resnet18"), SIZE)
        assert all(a == b for a, b in match.names.items())
        assert match.notes == ()


class Branches(nn.Module):
    """Two convolutions of equal shapes; as a model, under other names than as a body."""

    def __init__(self, names, classes=0, turned=False):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()
        for name in names:
            self.add_module(name, nn.Conv2d(4, 4, 3, padding=1))
        self.order = tuple(reversed(names)) if turned else names
        self.head = nn.Linear(4, classes) if classes else nn.Identity()

    def forward(self, x):
        x = self.act(self.stem(x))
        for name in self.order:
            x = self.act(getattr(self, name)(x))
        return self.head(x.mean((2, 3)))


def test_the_order_of_running_counts_and_not_that_of_making():
    match = match_body(Branches(("c", "d"), 3, turned=True), Branches(("a", "b")), SIZE)
    assert {k: v for k, v in match.names.items() if "weight" in k} == {
        "stem.weight": "stem.weight", "a.weight": "d.weight", "b.weight": "c.weight"
    }  # fmt: skip


@pytest.mark.parametrize("case", ["activation", "stride", "skip", "once more", "unused"])
def test_what_computes_something_else_is_no_match_however_alike_its_shapes(case):
    model = Branches(("c", "d"), 3)
    if case == "activation":
        model.act = nn.Hardswish()
    elif case == "stride":
        model.c.stride = (2, 2)
    elif case == "skip":
        model.act = Residual(model.act)
    elif case == "once more":
        model.order = ("c", "d", "c")
    else:
        model.order = ("c", "c")
    assert match_body(Branches(("c", "d"), 3), Branches(("a", "b")), SIZE) is not None
    assert match_body(model, Branches(("a", "b")), SIZE) is None


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def test_layers_that_are_zero_hide_no_wrong_pairing():
    body, model = Branches(("a", "b")), Branches(("c", "d"), 3)
    model.c.stride = (2, 2)
    with torch.no_grad():
        body.b.weight.zero_()
        body.b.bias.zero_()
    assert match_body(model, body, SIZE) is None


def test_a_model_that_cannot_take_such_images_is_no_match():
    model = of_torchvision("mobilenet_v3_small")
    model.features[0] = nn.Sequential(model.features[0], nn.Flatten())
    assert match_body(model, seeded_body("mobilenetv3_small_100"), SIZE) is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 13])
def test_a_stem_for_other_channels_is_timms(channels):
    weight = torch.randn(8, 3, 3, 3)
    mapped = torch.einsum("okhw,kc->ochw", weight, channel_map(channels))
    torch.testing.assert_close(mapped, adapt_input_conv(channels, weight))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "test_vit"])
def test_a_body_sees_in_the_images_that_it_is_given_what_the_adapted_one_sees(name, channels):
    body = seeded_body(name, img_size=SIZE)
    model = BackboneSpec(name, channels, SIZE).create(num_classes=3)
    match = match_body(model, body, SIZE)
    assert match.notes == (f"the stem of the bundle was adapted from 3 channels to {channels}",)
    load(model, match, body)
    images = torch.randn(3, channels, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(extract_features(model, images), body(match.images(images)), rtol=1e-3, atol=1e-4)


def test_other_channels_and_other_names_go_together():
    model = of_torchvision("mobilenet_v3_small")
    stem = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    model.features[0][0] = stem
    match = match_body(model, seeded_body("mobilenetv3_small_100"), SIZE)
    assert len(match.notes) == 2
    assert match.shapes["conv_stem.weight"] == tuple(stem.weight.shape)


def test_a_body_for_other_than_three_channels_fits_its_own_number_alone():
    body = seeded_body("test_resnet", in_chans=1)
    for channels in (1, 3, 4):
        model = BackboneSpec("test_resnet", channels).create(num_classes=3)
        assert (match_body(model, body, SIZE) is None) == (channels != 1)


@pytest.fixture
def of_mobilenet(bundle):
    """A random bundle of timm's, and the weights that its samples have there."""
    return Bundle(bundle.config, random_generator("mobilenetv3_small_100"))


def test_generated_weights_are_written_under_the_models_own_names(of_mobilenet):
    model = of_torchvision("mobilenet_v3_small")
    names = set(model.state_dict())
    images = [labelled_images(48, 3)]
    report = initialize(model, images, generator=of_mobilenet, num_candidates=1, select=False, refining_steps=0)
    assert report.chosen == "generated_0"
    assert report.notes[:1] == (RENAMED,)
    assert set(model.state_dict()) == names
    ours = timm.create_model("mobilenetv3_small_100", num_classes=3)
    initialize(ours, images, generator=of_mobilenet, num_candidates=1, select=False, refining_steps=0)
    match = match_body(model, of_mobilenet.generator.base, SIZE)
    for theirs, here in match.names.items():
        assert torch.equal(model.get_parameter(here).flatten(), ours.get_parameter(theirs).flatten())
    report.revert()


@pytest.mark.parametrize("scope", ["norm", ["features.1"]])
def test_a_scope_is_of_the_models_own_names(scope, of_mobilenet):
    model = of_torchvision("mobilenet_v3_small")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    images = [labelled_images(48, 3)]
    initialize(model, images, generator=of_mobilenet, scope=scope, select=False, head="keep", num_candidates=1)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(n.rpartition(".")[0] in norms if scope == "norm" else n.startswith("features.1.") for n in changed)


def test_auto_finds_a_bundle_under_other_names(tmp_path, monkeypatch):
    save_random_bundle(tmp_path / "a", name="a", generator=random_generator("mobilenetv3_small_100"))
    monkeypatch.setattr(bundles, "EMBEDDED", tmp_path)
    assert find_bundle(of_torchvision("mobilenet_v3_small"), "auto")[0].config.name == "a"
    other = of_torchvision("mobilenet_v3_small")
    other.features[1].block[0][0].stride = (1, 1)
    assert find_bundle(other, "auto")[0] is None
    with pytest.raises(BundleError, match="which do not fit this MobileNetV3"):
        find_bundle(other, "a")


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_of_other_channels_get_generated_weights(channels, bundle):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3, in_chans=channels)
    images, labels = labelled_images(72, 3)
    gray = images.mean(1, keepdim=True).repeat(1, channels, 1, 1)
    report = initialize(model, [(gray, labels)], generator=bundle, num_candidates=1, select=False)
    assert report.chosen == "generated_0"
    assert report.notes[:1] == (f"the stem of the bundle was adapted from 3 channels to {channels}",)
    assert model.conv1[0].weight.shape[1] == channels
    with torch.no_grad():
        assert 100 * (model.eval()(gray).argmax(1) == labels).float().mean() > 90


def test_images_of_another_size_are_noted(bundle):
    for size, noted in ((SIZE, False), (48, False), (64, True), (16, True)):
        model = timm.create_model("test_resnet", num_classes=3)
        images = labelled_images(24, 3, size=size)
        report = initialize(model, [images], generator=bundle, num_candidates=1, refining_steps=0)
        words = f"the bundle is for images of 32x32 pixels, and these have {size}x{size}"
        assert (words in report.notes) == noted
