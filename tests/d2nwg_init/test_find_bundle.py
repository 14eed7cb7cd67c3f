import pytest
import timm

import d2nwg_init
from d2nwg_init import bundles as hook_bundles
from d2nwg_init.bundles import find_bundle
from pretrained_generators import bundle as bundles
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import SIZE, random_generator, save_random_bundle
from zoo_builder.backbones import BackboneSpec
from zoo_builder.errors import BundleError


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """Two embedded bundles, of two architectures."""
    save_random_bundle(tmp_path / "a-vit", name="a-vit", generator=random_generator("test_vit"))
    save_random_bundle(tmp_path / "b-resnet", name="b-resnet")
    monkeypatch.setattr(bundles, "EMBEDDED", tmp_path)


@pytest.mark.parametrize(("model", "name"), [("test_vit", "a-vit"), ("test_resnet", "b-resnet")])
def test_auto_takes_the_bundle_whose_parameters_fit(embedded, model, name):
    found, reason = find_bundle(BackboneSpec(model, img_size=SIZE).create(num_classes=7), "auto")
    assert found.config.name == name
    assert "match" in reason


def test_auto_tells_what_is_covered_where_nothing_fits(embedded):
    found, reason = find_bundle(new_model("lcnet_050"), "auto")
    assert found is None
    assert "test_vit" in reason
    assert "test_resnet" in reason


def test_auto_takes_a_bundle_for_a_stem_of_other_channels(embedded):
    model = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    assert find_bundle(model, "auto")[0].config.name == "b-resnet"


def test_no_body_is_laid_out_whose_shapes_the_model_lacks(embedded, monkeypatch):
    laid_out, load = [], hook_bundles.load_bundle
    monkeypatch.setattr(hook_bundles, "load_bundle", lambda name, model: laid_out.append(name) or load(name, model))
    for model in ("lcnet_050", "test_resnet"):
        find_bundle(new_model(model), "auto")
    assert laid_out == ["b-resnet"]


def test_bundle_is_found_by_its_name(embedded):
    assert find_bundle(new_model(), "b-resnet")[0].config.name == "b-resnet"
    assert [g.name for g in d2nwg_init.list_generators() if g.where == "embedded"] == ["a-vit", "b-resnet"]


def test_misfit_names_both_architectures_and_the_first_difference(embedded):
    with pytest.raises(
        BundleError, match=r"'b-resnet'.*test_resnet.*VisionTransformer.*None in the bundle|in the model"
    ):
        find_bundle(new_model("test_vit"), "b-resnet")


def test_misfit_of_a_single_shape_is_found(bundle):
    import torch

    model = new_model()
    stem = model.conv1[0]
    stem.weight = torch.nn.Parameter(stem.weight.detach().repeat(1, 2, 1, 1))
    with pytest.raises(BundleError, match=r"conv1\.0\.weight is \(16, 6, 3, 3\) in the model and \(16, 3, 3, 3\)"):
        find_bundle(model, bundle)


def test_number_of_classes_plays_no_part(bundle):
    assert find_bundle(new_model(classes=2), bundle)[0] is bundle
    assert find_bundle(new_model(classes=50), bundle)[0] is bundle
