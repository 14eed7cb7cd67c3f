"""What report.save() writes, read by the real timm and torchvision."""

import dataclasses
import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file

from d2nwg_init import initialize, pretrained
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import labelled_images, same
from zoo_builder.errors import ModelError


@pytest.fixture
def saved(model, loader, bundle, tmp_path):
    initialize(model, loader, generator=bundle, num_candidates=1).save(tmp_path / "new" / "saved")
    return tmp_path / "new" / "saved"


def test_timm_loads_the_folder_exactly_head_included(saved, model):
    again = timm.create_model(f"local-dir:{saved}", pretrained=True)
    assert same(again.state_dict(), model.state_dict())
    assert again.num_classes == 3


def test_a_layer_that_the_user_put_in_the_heads_place_is_loaded_too(model, loader, tmp_path):
    model = new_model(classes=10)
    model.fc = torch.nn.Linear(96, 3)
    initialize(model, loader, generator=None).save(tmp_path)
    for args in ({}, {"num_classes": 3}):
        assert same(
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **args).state_dict(), model.state_dict()
        )


def test_a_head_that_timm_would_not_build_is_told(model, loader, tmp_path):
    model.fc = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(96, 3))
    report = initialize(model, loader, generator=None)
    with pytest.raises(ModelError, match="several layers"):
        report.save(tmp_path)


def test_timm_loads_the_file_as_a_checkpoint(saved, model):
    again = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(saved / "model.safetensors"))
    assert same(again.state_dict(), model.state_dict())


def test_the_report_is_beside_it(saved):
    assert json.loads((saved / "report.json").read_text())["bundle"] == "tiny-random"
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors", "report.html", "report.json"]


def test_a_page_that_cannot_be_drawn_does_not_cost_the_weights(model, loader, tmp_path, monkeypatch):
    report = initialize(model, loader, generator=None)
    monkeypatch.setattr("d2nwg_init.report.render_page", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(tmp_path)
    assert same(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict(), model.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "size", "args"), [("test_resnet", 32, {"in_chans": 1}), ("test_vit", 32, {})])
def test_channels_and_image_size_are_kept(name, size, args, layout, tmp_path):
    if name == "test_vit":
        args = {"img_size": size}
    model = timm.create_model(name, num_classes=3, **args).to(memory_format=layout)
    images, labels = labelled_images(12, 3, size=size)
    images = images[:, : args.get("in_chans", 3)]
    initialize(model, [(images, labels)], generator=None).save(tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(again.state_dict(), model.state_dict())
    assert timm.data.resolve_model_data_config(again)["input_size"] == images.shape[1:]
    # the same weights in another memory layout are summed in another order
    torch.testing.assert_close(again.eval()(images), model.eval()(images), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("args", [{"output_stride": 8}, {"act_layer": "gelu"}, {"global_pool": "max"}])
def test_arguments_that_the_model_was_made_with_are_kept(args, loader, tmp_path):
    """timm keeps them from 1.0.31 on."""
    model = timm.create_model("test_resnet", num_classes=3, **args)
    initialize(model, loader, generator=None).save(tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    images = loader.dataset.tensors[0]
    torch.testing.assert_close(again.eval()(images), model.eval()(images))


def replaced_activation():
    model = new_model()
    model.act1 = torch.nn.GELU()
    return model


def replaced_norm():
    model = new_model()
    model.bn1 = torch.nn.GroupNorm(4, model.bn1.num_features)
    return model


@pytest.mark.parametrize("make", [replaced_activation, replaced_norm])
def test_a_model_that_timm_would_make_otherwise_is_not_saved(make, saved, loader):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    report = initialize(make(), loader, generator=None)
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match=r"Save model\.state_dict\(\) instead"):
        report.save(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_kept(dtype, loader, tmp_path):
    model = new_model().to(dtype)
    initialize(model, [(x.to(dtype), y) for x, y in loader], generator=None).save(tmp_path)
    assert same(load_file(tmp_path / "model.safetensors"), model.state_dict())


def test_inside_of_a_block_saving_initialises_nothing(model, loader, bundle, tmp_path):
    report = initialize(model, loader, generator=bundle, num_candidates=1)
    with pretrained(loader, generator=bundle, num_candidates=1, refining_steps=0) as reports:
        timm.create_model("test_resnet", pretrained=True, num_classes=3)
        report.save(tmp_path)
    assert len(reports) == 1


def test_a_model_of_torchvision_is_its_state_dict(tmp_path, loader):
    model = torchvision.models.resnet18(num_classes=3)
    initialize(model, loader).save(tmp_path)
    again = torchvision.models.resnet18(num_classes=3)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert same(again.state_dict(), model.state_dict())
    assert not (tmp_path / "config.json").exists()


class Own(torch.nn.Module):
    """A user's class around a model of timm."""

    def __init__(self):
        super().__init__()
        self.model = new_model()

    def forward(self, x):
        return self.model(x)


def test_a_class_of_ones_own_with_timms_config_is_its_state_dict(tmp_path, loader):
    model = Own()
    model.pretrained_cfg = model.model.pretrained_cfg
    initialize(model, loader, generator=None, refining_steps=0).save(tmp_path)
    assert same(load_file(tmp_path / "model.safetensors"), model.state_dict())


class WithExtraState(Own):
    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


def test_state_that_safetensors_cannot_hold_is_told_before_anything_is_written(tmp_path, loader):
    report = initialize(WithExtraState(), loader, generator=None, refining_steps=0)
    with pytest.raises(ModelError, match=r"'_extra_state': 'dict'.*Save it as the library"):
        report.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_saving_again_replaces_and_leaves_other_files(saved, model, loader):
    (saved / "notes.txt").write_text("mine")
    report = initialize(model, loader, generator=None)
    with torch.no_grad():
        model.fc.weight.add_(1)  # what is saved is the model as it is now
    report.save(saved)
    assert same(timm.create_model(f"local-dir:{saved}", pretrained=True).state_dict(), model.state_dict())
    assert (saved / "notes.txt").read_text() == "mine"
    assert len(list(saved.iterdir())) == 5


def test_an_interrupted_save_leaves_the_old_weights(saved, loader, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()
    report = initialize(new_model(seed=1), loader, generator=None)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("d2nwg_init.saved_model.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.save(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert not [p for p in saved.iterdir() if p.name.startswith(".")]


def test_a_report_without_its_model_says_so(model, loader, tmp_path):
    report = dataclasses.replace(initialize(model, loader, generator=None), undo=None)
    for use in (report.revert, lambda: report.save(tmp_path)):
        with pytest.raises(ModelError, match="let go of its model"):
            use()
