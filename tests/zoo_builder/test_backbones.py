"""Bodies of timm and torchvision: made headless, checked, and filled."""

import dataclasses

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from tests.zoo_builder.synthetic import random_body, same
from zoo_builder.backbones import (
    BackboneSpec,
    body_state,
    check_body,
    extract_features,
    load_body,
    predict,
    prepare_images,
    set_head,
)
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError

BODIES = {
    "test_resnet": 96,
    "test_vit": 64,
    "mobilenetv3_small_050": 1024,
    "efficientvit_m0": 192,
    "torchvision:squeezenet1_1": 512,
    "torchvision:mobilenet_v3_small": 1024,
    "torchvision:shufflenet_v2_x0_5": 1024,
}


def test_every_body_gives_a_vector_an_image():
    for name, width in BODIES.items():
        assert check_body(BackboneSpec(name).create(), 64) == width, name


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"])
def test_a_checkpoint_of_the_whole_model_fills_its_body(name, tmp_path):
    model = torchvision.models.get_model(name.partition(":")[2], weights=None)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    body = BackboneSpec(name).create(tmp_path / "whole.safetensors")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in body.state_dict().items())


def test_a_timm_checkpoint_with_a_head_fills_the_body(tmp_path):
    model = timm.create_model("test_resnet", num_classes=7)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    assert same(BackboneSpec("test_resnet").create(tmp_path / "whole.safetensors").state_dict(), body_state(model))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"other\.safetensors does not fit this model"):
        BackboneSpec("test_resnet").create(tmp_path / "other.safetensors")
    tensors = body_state(random_body()) | {"stray.weight": torch.zeros(1)}
    with pytest.raises(ModelError, match=r"stray\.weight is \(1,\) in the file and None"):
        load_body(random_body(), tensors, "given")


@pytest.mark.parametrize("name", ["test_resnet", "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x0_5"])
def test_heads_have_the_number_of_classes_asked_for(name):
    assert BackboneSpec(name).create(num_classes=7).eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnett18", "timm has no model 'resnett18'; did you mean"),
        ("torchvision:resnett18", "torchvision has no 'resnett18'; did you mean"),
        ("torchvision:fasterrcnn_resnet50_fpn", "does not classify images"),
        ("torchvision:fcn_resnet50", "does not classify images"),
    ],
)
def test_what_is_no_classifier_is_refused(name, words):
    with pytest.raises(ModelError, match=words):
        BackboneSpec(name).create()


def test_a_model_built_for_one_size_is_built_for_the_images():
    spec = BackboneSpec("vit_tiny_patch16_224", img_size=64)
    assert check_body(spec.create(), 64) == 192
    with pytest.raises(ModelError, match="cannot take images of 64x64"):
        check_body(dataclasses.replace(spec, img_size=None).create(), 64)


def test_a_body_of_feature_maps_is_refused():
    with pytest.raises(ModelError, match="expected one vector of features each"):
        check_body(timm.create_model("test_resnet", num_classes=0, global_pool=""), 64)
    with pytest.raises(ModelError, match="gives list"):
        check_body(timm.create_model("test_resnet", features_only=True), 64)


def test_arguments_of_the_factory_reach_it():
    plain, wide = (BackboneSpec("test_resnet", args=a).create() for a in ({}, {"drop_rate": 0.3}))
    assert (plain.drop_rate, wide.drop_rate) == (0.0, 0.3)
    with pytest.raises(ModelError, match="timm cannot make test_resnet"):
        BackboneSpec("test_resnet", args={"no_such_argument": 1}).create()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_images_are_prepared_for_the_stem(channels):
    body = BackboneSpec("test_resnet", in_chans=channels).create()
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    prepared = prepare_images(body, images)
    assert prepared.shape == (4, channels, 32, 32)
    assert body(prepared).shape == (4, 96)
    rgb = prepare_images(BackboneSpec("test_resnet").create(), images)
    want = {1: rgb.mean(1, keepdim=True), 3: rgb, 5: rgb[:, [0, 1, 2, 0, 1]]}[channels]
    torch.testing.assert_close(prepared, want)


def test_torchvision_takes_three_channels_alone():
    with pytest.raises(ModelError, match="takes 3 channels, not 1"):
        BackboneSpec("torchvision:resnet18", in_chans=1).create()


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "vit_b_16", "resnet18", "squeezenet1_1", "maxvit_t"])
def test_a_torchvision_body_is_all_of_the_model_but_its_classifier(name):
    with torch.device("meta"):
        body = BackboneSpec(f"torchvision:{name}").create()
        model = BackboneSpec(f"torchvision:{name}").create(num_classes=3)
    assert body_state(body).keys() == body.state_dict().keys() == body_state(model).keys()


@pytest.mark.parametrize("name", ["efficientvit_m0", "convnext_atto", "test_vit", "repvit_m0_9", "caformer_s18"])
def test_a_timm_body_is_all_of_the_model_but_its_classifier(name):
    body, model = BackboneSpec(name).create(), BackboneSpec(name).create(num_classes=3)
    assert body_state(body).keys() == body.state_dict().keys()
    left_out = model.state_dict().keys() - body.state_dict().keys()
    assert left_out
    assert all("head" in key for key in left_out)
    if name == "efficientvit_m0":  # whose head starts with a BatchNorm that timm's num_classes=0 would drop
        assert body_state(model).keys() == body.state_dict().keys()


def test_the_features_of_a_body_with_two_heads_are_not_those_of_one_of_them():
    body = BackboneSpec("repvit_m0_9").create().eval()
    assert body(torch.zeros(2, 3, 32, 32)).shape == (2, body.num_features)
    assert not any("head_dist" in name for name in body_state(body))


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_second_heads_of_torchvisions_own_weights_are_left_out():
    with torch.device("meta"):
        theirs = torchvision.models.googlenet(init_weights=False).state_dict()
        body = BackboneSpec("torchvision:googlenet").create()
    load_body(body.to_empty(device="cpu"), {k: torch.zeros_like(v, device="cpu") for k, v in theirs.items()}, "theirs")
    assert not any(p.any() for p in body.parameters())


def test_a_model_without_a_head_is_no_classifier():
    with pytest.raises(ModelError, match="no linear classifier"):
        find_classifier(timm.create_model("efficientvit_m0", num_classes=0))


def test_a_convolution_that_is_rectified_and_pooled_becomes_a_linear_head():
    torch.manual_seed(0)
    model = BackboneSpec("torchvision:squeezenet1_1").create(num_classes=5).eval()
    images, others = torch.randn(2, 6, 3, 64, 64)
    weight, bias = torch.randn(5, 512), torch.randn(5)
    set_head(model, weight, bias, images)
    wanted = extract_features(model, others) @ weight.T + bias
    torch.testing.assert_close(predict(model, others).log_softmax(1), wanted.log_softmax(1), rtol=1e-4, atol=1e-4)
