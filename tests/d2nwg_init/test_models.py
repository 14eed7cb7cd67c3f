"""The models that users bring: wrapped, in other precisions and layouts, and those that are refused."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

from d2nwg_init import initialize
from d2nwg_init.accepted_model import working_copy
from d2nwg_init.bundles import find_bundle
from pretrained_generators.bundle import Bundle
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, random_generator, same
from zoo_builder.errors import DataError, ModelError


@pytest.fixture
def expected(loader, bundle):
    """State of a plain model after the call."""
    model = new_model()
    initialize(model, loader, generator=bundle, num_candidates=1)
    return copied(model.state_dict())


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_are_looked_into(wrap, loader, bundle, expected):
    model = new_model()
    wrapped = wrap(model)
    report = initialize(wrapped, loader, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), expected)
    assert report.undo.model is model


def test_distributed_data_parallel_is_looked_into(process_group, loader, bundle, expected):
    model = new_model()
    initialize(DistributedDataParallel(model), loader, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), expected)


def test_a_model_compiled_in_place_predicts_by_its_new_weights(loader, bundle, expected):
    model = new_model()
    model.compile(backend="eager")
    images = loader.dataset.tensors[0]
    model.eval()(images)
    initialize(model, loader, generator=bundle, num_candidates=1)
    plain = new_model()
    plain.load_state_dict(expected)
    torch.testing.assert_close(model(images), plain.eval()(images))


def test_the_layout_of_the_memory_is_kept(loader, bundle, expected):
    model = new_model().to(memory_format=torch.channels_last)
    initialize(model, loader, generator=bundle, num_candidates=1)
    assert same(model.state_dict(), expected)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_parts_that_are_compiled_are_looked_into(loader, bundle, expected):
    """In what was compiled before a hook is put on it, the hook is not called."""
    model = new_model()
    model.layer1, model.layer2 = (torch.compile(m, backend="eager") for m in (model.layer1, model.layer2))
    model.eval()(loader.dataset.tensors[0])
    report = initialize(model, loader, generator=bundle, num_candidates=1)
    assert report.bundle == "tiny-random"
    assert {c.kind for c in report.candidates} == {"as_passed", "own_body", "base", "generated"}
    assert all(map(torch.equal, model.state_dict().values(), expected.values()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded(dtype, loader, bundle):
    model = new_model().to(dtype)
    report = initialize(model, loader, generator=bundle, num_candidates=2)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert report.chosen != "as_passed"
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        predicted = model.eval()(images.to(dtype)).argmax(1)
    assert 100 * (predicted == labels).float().mean() > 90


def test_what_is_no_number_in_half_precision_is_told_and_changes_nothing(loader):
    """Images of 0 to 255 and more, as they come without normalisation, have variances that float16 does not hold."""
    batches = [(600 * x, y) for x, y in loader]
    model = new_model().half()
    before = copied(model.state_dict())
    with pytest.raises(ModelError, match=r"torch\.float16, of which the largest is 6\.55e\+04.*bfloat16"):
        initialize(model, batches, generator=None)
    assert same(model.state_dict(), before)
    model = new_model().bfloat16()
    initialize(model, batches, generator=None)
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_half_precision_as_it_was_passed_keeps_its_bits(loader):
    model = new_model()
    initialize(model, loader, generator=None)
    with torch.no_grad():
        model.fc.weight.mul_(3)
    model.half()
    before = copied(model.state_dict())
    assert initialize(model, loader, generator=None, head="keep").chosen == "as_passed"
    assert same(model.state_dict(), before)


def test_timms_and_torchvisions_resnet18_share_a_bundle(bundle):
    of_timm = Bundle(bundle.config, random_generator("resnet18"))
    for model in (timm.create_model("resnet18", num_classes=3), torchvision.models.resnet18(num_classes=3)):
        assert find_bundle(model, of_timm)[0] is of_timm
    # A pretrained model of torchvision, whose head the user replaced.
    model = torchvision.models.resnet18()
    model.fc = nn.Linear(512, 3)
    report = initialize(model, [labelled_images(24, 3)], generator=of_timm, num_candidates=1, refining_steps=0)
    assert "generated_0" in [c.name for c in report.candidates]


def test_a_head_of_several_layers_is_solved_at_its_last(loader):
    model = torchvision.models.mobilenet_v3_small(num_classes=3)
    before = copied(model.state_dict())
    assert initialize(model, loader, head="solve").chosen.startswith("own_body")
    assert torch.equal(model.classifier[0].weight, before["classifier.0.weight"])
    assert not torch.equal(model.classifier[3].weight, before["classifier.3.weight"])


REFUSED = {
    "detection": (lambda: torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None), "detects"),
    "segmentation": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None),
        "labels pixels",
    ),
    "video": (lambda: torchvision.models.video.r3d_18(), "videos"),
    "no classes": (lambda: new_model(classes=0), "num_classes >= 2"),
    "one class": (lambda: new_model(classes=1), "num_classes >= 2"),
    "made for inference": (lambda: torch.inference_mode()(new_model)(), "outside"),
    "several heads": (lambda: timm.create_model("repvit_m0_9", num_classes=3), "no linear classifier"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "no shape yet"),
    "no values": (lambda: new_model().to("meta"), "meta device"),
    "tied head": (lambda: TiedHead(), "classifier of TiedHead, fc, shares its weights with mix"),
    "wrapped layer": (
        lambda: wrapped_for_checkpointing(),
        r"layer1\.0\.conv2\._checkpoint_wrapped_module\.weight is a parameter of ResNet.*after initialize",
    ),
    "incomplete state": (lambda: incomplete_state(), r"1\.0\.conv1\.weight is a parameter .* hooks"),
    "feature pyramid": (lambda: timm.create_model("test_resnet", features_only=True), "no linear classifier"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_with_a_pointer_before_a_batch_is_read(case):
    make, words = REFUSED[case]

    def never():
        raise AssertionError("a batch was read")
        yield

    with pytest.raises(ModelError, match=words):
        initialize(make(), never())


class Ending(nn.Module):
    """In layers that are named after what is in front of them."""

    def __init__(self, **layers):
        super().__init__()
        self.body = new_model(classes=0)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.fc(self.body(x))


@pytest.mark.parametrize(
    "make", [lambda: Ending(fc=nn.Linear(96, 3), tail=nn.Identity()), lambda: nn.Sequential(new_model(), nn.Identity())]
)
def test_a_layer_that_does_nothing_behind_the_head_is_looked_through(make, loader):
    model = make()
    head = model.fc if isinstance(model, Ending) else model[0].fc
    before = head.weight.detach().clone()
    assert initialize(model, loader, generator=None).chosen == "own_body"
    assert not torch.equal(head.weight, before)


def test_the_layer_that_was_taken_for_the_head_is_named(loader):
    """It is the last one that was made, and not used."""
    with pytest.raises(ModelError, match=r"gives \[2, 3\] for two images, expected logits \[2, 8\].*projection"):
        initialize(Ending(fc=nn.Linear(96, 3), projection=nn.Linear(96, 8)), loader)


def test_a_model_that_cannot_be_copied_is_refused(loader):
    with pytest.raises(ModelError, match=r"cannot be copied.*prune"):
        initialize(uncopyable(), loader)


class WithLogits(nn.Module):
    """As Hugging Face's classifiers answer."""

    def __init__(self):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, pixel_values):
        return {"logits": self.classifier(self.conv(pixel_values).mean((2, 3)))}


def test_a_model_that_gives_no_plain_logits_is_refused(loader):
    model = WithLogits()
    before = copied(model.state_dict())
    with pytest.raises(ModelError, match=r"gives dict for two images, expected logits \[2, 3\]"):
        initialize(model, loader)
    assert same(model.state_dict(), before)


def test_models_of_transformers_are_refused_with_a_pointer(loader):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    with pytest.raises(ModelError, match=r"Hugging Face transformers.*timm\.create_model"):
        initialize(transformers.ResNetForImageClassification(config), loader)


@pytest.fixture
def users_defaults():
    """A default device that computes nothing, in place of a GPU."""
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def test_the_users_default_device_and_dtype_are_kept_and_change_nothing(loader, bundle, expected, users_defaults):
    with torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        model = new_model()
        torch.set_default_dtype(torch.float64)
        batches = list(loader)
    initialize(model, batches, generator=bundle, num_candidates=1)
    assert torch.zeros(1).is_meta
    assert torch.zeros(1).dtype == torch.float64
    assert same(model.state_dict(), expected)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_batchnorm_over_all_processes_is_local_in_the_copy(dimensions, process_group, loader):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(WithAuxiliaryHead())
    if dimensions == 2:
        model.auxiliary[0] = nn.Identity()
    initialize(model, loader, generator=None, head="solve")
    assert isinstance(model.norm, nn.SyncBatchNorm)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in working_copy(model).modules())


def test_timms_batchnorm_over_all_processes_computes_what_it_did_in_the_copy():
    plain = timm.create_model("test_byobnet", num_classes=3)
    synchronised = working_copy(timm.layers.convert_sync_batchnorm(copy.deepcopy(plain)))
    images = labelled_images(8, 3)[0]
    assert torch.equal(working_copy(plain).eval()(images), synchronised.eval()(images))


def wrapped_for_checkpointing():
    model = new_model()
    model.layer1[0].conv2 = checkpoint_wrapper(model.layer1[0].conv2)
    return model


def incomplete_state():
    """Of a user who keeps frozen weights out of checkpoints."""
    model = new_model()
    model.register_state_dict_post_hook(lambda module, state, *_: state.__delitem__("layer1.0.conv1.weight"))
    return model


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.fc.weight = self.mix.weight

    def forward(self, x):
        return self.fc(self.mix(self.conv(x).mean((2, 3))).relu())


def uncopyable():
    model = new_model()
    prune.l1_unstructured(model.layer1[0].conv1, "weight", 0.5)
    return model


class WithAuxiliaryHead(nn.Module):
    """As Inception's: the second head is run in training alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.auxiliary = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.fc = nn.Linear(8, 3)
        for norm in (self.norm, self.auxiliary[0]):  # as if pretrained
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return (self.fc(x), self.auxiliary(x)) if self.training else self.fc(x)


def test_a_head_for_training_alone_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("d2nwg_init.refine.FIRST", 0.0)
    torch.manual_seed(0)
    model = WithAuxiliaryHead()
    before = copied(model.state_dict())
    images, labels = labelled_images(90, 3)
    images += 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    report = initialize(model, [(images, labels)], generator=None, head="solve", refining_steps=6)
    assert report.refinement.kept
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {"conv.weight", "norm.running_mean", "fc.weight"} <= changed
    assert not any(k.startswith("auxiliary.") for k in changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_a_plain_head_is_taken(dtype, loader):
    with torch.autocast("cpu", dtype):
        assert initialize(new_model(), loader, generator=None, head="solve").chosen != "as_passed"


class Autocasting(nn.Module):
    """Computes in bfloat16 by itself, and gives logits of `dtype`."""

    def __init__(self, model, dtype=torch.bfloat16):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x).to(self.dtype)


class AutocastingConvolutions(Autocasting):
    """Its map of classes is pooled in float32."""

    def __init__(self):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 24, 5, stride=2), nn.ReLU(), nn.Conv2d(24, 3, 1), nn.ReLU())
        super().__init__(nn.Sequential(*layers), torch.float32)

    def forward(self, x):
        return super().forward(x).mean((2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Autocasting(new_model()),
        lambda: Autocasting(new_model("test_vit", img_size=32), torch.float32),  # float32 goes into its head
        AutocastingConvolutions,
    ],
    ids=["resnet", "vit", "convolution"],
)
def test_a_model_that_opens_autocast_itself_is_taken(make, loader):
    model = make()
    report = initialize(model, loader, generator=None, head="solve", refining_steps=2)
    assert report.refinement is not None
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        assert (model.eval()(images).argmax(1) == labels).float().mean() > 0.9


def test_what_an_autocast_model_does_to_its_logits_is_seen(loader):
    class Scaled(Autocasting):
        def forward(self, x):
            return 1.1 * super().forward(x)

    with pytest.raises(ModelError, match="something is done to them"):
        initialize(Scaled(new_model()), loader)


@pytest.mark.parametrize(("in_chans", "size"), [(1, 32), (4, 32), (6, 48)])
def test_a_loader_of_the_models_channels_is_taken_and_no_other(in_chans, size):
    model = timm.create_model("test_resnet", num_classes=3, in_chans=in_chans)
    images, labels = labelled_images(24, 3, size=size)
    report = initialize(model, [(images.mean(1, keepdim=True).repeat(1, in_chans, 1, 1), labels)])
    assert report.image_shape == (in_chans, size, size)
    with pytest.raises(DataError, match=f"takes {in_chans}"):
        initialize(model, [(images, labels)])
