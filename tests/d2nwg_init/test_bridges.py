"""The drop-ins for pretrained=True, by the real timm and torchvision; nothing is downloaded."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import _builder, _factory, save_for_hf
from torch.utils.data import DataLoader, Subset, TensorDataset

import d2nwg_init
from d2nwg_init import bundles, initialize
from d2nwg_init.bridges.dataset_classes import num_classes_of
from d2nwg_init.bridges.timm import NAMED
from pretrained_generators import bundle as bundle_module
from pretrained_generators.bundle import load_bundle
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, same
from zoo_builder.errors import DataError, ModelError


class WithClasses(TensorDataset):
    classes = ("ant", "bee", "cat")


@pytest.fixture
def loader():
    data = Subset(WithClasses(*labelled_images(48, 3)), range(48))
    return DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def init(bundle):
    return {"generator": bundle, "num_candidates": 1, "head": "solve"}


def test_create_model_is_timms_and_initialize(loader, init):
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=3, drop_rate=0.2)
    initialize(plain, loader, **init)
    torch.manual_seed(0)
    model = d2nwg_init.create_model("test_resnet", loader, init=init, drop_rate=0.2)
    assert same(model.state_dict(), plain.state_dict())
    assert model.drop_rate == 0.2
    assert model.init_report.bundle == "tiny-random"
    copy.deepcopy(model)


def test_the_number_of_classes_is_the_datasets_or_is_asked_for(loader, init):
    assert d2nwg_init.create_model("test_resnet", loader, init=init, num_classes=5).num_classes == 5
    silent = DataLoader(TensorDataset(*labelled_images(24, 3)), 8)
    with pytest.raises(DataError, match="Pass num_classes"):
        d2nwg_init.create_model("test_resnet", silent, init=init)


def test_classes_of_a_hugging_face_dataset_are_found():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
    assert num_classes_of(DataLoader(data)) == 2


def test_of_several_columns_of_classes_that_of_the_labels_counts():
    datasets = pytest.importorskip("datasets")
    few, many = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["a", "b", "c"])

    def classes(**columns):
        rows = {name: [0, 1] for name in columns}
        return num_classes_of(DataLoader(datasets.Dataset.from_dict(rows, features=datasets.Features(columns))))

    assert classes(sex=few, label=many) == 3
    assert classes(coarse_label=few, fine_label=many) == 3
    assert classes(sex=few) == 2  # the only one
    for unclear in ({"sex": few, "country": many}, {"sex": few, "label": datasets.Value("int64")}):
        with pytest.raises(DataError, match="Pass num_classes"):
            classes(**unclear)


def test_datasets_that_mean_something_else_by_the_same_names_are_asked_for_the_number():
    data = TensorDataset(*labelled_images(24, 3))
    data.classes, data.features = 3, data.tensors[0]
    with pytest.raises(DataError, match="Pass num_classes"):
        d2nwg_init.create_model("test_resnet", DataLoader(data, 8))


@pytest.mark.parametrize("args", [{}, {"in_chans": 1}])
def test_timms_own_door_gives_equal_bits_head_included(args, loader, init):
    if args:
        init = {"generator": None, "head": "solve"}
        images, labels = loader.dataset.dataset.tensors
        loader = DataLoader(WithClasses(images[:, :1], labels), 16)
    overlay = d2nwg_init.pretrained_cfg("test_resnet", loader, init=init, **args)
    model = timm.create_model("test_resnet", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay, **args)
    assert same(model.state_dict(), overlay["state_dict"])
    assert model.pretrained_cfg["input_size"] == (args.get("in_chans", 3), 32, 32)
    assert not torch.equal(model.fc.weight, timm.create_model("test_resnet", num_classes=3, **args).fc.weight)


def test_the_block_loads_an_embedded_bundle_once_and_tells_why_it_was_taken(loader, bundle_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(bundle_module, "EMBEDDED", bundle_path.parent)
    monkeypatch.setattr(bundles, "load_bundle", lambda *args: loaded.append(args[0]) or load_bundle(*args))
    with d2nwg_init.pretrained(loader, num_candidates=1) as reports:
        timm.create_model("test_resnet", pretrained=True, num_classes=3)
    assert loaded == ["tiny-random"]
    assert reports[0].bundle == "tiny-random"
    assert "match" in reports[0].reason
    reports[0].revert()


def test_inside_the_block_pretrained_means_initialised_whichever_way_create_model_was_imported(loader, init):
    from timm import create_model

    init["select"] = False
    with d2nwg_init.pretrained(loader, **init) as reports:
        models = [f("test_resnet", pretrained=True, num_classes=3) for f in (timm.create_model, create_model)]
        plain = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    assert len(reports) == 2
    assert {r.bundle for r in reports} == {"tiny-random"}
    expected = new_model()
    assert initialize(expected, loader, **init).chosen == "generated_0"
    assert same(models[1].state_dict(), expected.state_dict())
    assert same(models[0].state_dict(), expected.state_dict())
    assert not torch.equal(plain.conv1[0].weight, expected.conv1[0].weight)


def test_after_a_block_that_fails_timm_is_as_it_was(loader, init):
    before = _builder.load_pretrained
    with pytest.raises(RuntimeError, match="Unknown model"), d2nwg_init.pretrained(loader, **init):
        timm.create_model("no_such_model", pretrained=True)
    assert _builder.load_pretrained is before


def test_an_uncovered_model_begins_with_timms_pretrained_weights(loader, tmp_path):
    theirs = new_model("lcnet_050", classes=10, seed=5)
    save_file(copied(theirs.state_dict()), tmp_path / "theirs.safetensors")
    overlay = {"file": str(tmp_path / "theirs.safetensors"), "num_classes": 10}
    with d2nwg_init.pretrained(loader, head="solve") as reports:
        model = timm.create_model("lcnet_050", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    assert reports[0].bundle is None
    assert torch.equal(model.conv_stem.weight, theirs.conv_stem.weight)
    assert reports[0].chosen.startswith("own_body")


@pytest.mark.parametrize("how", ["local-dir", "hf-hub", "hf_hub_id", "file", "url", "state_dict"])
def test_weights_that_the_user_names_are_loaded_and_compete_though_a_bundle_covers_the_model(
    how, loader, tmp_path, init, monkeypatch
):
    theirs = new_model(seed=5)
    save_for_hf(theirs, tmp_path, model_args={"num_classes": 3}, safe_serialization=True)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *args, **kwargs: copied(theirs.state_dict()))
    name = f"local-dir:{tmp_path}" if how == "local-dir" else "test_resnet"
    overlay = {
        "local-dir": {},
        "hf-hub": {"source": "hf-hub", "hf_hub_id": "timm/test_resnet.r160_in1k"},  # as hf-hub: in the name says
        "hf_hub_id": {"hf_hub_id": "me/mine"},
        "file": {"file": str(tmp_path / "model.pt")},
        "url": {"url": (tmp_path / "model.pt").as_uri(), "hf_hub_id": None},
        "state_dict": {"state_dict": copied(theirs.state_dict())},
    }[how]
    with d2nwg_init.pretrained(loader, **init) as reports:
        options = {"pretrained": True, "num_classes": 3}
        timm.create_model(name, cache_dir=tmp_path, pretrained_cfg_overlay={**overlay, "num_classes": 3}, **options)
        timm.create_model("test_resnet", **options)
    named, other = reports
    assert same(named.undo.state, theirs.state_dict())
    assert {"as_passed", "own_body", "base"} <= {c.name for c in named.candidates}
    assert named.bundle == "tiny-random"
    assert NAMED in named.notes
    assert NAMED not in other.notes
    assert not same(other.undo.state, theirs.state_dict())


def test_a_checkpoint_that_timm_loads_last_is_initialised_from_and_competes(loader, tmp_path, init):
    theirs = new_model(seed=5)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    options = {"num_classes": 3, "checkpoint_path": str(tmp_path / "model.pt")}
    before = _factory.load_checkpoint
    with d2nwg_init.pretrained(loader, **init) as reports:
        timm.create_model("test_resnet", pretrained=True, num_classes=3)
        model = timm.create_model("test_resnet", pretrained=True, **options)
        plain = timm.create_model("test_resnet", **options)
    assert len(reports) == 2
    assert NAMED in reports[1].notes
    assert same(reports[1].undo.state, theirs.state_dict())
    expected = new_model(seed=5)
    assert initialize(expected, loader, **init).chosen == reports[1].chosen
    assert same(model.state_dict(), expected.state_dict())
    assert same(plain.state_dict(), theirs.state_dict())
    assert _factory.load_checkpoint is before


def test_a_model_whose_checkpoint_cannot_be_loaded_has_no_report(loader, tmp_path, init):
    torch.save(new_model("test_vit").state_dict(), tmp_path / "other.pt")
    with d2nwg_init.pretrained(loader, **init) as reports:
        timm.create_model("test_resnet", pretrained=True, num_classes=3)
        with pytest.raises(RuntimeError, match="Missing key"):
            timm.create_model("test_resnet", pretrained=True, num_classes=3, checkpoint_path=str(tmp_path / "other.pt"))
    assert len(reports) == 1


def test_inside_the_block_a_body_without_a_head_is_timms_own(loader, tmp_path, init):
    theirs = new_model(classes=0, seed=5)
    save_file(copied(theirs.state_dict()), tmp_path / "theirs.safetensors")
    overlay = {"file": str(tmp_path / "theirs.safetensors"), "num_classes": 0}
    with d2nwg_init.pretrained(loader, **init) as reports:
        timm.create_model("test_resnet", pretrained=True, num_classes=3)
        body = timm.create_model("test_resnet", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    assert len(reports) == 1
    assert same(body.state_dict(), theirs.state_dict())


def test_inside_the_block_features_only_is_timms_own(loader, tmp_path, init):
    theirs = new_model(seed=5)
    save_file(copied(theirs.state_dict()), tmp_path / "theirs.safetensors")
    options = {
        "pretrained": True,
        "features_only": True,
        "pretrained_cfg_overlay": {"file": str(tmp_path / "theirs.safetensors"), "num_classes": 3},
    }
    with pytest.warns(UserWarning, match="nothing"), d2nwg_init.pretrained(loader, **init) as reports:
        body = timm.create_model("test_resnet", **options)
    assert reports == []
    assert torch.equal(body["conv1"][0].weight, theirs.conv1[0].weight)
    assert same(body.state_dict(), timm.create_model("test_resnet", **options).state_dict())


def test_of_blocks_in_each_other_the_innermost_initialises(loader, init):
    with d2nwg_init.pretrained(loader, **init) as outer:
        with d2nwg_init.pretrained(loader, **init, seed=7) as inner:
            timm.create_model("test_resnet", pretrained=True, num_classes=3)
        assert (len(outer), [r.seed for r in inner]) == (0, [7])
        timm.create_model("test_resnet", pretrained=True, num_classes=3)
    assert ([r.seed for r in outer], len(inner)) == ([0], 1)


def test_blocks_that_overlap_leave_timm_as_it_was(loader, init):
    before = _builder.load_pretrained
    one, two = d2nwg_init.pretrained(loader, **init), d2nwg_init.pretrained(loader, **init, seed=7)
    first, second = one.__enter__(), two.__enter__()
    timm.create_model("test_resnet", pretrained=True, num_classes=3)
    with pytest.warns(UserWarning, match="nothing was initialised"):
        one.__exit__(None, None, None)
    timm.create_model("test_resnet", pretrained=True, num_classes=3)
    two.__exit__(None, None, None)
    assert (len(first), len(second)) == (0, 2)
    assert _builder.load_pretrained is before


def test_blocks_of_threads_each_have_their_own_models(loader, init):
    before = _builder.load_pretrained
    together = threading.Barrier(2)

    def make(seed, stays):
        with d2nwg_init.pretrained(list(loader), **init, seed=seed) as reports:
            together.wait(120)
            timm.create_model("test_resnet", pretrained=True, num_classes=3)
            if stays:
                ended.wait(120)
        ended.set()
        return [r.seed for r in reports]

    ended = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        seeds = list(pool.map(make, (3, 4), (False, True)))
    assert seeds == [[3], [4]]
    assert _builder.load_pretrained is before


def test_a_block_without_a_pretrained_model_is_told(loader, init):
    with pytest.warns(UserWarning, match="nothing was initialised"), d2nwg_init.pretrained(loader, **init):
        timm.create_model("test_resnet", num_classes=3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "mnasnet0_5", "squeezenet1_1"])
def test_torchvision_takes_our_weights_head_included(name, loader):
    weights = d2nwg_init.weights(name, loader)
    again = pickle.loads(pickle.dumps(weights))
    model = torchvision.models.get_model(name, weights=again)
    assert same(model.state_dict(), weights.get_state_dict())
    assert (again.init_report, again.meta) == (weights.init_report, weights.meta)
    assert model.eval()(loader.dataset.dataset.tensors[0]).shape == (48, 3)
    assert weights.init_report.bundle is None


@pytest.mark.parametrize("shape", [(32, 32), (32, 48)])
def test_the_preset_of_our_weights_makes_images_as_large_as_those_read(shape):
    images, labels = labelled_images(12, 3)
    images = torch.nn.functional.interpolate(images, shape)
    weights = d2nwg_init.weights("resnet18", [(images, labels)], num_classes=3)
    picture = torchvision.transforms.functional.to_pil_image(torch.rand(3, 100, 80))
    assert weights.transforms()(picture).shape == (3, *shape)
    assert weights.transforms(crop_size=20)(picture).shape == (3, 20, 20)


def test_a_builder_that_takes_pretrained_images_for_granted_gets_weights_for_them(loader):
    """googlenet's gives its images another normalisation where it is given weights."""
    weights = d2nwg_init.weights("googlenet", loader, init_weights=False)
    model = torchvision.models.get_model("googlenet", weights=weights).eval()
    images, labels = loader.dataset.dataset.tensors
    assert (model(images).argmax(1) == labels).float().mean() > 0.9


def test_torchvisions_vit_keeps_its_image_size():
    images, labels = labelled_images(12, 3)
    weights = d2nwg_init.weights("vit_b_32", [(images, labels)], num_classes=3, image_size=32)
    model = torchvision.models.vit_b_32(weights=weights)
    assert same(model.state_dict(), weights.get_state_dict())


MISTAKEN = {
    "swapped, for timm": (lambda loader: d2nwg_init.create_model(loader, "test_resnet"), "name comes first"),
    "swapped, for timm's own door": (lambda loader: d2nwg_init.pretrained_cfg(loader, "test_resnet"), "comes first"),
    "swapped, for torchvision": (lambda loader: d2nwg_init.weights(loader, "resnet18"), "got DataLoader.*comes first"),
    "a builder": (lambda loader: d2nwg_init.weights(torchvision.models.resnet18, loader), r"function.*Pass 'resnet18'"),
    "a model": (lambda loader: d2nwg_init.create_model(new_model(), loader), r"got ResNet.*initialize\(\)"),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_what_is_no_name_is_told(case, loader):
    call, words = MISTAKEN[case]
    with pytest.raises(ModelError, match=f"(?s)Expected a model's name.*{words}"):
        call(loader)


def test_an_unknown_model_of_torchvision_is_named(loader):
    with pytest.raises(ModelError, match="resnet18"):
        d2nwg_init.weights("resnet-18", loader)
