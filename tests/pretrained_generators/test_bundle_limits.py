"""What a config can make its reader do before it is refused is bounded by its file, or by the user's base."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrained_generators.bundle import BODY_OPERATIONS, OPERATIONS, load_bundle
from tests.pretrained_generators.small import random_generator, save_random_bundle
from zoo_builder.backbones import create_backbone
from zoo_builder.errors import BundleError


class Work(TorchDispatchMode):
    """Counts operations, and the bytes of the largest tensor that has memory."""

    operations = bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(out, torch.Tensor) and not out.is_meta:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def backbone(model, **args):
    return lambda g: g.update(backbone={"model": model, "img_size": 32, "args": args})


def part(name, **sizes):
    return lambda g: g[name].update(sizes)


ASKED = {
    "a deep backbone": backbone("test_vit", depth=16384),
    "a backbone with memory": backbone("test_vit", depth=1, embed_dim=4096, num_heads=2, device="cpu"),
    "a backbone that loops over heads": backbone("convit_tiny", num_heads=16384),
    "a backbone that is slow to pass through": lambda g: g.update(backbone={"model": "sequencer2d_s"}, size=1024),
    "images larger than memory": lambda g: g.update(size=1025),
    "a deep diffusion": part("diffusion", depth=10**6),
    "a deep VAE": part("vae", depth=10**6),
    "many blocks": lambda g: g["layout"].update(blocks=[{"name": f"x.{i}", "shape": [2, 2]} for i in range(10_000)]),
    "many reduced blocks": lambda g: g["layout"].update(
        blocks=[{"name": f"x.{i}", "shape": [2, 2], "rank": 1} for i in range(10_000)]
    ),
}


@pytest.fixture(scope="module", params=["whole", "without base"])
def bundle(request, tmp_path_factory):
    """A folder, the model to load it with, and the operations that may be done for it."""
    path, generator = tmp_path_factory.mktemp("bundle"), random_generator()
    generator.base.half().float()
    save_random_bundle(path, generator=generator, base_source="here" if request.param == "without base" else None)
    base = create_backbone("test_resnet")
    base.load_state_dict(generator.base.state_dict())
    operations = BODY_OPERATIONS * len(base.state_dict()) + OPERATIONS * len(generator.state_dict())
    return path, base, operations


def test_a_sound_bundle_is_within_the_bound(bundle):
    path, base, operations = bundle
    with Work() as work:
        load_bundle(path, base)
    assert work.operations < operations


@pytest.mark.parametrize("case", ASKED)
def test_what_a_config_asks_for_is_bounded(bundle, case):
    path, base, operations = bundle
    text = (path / "config.json").read_text()
    config = json.loads(text)
    ASKED[case](config["generator"])
    (path / "config.json").write_text(json.dumps(config))
    try:
        with Work() as work, pytest.raises(BundleError):
            load_bundle(path, base)
    finally:
        (path / "config.json").write_text(text)
    assert work.operations <= operations
    assert work.bytes <= 2 * (path / "generator.safetensors").stat().st_size


def test_loading_holds_one_copy_of_a_tensor_beside_the_file(tmp_path):
    """In float32, of halves: twice the file, and of no tensor more than that at once."""
    generator = random_generator().half().float()
    save_random_bundle(tmp_path, generator=generator)
    with Work() as work:
        load_bundle(tmp_path)
    assert work.bytes <= 2 * (tmp_path / "generator.safetensors").stat().st_size
