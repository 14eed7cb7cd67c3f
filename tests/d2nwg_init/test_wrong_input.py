"""Whatever cannot be used is named, and the model is as it was, bit for bit."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from d2nwg_init import hook, initialize
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import SIZE, copied, labelled_images, same
from zoo_builder.errors import BundleError, DataError, ModelError, RecipeError


def batch(count=12, channels=3, size=SIZE):
    images = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(count) % 3


def with_pixel(value):
    images, labels = batch()
    images[3, 1, 2, 2] = value
    return images, labels


WRONG = {
    "empty loader": ([], "no images"),
    "batch without images": ([(torch.zeros(0, 3, SIZE, SIZE), torch.zeros(0, dtype=torch.long))], "no images"),
    "one class": ([(batch()[0], torch.ones(12, dtype=torch.long))], "at least two classes"),
    "label too large": ([(batch()[0], torch.arange(12) % 4)], r"0\.\.2"),
    "negative label": ([(batch()[0], torch.arange(12) % 3 - 1)], r"0\.\.2"),
    "gray images": ([batch(channels=1)], "1 channels"),
    "six channels": ([batch(channels=6)], "6 channels"),
    "NaN pixel": ([with_pixel(float("nan"))], "1 of 12 images"),
    "infinite pixel": ([with_pixel(float("inf"))], "1 of 12 images"),
    "uint8 images": ([(batch()[0].byte(), batch()[1])], "uint8"),
    "flat images": ([(batch()[0].flatten(1), batch()[1])], "float tensor"),
    "single images": ([(batch()[0][0], torch.tensor(1))], "float tensor"),
    "shares that do not sum to one": ([(batch()[0], torch.rand(12, 3))], "Mixup"),
    "float labels": ([(batch()[0], torch.rand(12))], "Mixup"),
    "fewer labels than images": ([(batch()[0], batch()[1][:5])], "one integer an image"),
    "images alone": ([batch()[0]], "pair or in a dict"),
    "dict without labels": ([{"image": batch()[0]}], "keys.*image"),
    "arrays": ([tuple(t.numpy() for t in batch())], "ndarray"),
    "numbers": ([3], "int"),
    "a dataset": (TensorDataset(*batch()), r"float tensor.*a single one.*DataLoader\(dataset"),
    "channels last": ([(batch()[0].permute(0, 2, 3, 1), batch()[1])], r"permute\(0, 3, 1, 2\)"),
    "loaders by name": ({"train": [batch()]}, r"keys \['train'\].*loaders\['train'\]"),
    "a function": (lambda: [batch()], "got function. Call it"),
    "nothing": (None, "got NoneType. Pass the DataLoader"),
    "one number an image": ([(batch()[0], torch.rand(12, 1))], "regression.*two outputs"),
    "images of two sizes": ([batch(), batch(size=48)], "one shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_named_and_leaves_the_model(case, model, bundle):
    batches, words = WRONG[case]
    before, modes = copied(model.state_dict()), [m.training for m in model.modules()]
    with pytest.raises(DataError, match=words):
        initialize(model, batches, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"generator": 123}, BundleError, "embedded name, its folder or ORG/NAME .* got int 123"),
        ({"generator": {"a": 1}}, BundleError, "got dict {'a': 1}"),
        ({"scope": None}, RecipeError, "expected a scope .* got None"),
        ({"scope": 3}, RecipeError, "got 3"),
        ({"scope": ["layer1", 2]}, RecipeError, r"list of modules' names, got \['layer1', 2\]"),
    ],
)
def test_wrong_option_is_named_and_leaves_the_model(options, error, words, model, bundle):
    before = copied(model.state_dict())
    with pytest.raises(error, match=words):
        initialize(model, [batch()], **({"generator": bundle, "num_candidates": 1} | options))
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": None}, "unknown head None; known: auto"),
        ({"head": True}, "unknown head True"),
        ({"seed": None}, "seed must be a whole number.* got None"),
        ({"seed": 2**70}, "seed must be a whole number, of -9"),
        ({"num_candidates": "8"}, "num_candidates must be a whole number, 0 or more; got '8'"),
        ({"budget": "60"}, "budget must be a number of seconds.* got '60'"),
        ({"budget": float("nan")}, "budget must be a number of seconds.* got nan"),
        ({"budget": 10**400}, "budget must be a number of seconds.* got 1000"),
        ({"device": "gpu"}, r"device must be .* got 'gpu' \(Expected one of cpu"),
        ({"device": "meta"}, r"got 'meta' \(which holds no values"),
        ({"device": "cuda:99"}, "device must be"),
    ],
)
def test_wrong_option_is_named_before_a_batch_is_read(options, words, model):
    def batches():
        pytest.fail("a batch was read")
        yield

    with pytest.raises(RecipeError, match=words):
        initialize(model, batches(), **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("test_resnet", []), "got str 'test_resnet'.*timm.create_model"),
        (([], torch.nn.Flatten()), "model comes first"),
    ],
)
def test_what_is_no_model_is_named(arguments, words):
    with pytest.raises(ModelError, match=words):
        initialize(*arguments)


class Wrapped(torch.nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.model, self._forward = new_model(), forward

    def forward(self, x):
        return self._forward(self.model, x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: new_model("test_resnet", global_pool=""), r"global_pool=''.*leave that out"),
        (lambda: new_model("test_vit", img_size=SIZE, global_pool=""), r"gives \[2, 5, 3\].*global_pool=''"),
        (lambda: Wrapped(lambda model, x: (model(x), model(x))), "gives tuple.*several outputs"),
        (
            lambda: Wrapped(lambda model, x: model(x, x)),
            r"Wrapped fails on two images of 3x32x32.*TypeError.*model\(images\)",
        ),
        (lambda: Wrapped(lambda model, x: {}["logits"]), "Wrapped fails on two images.*KeyError: 'logits'"),
        (lambda: Wrapped(lambda model, x: model(x) / (1 // 0)), "Wrapped fails on two images.*ZeroDivisionError"),
    ],
)
def test_a_model_that_fails_is_not_told_as_images_of_a_wrong_size(make, words):
    with pytest.raises(ModelError, match=words):
        initialize(make(), [batch()])


def test_image_size_that_the_model_cannot_take_is_named():
    vit = new_model("vit_tiny_patch16_224")
    before = copied(vit.state_dict())
    with pytest.raises(DataError, match=f"3x{SIZE}x{SIZE}"):
        initialize(vit, [batch()])
    assert same(vit.state_dict(), before)


@pytest.mark.parametrize("stage", ["read_support_set", "check_images_fit", "find_bundle", "propose", "select"])
def test_a_fault_at_any_stage_leaves_the_model(stage, model, loader, bundle, monkeypatch):
    def fault(*_, **__):
        torch.rand(3)
        raise RuntimeError("injected")

    monkeypatch.setattr(hook, stage, fault)
    before, modes = copied(model.state_dict()), [m.training for m in model.modules()]
    state, own = torch.get_rng_state(), loader.generator.get_state()
    with pytest.raises(RuntimeError, match="injected"):
        initialize(model, loader, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loader.generator.get_state(), own)


def test_a_fault_among_the_candidates_leaves_the_model(model, loader, bundle, monkeypatch):
    """Ctrl-C after some of them were made."""

    def fault(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(bundle.generator), "sample_latents", fault)
    before = copied(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        initialize(model, loader, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), before)


class Failing(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 13:
            raise ZeroDivisionError("mine")
        return torch.zeros(3, SIZE, SIZE), index % 2


def test_a_loaders_own_error_passes_untouched(model, bundle):
    before, state = copied(model.state_dict()), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError, match="mine"):
        initialize(model, DataLoader(Failing(), 5, shuffle=True), generator=bundle)
    assert same(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_dict_batches_give_the_same_model_as_pairs(model):
    images, labels = labelled_images(24, 3)
    other = new_model()
    initialize(model, [(images, labels)], generator=None)
    initialize(other, [{"pixel_values": images, "labels": labels}], generator=None)
    assert same(model.state_dict(), other.state_dict())
