"""`zoo base` goes on with the same work alone, and does not do it twice."""

import dataclasses

import pytest
from safetensors.torch import load_file

from tests.zoo_builder.synthetic import random_body, same, striped_dataset
from zoo_builder import pretrain as pretraining
from zoo_builder.checkpoint import write_atomically
from zoo_builder.errors import DataError, ModelError, RecipeError
from zoo_builder.pretrain import PretrainConfig, pretrain

CONFIG = PretrainConfig(size=32, epochs=2, batch_size=16)
DATASET = striped_dataset()
OTHERS = [
    (DATASET, dataclasses.replace(CONFIG, seed=1), "seed 0, asked for 1"),
    (DATASET, dataclasses.replace(CONFIG, size=48), "size 32, asked for 48"),
    (DATASET, dataclasses.replace(CONFIG, model="test_vit"), "model 'test_resnet', asked for 'test_vit'"),
    (dataclasses.replace(DATASET, sha256="1" * 64), CONFIG, "dataset_sha256"),
    (striped_dataset("bands"), CONFIG, "dataset 'stripes', asked for 'bands'"),
]


@pytest.fixture
def config(request):
    return dataclasses.replace(CONFIG, model=getattr(request, "param", CONFIG.model))


@pytest.fixture
def begun(tmp_path, monkeypatch, config):
    """A body to be, of which one epoch is done."""
    save = pretraining.save_checkpoint

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(DATASET, config, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("config", ["test_resnet", "torchvision:squeezenet1_1"], indirect=True)  # which has dropout
def test_one_interrupted_after_an_epoch_resumes_to_equal_bits(begun, config, tmp_path):
    pretrain(DATASET, config, begun)
    pretrain(DATASET, config, tmp_path / "whole")
    assert same(load_file(begun), load_file(tmp_path / "whole"))


def test_a_training_begun_otherwise_is_not_resumed(begun):
    before = begun.with_name("base.resume").read_bytes()
    for dataset, config, words in OTHERS:
        with pytest.raises(RecipeError, match=words):
            pretrain(dataset, config, begun)
    assert begun.with_name("base.resume").read_bytes() == before
    assert not begun.exists()


def test_a_finished_body_is_left_as_it_is_and_another_is_not_written_over_it(tmp_path, caplog):
    out = tmp_path / "base"
    config = dataclasses.replace(CONFIG, epochs=1)
    accuracy, before = pretrain(DATASET, config, out), out.stat().st_mtime_ns
    assert pretrain(DATASET, config, out) == accuracy
    assert "is there already" in caplog.text
    for dataset, other, words in OTHERS:
        with pytest.raises(RecipeError, match=words):
            pretrain(dataset, dataclasses.replace(other, epochs=1), out)
    assert out.stat().st_mtime_ns == before


def test_a_body_from_elsewhere_is_not_written_over(tmp_path):
    write_atomically(tmp_path / "base", random_body().state_dict())
    with pytest.raises(RecipeError, match="take another --out"):
        pretrain(DATASET, CONFIG, tmp_path / "base")


def test_what_cannot_become_a_base_is_refused_before_the_first_epoch(tmp_path):
    two_heads = dataclasses.replace(CONFIG, model="deit_tiny_distilled_patch16_224")
    with pytest.raises(ModelError, match="no linear classifier"):
        pretrain(DATASET, two_heads, tmp_path / "base")
    with pytest.raises(DataError, match="no test images"):
        pretrain(striped_dataset(test=0), CONFIG, tmp_path / "base")
    assert not list(tmp_path.iterdir())
