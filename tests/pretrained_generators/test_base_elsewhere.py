"""A bundle that leaves its base out takes it from the user's model, or says what to do."""

import pytest
import torch

import d2nwg_init
from d2nwg_init.bundles import find_bundle
from pretrained_generators import bundle as bundles
from pretrained_generators.base_elsewhere import body_sha256
from pretrained_generators.bundle import load_bundle
from pretrained_generators.training.zoo_data import load_bundle_beside
from tests.d2nwg_init.conftest import loader, new_model  # noqa: F401
from tests.pretrained_generators.small import random_generator, same, save_random_bundle, seeded, small_zoo
from zoo_builder.backbones import body_state
from zoo_builder.errors import BundleError

SOURCE = "timm.create_model('test_resnet', pretrained=True)"


@pytest.fixture(scope="module")
def generator():
    """Its base in half precision, as training leaves it."""
    generator = random_generator()
    with torch.no_grad():
        for tensor in generator.base.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return generator


@pytest.fixture(scope="module")
def path(generator, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "without-base"
    save_random_bundle(path, generator=generator, base_source=SOURCE)
    return path


def with_base(generator, change=None):
    """A model whose body is the generator's base, and whose head is its own."""
    model = new_model(classes=3)
    model.load_state_dict(generator.base.state_dict(), strict=False)
    with torch.no_grad():
        for tensor in body_state(model).values():
            if change and tensor.is_floating_point():
                tensor.copy_(change(tensor))
    return model


def test_the_base_is_not_in_the_file(path, generator, tmp_path):
    base = sum(2 * p.numel() for p in generator.base.parameters())
    save_random_bundle(tmp_path, generator=generator)
    whole = (tmp_path / "generator.safetensors").stat().st_size
    assert (path / "generator.safetensors").stat().st_size < whole - base


def test_a_zoo_has_the_base_of_its_bundles(tmp_path):
    zoo, generator = small_zoo(tmp_path), random_generator()
    generator.base.load_state_dict(
        {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in zoo.base().items()}
    )  # as training leaves it
    save_random_bundle(tmp_path / "bundle", generator=generator, base_source=SOURCE)
    loaded = load_bundle_beside(zoo, tmp_path / "bundle")
    assert body_sha256(loaded.generator.base.state_dict()) == body_sha256(zoo.base())
    with pytest.raises(BundleError, match="does not hold the base"):
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_users_body_is_the_base(path, generator, dtype):
    loaded = load_bundle(path, base=with_base(generator).to(dtype))
    assert same(loaded.generator.state_dict(), generator.state_dict())


def test_a_checkpoint_of_full_precision_is_the_same_base(path, generator):
    """Its half-precision values are, and they are what the bundle works with."""
    nudged = with_base(generator, lambda t: torch.nextafter(t, torch.tensor(torch.inf)))
    assert not same(body_state(nudged), generator.base.state_dict())
    assert same(load_bundle(path, base=nudged).generator.state_dict(), generator.state_dict())


def test_another_body_is_refused_with_what_to_do(path, generator):
    for base in (None, new_model(seed=5), with_base(generator, lambda t: 1.01 * t), new_model("test_vit")):
        with pytest.raises(BundleError, match=r"does not hold the base.*Get that base \(timm\.create_model"):
            load_bundle(path, base=base)


def test_buffers_are_part_of_the_base(path, generator):
    model = with_base(generator)
    next(b for n, b in model.named_buffers() if n.endswith("running_mean")).add_(1)
    with pytest.raises(BundleError, match="is another"):
        load_bundle(path, base=model)


def test_initialize_takes_the_model_as_the_base(path, generator, loader):  # noqa: F811
    model = with_base(generator)
    report = d2nwg_init.initialize(model, loader, generator=path, num_candidates=1)
    assert report.bundle == "tiny-random"
    assert {c.kind for c in report.candidates} >= {"base", "generated"}
    with pytest.raises(BundleError, match="does not hold the base"):
        d2nwg_init.initialize(new_model(seed=5), loader, generator=path)


def test_auto_says_which_base_is_missing(path, generator, monkeypatch):
    monkeypatch.setattr(bundles, "EMBEDDED", path.parent)
    assert find_bundle(with_base(generator), "auto")[0].config.base_elsewhere.source == SOURCE
    found, reason = find_bundle(new_model(seed=5), "auto")
    assert found is None
    assert SOURCE in reason


def test_a_base_in_full_precision_is_not_left_out(tmp_path):
    with pytest.raises(BundleError, match="half precision"):
        save_random_bundle(tmp_path, base_source=SOURCE)


def test_the_hash_is_the_documented_one():
    import hashlib

    import numpy as np

    weight, count = torch.randn(2, 3, generator=seeded(0)), torch.tensor(7)
    text = b"a.weight\x002,3\x00" + weight.numpy().astype("<f2").tobytes() + b"b\x00\x00" + np.float16(1).tobytes()
    state = {"b": torch.tensor(1.0), "num_batches_tracked": count, "a.weight": weight}
    assert body_sha256(state) == hashlib.sha256(text).hexdigest()
