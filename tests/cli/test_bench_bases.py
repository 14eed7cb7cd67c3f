"""`bench bases` from the command line, on a dataset of stripes."""

import json

import torch

from tests.cli.conftest import fail, succeed
from tests.zoo_builder.synthetic import striped_dataset, write_npz


def test_each_model_is_pretrained_and_measured_and_the_file_holds_what_is_printed(tmp_path):
    write_npz(tmp_path / "stripes.npz", striped_dataset("stripes"))
    out = tmp_path / "bases.json"
    command = ["bench", "bases", "test_resnet", "test_vit", "--data", tmp_path, "--dataset", "stripes"]
    command += ["--size", 32, "--seconds", 1, "--threads", torch.get_num_threads()]
    report = json.loads(succeed(*command, "--out", out, "--json"))
    assert json.loads(out.read_text())["rows"] == report["rows"]
    found = {(r["bundle"], r["metric"]): r["value"] for r in report["rows"]}
    for model in ("test_resnet", "test_vit"):
        assert 0 <= found[model, "test_accuracy"] <= 100
        assert found[model, "images_per_second"] > 0
        assert found[model, "parameters"] > 100_000
    assert all(r["epoch"] >= 1 for r in report["rows"])
    assert "did you mean 'test_resnet'" in fail("bench", "bases", "test_resnett", *command[4:])
