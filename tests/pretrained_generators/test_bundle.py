import hashlib
import json
import socket
import struct

import pytest
import torch

from pretrained_generators import bundle as bundles
from pretrained_generators.bundle import TrainedOn, load_bundle
from pretrained_generators.bundle_config import FORMAT, MAX_CONFIG_BYTES
from pretrained_generators.bundle_tensors import MAX_TENSORS
from pretrained_generators.card import write_card
from pretrained_generators.generator import Generator
from pretrained_generators.hub import verify_bundle
from tests.pretrained_generators.small import (
    random_generator,
    rewrite_config,
    same,
    save_random_bundle,
    seeded,
    write_measured_card,
)
from zoo_builder.errors import BundleError


@pytest.fixture
def path(tmp_path):
    save_random_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def sampled(generator):
    return generator.sample_deltas(torch.randn(8, generator=seeded(0)), 1, seed=3, steps=4)[0]


def test_reloaded_bundle_samples_equal_bits(path):
    assert same(sampled(load_bundle(path).generator), sampled(random_generator()))


def test_reloaded_bundle_has_every_tensor(path):
    assert same(load_bundle(path).generator.state_dict(), random_generator().state_dict())


def test_reloaded_base_has_what_no_file_holds(tmp_path):
    """Indices of relative positions, which timm leaves out of a state; in training mode they are looked up."""
    original = random_generator("efficientvit_m0")
    save_random_bundle(tmp_path, generator=original)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = load_bundle(tmp_path).generator
    assert torch.equal(torch.get_rng_state(), before)
    buffers = dict(original.base.named_buffers())
    assert buffers.keys() - original.base.state_dict().keys()
    assert same(dict(loaded.base.named_buffers()), buffers)
    images = torch.randn(4, 3, 64, 64, generator=seeded(0))
    outputs = [generator.base.train()(images) for generator in (original, loaded)]
    assert torch.equal(*outputs)


def test_a_body_with_huge_buffers_beside_its_file_is_refused(tmp_path, monkeypatch):
    save_random_bundle(tmp_path, generator=random_generator("efficientvit_m0"))
    monkeypatch.setattr(bundles, "MAX_UNSAVED_BYTES", 0)
    with pytest.raises(BundleError, match="buffers of"):
        load_bundle(tmp_path)


def test_reloaded_bundle_is_frozen_and_evaluates(path):
    generator = load_bundle(path).generator
    assert not any(p.requires_grad for p in generator.parameters())
    assert not any(m.training for m in generator.modules())


def test_saving_what_was_loaded_gives_equal_files(path, tmp_path):
    loaded = load_bundle(path)
    about = {
        k: getattr(loaded.config, k)
        for k in ("name", "trained_on", "held_out", "base_sha256", "base_pretrained_on", "measured")
    }
    save_random_bundle(tmp_path / "again", generator=loaded.generator, **about)
    for file in ("config.json", "generator.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (path / file).read_bytes()


def test_config_tells_what_was_given(path):
    config = load_bundle(path).config
    assert config.name == "tiny-random"
    assert config.trained_on == (TrainedOn("stripes", 4),)
    assert config.held_out == ("secret",)
    assert config.measured == {"compression": 4096.0}
    assert config.generator == random_generator().config


def test_halves_are_stored_where_that_loses_nothing(tmp_path):
    generator = random_generator()
    whole = save_random_bundle(tmp_path / "whole", generator=generator)
    with torch.no_grad():
        for tensor in generator.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    half = save_random_bundle(tmp_path / "half", generator=generator)
    sizes = [(tmp_path / n / "generator.safetensors").stat().st_size for n in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert whole.weights_sha256 != half.weights_sha256
    assert same(load_bundle(tmp_path / "half").generator.state_dict(), generator.state_dict())


def test_embedded_bundle_is_found_by_name(tmp_path, monkeypatch):
    save_random_bundle(tmp_path / "some-bundle")
    monkeypatch.setattr(bundles, "EMBEDDED", tmp_path)
    assert bundles.embedded_bundles() == ["some-bundle"]
    assert load_bundle("some-bundle").config.name == "tiny-random"
    with pytest.raises(BundleError, match="did you mean 'some-bundle'"):
        load_bundle("some-bundel")


def test_every_shipped_bundle_loads():
    for name in bundles.embedded_bundles():
        config = verify_bundle(name)
        assert config.name == name
        assert not {t.name for t in config.trained_on} & set(config.held_out)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")


def test_missing_weights_are_named(path):
    (path / "generator.safetensors").unlink()
    with pytest.raises(BundleError, match=r"generator\.safetensors"):
        load_bundle(path)


@pytest.mark.parametrize("place", [3, 100, -1], ids=["length", "header", "data"])
def test_damaged_weights_are_refused(path, place):
    file = path / "generator.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        load_bundle(path)


def rewrite_weights(path, data):
    """Other bytes, and the hash that belongs to them: as a hostile file would."""
    (path / "generator.safetensors").write_bytes(data)
    told = {"name": "generator.safetensors", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_config(path, lambda c: c.update(files=[told]))


HOSTILE = {
    "empty": b"",
    "not safetensors": b"\x80\x04pickle" * 100,
    "header longer than the file": struct.pack("<Q", 2**60) + b"{}",
    "header of another kind": struct.pack("<Q", 4) + b"[1]\n",
    "no tensors": struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_with_the_right_hash_are_refused(path, case):
    rewrite_weights(path, HOSTILE[case])
    with pytest.raises(BundleError):
        load_bundle(path)


def test_truncated_weights_with_the_right_hash_are_refused(path):
    rewrite_weights(path, (path / "generator.safetensors").read_bytes()[:-100])
    with pytest.raises(BundleError):
        load_bundle(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    generator = random_generator()
    generator.vae.mean[0, 0] = value
    save_random_bundle(tmp_path / "bundle", generator=generator)
    with pytest.raises(BundleError, match=r"vae\.mean"):
        load_bundle(tmp_path / "bundle")


def test_tensor_of_another_type_is_refused(tmp_path):
    generator = random_generator().double()
    generator.vae.mean.add_(1e-9)  # not a half
    save_random_bundle(tmp_path / "bundle", generator=generator)
    with pytest.raises(BundleError, match="type"):
        load_bundle(tmp_path / "bundle")


def set_block(field, value):
    return lambda c: c["generator"]["layout"]["blocks"][0].update({field: value})


def swap_shape(config):
    block = config["generator"]["layout"]["blocks"][0]
    block["shape"] = block["shape"][::-1]


def set_in(*keys, value):
    def change(config):
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


LIES = {
    "more weights than there are": set_block("shape", [10**6, 3, 3, 3]),
    "a shape turned round": swap_shape,
    "a negative shape": set_block("shape", [-16, -3, 3, 3]),
    "a block of another name": set_block("name", "elsewhere.weight"),
    "a block twice": lambda c: c["generator"]["layout"]["blocks"].append(c["generator"]["layout"]["blocks"][1]),
    "a scale beyond all numbers": set_block("exponent", 5000),
    "an empty chunk": set_in("generator", "layout", "chunk", value=0),
    "a huge chunk": set_in("generator", "layout", "chunk", value=10**15),
    "another latent": set_in("generator", "vae", "latent", value=5),
    "a negative width": set_in("generator", "diffusion", "width", value=-16),
    "more layers": set_in("generator", "diffusion", "depth", value=3),
    "heads that do not divide": set_in("generator", "encoder", "heads", value=3),
    "no heads": set_in("generator", "encoder", "heads", value=0),
    "another model": set_in("generator", "backbone", "model", value="test_vit"),
    "an unknown model": set_in("generator", "backbone", "model", value="no_such_model"),
    "a model on a hub": set_in("generator", "backbone", "model", value="hf-hub:some/model"),
    "a file to load": set_in("generator", "backbone", "args", value={"checkpoint_path": "weights.pth"}),
    "arguments that there are not": set_in("generator", "backbone", "args", value={"colour": "red"}),
    "an unknown key": lambda c: c.update(colour="red"),
    "an unknown key inside": lambda c: c["generator"]["vae"].update(colour="red"),
    "a missing key": lambda c: c.pop("held_out"),
    "a wrong type": lambda c: c.update(held_out=3),
    "a newer format": lambda c: c.update(format=99),
    "a format before the first": lambda c: c.update(format=0),
    "a million layers": set_in("generator", "diffusion", "depth", value=10**6),
    "a backbone of a million layers": set_in(
        "generator", "backbone", value={"model": "test_vit", "args": {"depth": 10**4}}
    ),
    "an argument beyond all bounds": set_in("generator", "backbone", "args", value={"depth": 10**6}),
    "images of a million pixels": set_in("generator", "size", value=10**6),
    "a number beyond all bounds": set_in("generator", "vae", "width", value=10**400),
    "a name with an escape sequence": lambda c: c.update(name="\x1b[2J"),
    "a name of a megabyte": lambda c: c.update(name="x" * 2**20),
    "an infinite measurement": lambda c: c.update(measured={"gain": float("inf")}),
    "no files": lambda c: c.update(files=[]),
    "a file twice": lambda c: c["files"].append(c["files"][0]),
    "itself among its files": lambda c: c["files"].append(c["files"][0] | {"name": "config.json"}),
    "a file above the folder": lambda c: c["files"].append(c["files"][0] | {"name": "../README.md"}),
    "a file that may run": lambda c: c["files"].append(c["files"][0] | {"name": "setup.py"}),
    "a file that is not there": lambda c: c["files"].append(c["files"][0] | {"name": "README.md"}),
    "a negative size": lambda c: c["files"][0].update(bytes=-1),
    "more bytes than allowed": lambda c: c["files"][0].update(bytes=2**40),
    "no hash": lambda c: c["files"][0].update(sha256=""),
    "a base elsewhere that it holds": lambda c: c.update(base_elsewhere={"sha256": "0" * 64, "source": "here"}),
}


@pytest.mark.parametrize("case", LIES)
def test_config_that_lies_is_refused_without_a_look_at_the_network(path, case, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address) or [])
    rewrite_config(path, LIES[case])
    with pytest.raises(BundleError):
        load_bundle(path)
    assert not asked


@pytest.mark.parametrize("depth", [3, 100_000])
def test_nested_config_is_refused(path, depth):
    (path / "config.json").write_text("[" * depth + "]" * depth)
    with pytest.raises(BundleError):
        load_bundle(path)


def test_config_beyond_the_limit_is_refused(path):
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text + " " * MAX_CONFIG_BYTES)
    with pytest.raises(BundleError, match="longer than"):
        load_bundle(path)


def test_header_beyond_the_limits_is_refused(path):
    names = {f"x{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(MAX_TENSORS + 1)}
    for header, words in ((json.dumps(names).encode(), "tensors, more than"), (b" " * 2**23, "header of")):
        rewrite_weights(path, struct.pack("<Q", len(header)) + header)
        with pytest.raises(BundleError, match=words):
            load_bundle(path)


@pytest.mark.parametrize("name", ["config.json", "generator.safetensors"])
def test_symbolic_links_are_refused(path, tmp_path, name):
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match="symbolic link"):
        load_bundle(path)


@pytest.mark.parametrize("name", ["setup.py", "pytorch_model.bin", "README.md", "more"])
def test_unexpected_files_are_refused(path, name):
    (path / name).mkdir() if name == "more" else (path / name).write_text("")
    with pytest.raises(BundleError, match=name):
        load_bundle(path)


def test_what_git_and_the_hub_keep_beside_it_is_no_matter(path):
    for name in (".git", ".eval_results"):
        (path / name).mkdir()
        (path / name / "x.yaml").write_text("{")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs")
    load_bundle(path)


def test_every_file_is_recorded_and_checked(path):
    config = write_measured_card(path)
    assert [f.name for f in config.files] == ["README.md", "generator.safetensors", "results.json"]
    assert load_bundle(path).config == config
    (path / "README.md").write_text("For everyone, for everything.")
    with pytest.raises(BundleError, match=r"README\.md is not the file.*bundle card"):
        load_bundle(path)
    write_card(config, path)
    load_bundle(path)


def test_saved_again_it_keeps_what_was_said_of_its_weights(path, tmp_path):
    (path / "audit.json").write_text('{"verdict": {"text": "No copying found."}}')
    (path / "metrics.jsonl").write_text("{}")
    write_measured_card(path)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    generator = Generator.from_pretrained(path)
    generator.save_pretrained(tmp_path / "again")
    generator.save_pretrained(path)
    for folder in (path, tmp_path / "again"):
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_what_was_said_of_other_weights_is_not_kept(path):
    for name in ("audit.json", "audit.svg", "metrics.jsonl", "training.svg"):
        (path / name).write_text('{"verdict": {"text": ""}}')
    write_measured_card(path)
    generator = Generator.from_pretrained(path)
    generator.vae.mean[0, 0] += 1
    generator.save_pretrained(path)
    assert {p.name for p in path.iterdir()} == {"config.json", "generator.safetensors"}
    load_bundle(path)


def test_results_that_changed_since_are_not_kept(path, tmp_path):
    write_measured_card(path)
    generator = Generator.from_pretrained(path)
    (path / "results.json").write_text((path / "results.json").read_text().replace("60.0", "99.0"))
    generator.save_pretrained(tmp_path / "again")
    assert not load_bundle(tmp_path / "again").config.has_card


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    with pytest.raises(BundleError, match="not printable"):
        save_random_bundle(tmp_path, name="two\nlines")
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("licences", "allowed"),
    [(("MIT", "cc-by-4.0"), True), (("MIT", "CC-BY-NC-4.0"), False), (("MIT (repo)",), False), (("unknown",), False)],
)
def test_commercial_use_needs_licences_that_are_known_to_allow_it(tmp_path, licences, allowed):
    sets = tuple(TrainedOn(f"set{i}", 1, licence) for i, licence in enumerate(licences))
    config = save_random_bundle(tmp_path, trained_on=sets, base_licence="Apache-2.0")
    assert config.commercial is allowed
    assert not save_random_bundle(tmp_path, trained_on=sets, base_licence="unknown").commercial


def test_newer_format_says_to_upgrade(path):
    rewrite_config(path, lambda c: c.update(format=FORMAT + 1, readable_since="7.1.0", colour="red"))
    with pytest.raises(BundleError, match=r"format 3.*up to 2.*Upgrade: pip install -U 'd2nwg-init>=7\.1\.0'"):
        load_bundle(path)


def test_newer_format_does_not_put_words_into_the_advice(path):
    rewrite_config(path, lambda c: c.update(format=FORMAT + 1, readable_since="1' ; rm -rf x"))
    with pytest.raises(BundleError, match=r"pip install -U d2nwg-init$"):
        load_bundle(path)


def test_unknown_key_is_named(path):
    rewrite_config(path, lambda c: c.update(traned_on=[]))
    with pytest.raises(BundleError, match=r"traned_on.*trained_on"):
        load_bundle(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', "\x00\xff"])
def test_config_that_is_no_config_is_refused(path, text):
    (path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        load_bundle(path)
