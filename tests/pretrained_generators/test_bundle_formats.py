"""A bundle of every format that was ever released loads, and generates what it always did."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretrained_generators.bundle import load_bundle
from pretrained_generators.bundle_config import FORMAT
from tests.pretrained_generators.small import same

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bundles"
TOLERANCE = 1e-4  # relative, over versions of torch; docs/bundle-format.md states it


def samples(folder):
    generator = load_bundle(folder).generator
    condition = torch.linspace(-1, 1, generator.diffusion.null_condition.numel())
    return generator.sample_deltas(condition, 2, seed=3)


def test_there_is_a_fixture_of_every_format():
    assert {p.name for p in FIXTURES.glob("format-*")} == {f"format-{i + 1}" for i in range(FORMAT)}


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_fixture_loads_and_generates_what_it_did(version):
    config = load_bundle(FIXTURES / f"format-{version}").config
    assert (config.name, config.held_out, config.learnt) == ("fixture", ("secret",), ("a", "b"))
    assert config.commercial is (version > 1)  # format 1 knew no licences
    assert load_bundle(FIXTURES / f"format-{version}").generator.statistics is None  # they say nothing of datasets
    found = samples(FIXTURES / f"format-{version}")
    for name, told in json.loads((FIXTURES / "samples.json").read_text()).items():
        now = [d[name].abs().mean().item() for d in found] + [found[0][name].flatten()[0].item()]
        assert now == pytest.approx(told, rel=TOLERANCE, abs=1e-8)


def test_samples_are_equal_bits_in_another_process(tmp_path):
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "from tests.pretrained_generators.test_bundle_formats import FIXTURES, samples; "
        "torch.set_num_threads(1); save_file(samples(FIXTURES / 'format-2')[1], sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=True, cwd=FIXTURES.parents[2])
    from safetensors.torch import load_file

    assert same(load_file(tmp_path / "out"), samples(FIXTURES / "format-2")[1])
