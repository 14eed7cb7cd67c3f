"""A small bundle of a stranger's neither speaks to the terminal nor takes memory that no file of it accounts for."""

import hashlib
import json
import struct

import pytest

from pretrained_generators.bundle import load_bundle, load_config
from pretrained_generators.generator import Generator
from tests.pretrained_generators.small import rewrite_config, save_random_bundle
from zoo_builder.errors import BundleError

ESCAPE = "\x1b[2J"
WEIGHTS = "generator.safetensors"


@pytest.fixture
def path(tmp_path):
    save_random_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


HEADERS = {  # each first by name of those that are looked at
    "a name": {f"base.{ESCAPE}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}},
    "a type": {"base.conv1.weight": {"dtype": ESCAPE, "shape": [0], "data_offsets": [0, 0]}},
    "a long name": {"base." + "A" * 10**5: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}},
    "a long shape": {"base.A": {"dtype": "F16", "shape": [0] * 10**5, "data_offsets": [0, 0]}},
}


@pytest.mark.parametrize("case", HEADERS)
def test_what_a_header_holds_is_told_briefly_and_in_plain_text(path, case):
    data = (path / WEIGHTS).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.dumps(json.loads(data[8:start]) | HEADERS[case]).encode()
    data = struct.pack("<Q", len(header)) + header + data[start:]
    (path / WEIGHTS).write_bytes(data)
    told = {"name": WEIGHTS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_config(path, lambda c: c.update(files=[told]))
    with pytest.raises(BundleError) as refused:
        load_bundle(path)
    message = str(refused.value).replace(str(path), "")
    assert message.isprintable()
    assert len(message) < 400


NUMBERS = {
    "a dataset of entries without end": lambda c: c["trained_on"][0].update(entries=2**63),
    "a measurement beyond all numbers": lambda c: c["measured"].update(compression=10**400),
    "a layout beyond all files": lambda c: c["generator"]["layout"]["blocks"][0].update(shape=[10**18] * 300),
    "attention to all images by many": lambda c: c["generator"]["encoder"].update(inducing=1025),
    "probes without end": lambda c: c["generator"].update(probes=257),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_no_bundle_has_are_refused_before_its_weights_are_looked_at(path, case):
    rewrite_config(path, NUMBERS[case])
    (path / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"config\.json is not a bundle's config"):
        load_config(path)


def test_a_revision_of_what_is_on_this_machine_is_refused(path):
    for source in (path, str(path), "test_resnet-64"):
        with pytest.raises(BundleError, match="has no revisions, and 'v1' is asked for"):
            Generator.from_pretrained(source, revision="v1")
