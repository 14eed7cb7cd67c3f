"""What every method starts from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2nwg_init.benchmarks.transfer.cells import Cell
from d2nwg_init.benchmarks.transfer.methods import METHODS, make
from tests.d2nwg_init.transfer.conftest import new_arena
from tests.zoo_builder.synthetic import same, striped_dataset
from zoo_builder.backbones import body_state, predict
from zoo_builder.rescaling import batchnorm_rescaling
from zoo_builder.support_set import read_support_set


def cell_of(method, **changes):
    extra = {"sigma": 0.3} if method == "noise_on_nearest" else {}
    return Cell("stripes", None, 0, method, **(extra | changes))


def made(arena, method, **changes):
    return make(arena, cell_of(method, **changes)).model.state_dict()


def accuracy(arena, model):
    images, labels = arena.test
    return (predict(model, images).argmax(1) == labels).float().mean().item()


BLIND = [name for name in METHODS if name not in ("oracle", "sgd_equal_time")]


@pytest.mark.parametrize("method", BLIND)
def test_no_method_looks_at_test_images(subject, method):
    """Nor at the clock: the same images give the same model."""
    honest = striped_dataset()
    other = replace(honest, x_test=255 - honest.x_test[::-1], y_test=np.roll(honest.y_test, 1))
    assert same(made(new_arena(subject), method), made(new_arena(subject, other), method))


@pytest.mark.parametrize("method", [n for n in BLIND if n != "solved_full"])
def test_only_the_images_that_the_hook_reads_count(subject, method, monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.transfer.arena.NUM_SUPPORT", 24)
    arena = new_arena(subject)
    read = {image.numpy().tobytes() for image in arena.support.images}
    unread = [i for i, image in enumerate(arena.train[0]) if image.numpy().tobytes() not in read]
    assert len(read) == 24
    changed = striped_dataset()
    changed.x_train[unread] = 0
    if method == "initialize":  # which reads for itself
        monkeypatch.setattr("d2nwg_init.benchmarks.transfer.methods.NUM_SUPPORT", 24)
    assert same(made(arena, method), made(new_arena(subject, changed), method))


def test_the_full_rival_sees_all_train_images(subject, monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.transfer.arena.NUM_SUPPORT", 24)
    assert not same(made(new_arena(subject), "solved_full"), made(new_arena(subject), "solved"))


@pytest.mark.parametrize("method", ["solved", "solved_full", "logistic", "nearest_class_mean"])
def test_simple_rivals_have_a_base_that_recalibrating_does_not_destroy(subject, method):
    images = new_arena(subject).support.images
    assert len(images) == len(new_arena(subject).train[0])  # so that all four see the same, in some order
    absorbing = replace(subject, batchnorm="absorbed")
    for of_fit, expected in ((subject, subject.parameters()), (absorbing, absorbing.fitted(images))):
        state = made(new_arena(of_fit), method)
        torch.testing.assert_close({name: state[name] for name in expected}, expected)


def test_the_arena_reads_what_the_hook_reads(arena):
    read = read_support_set(arena.loader(), 1024, 3)
    assert torch.equal(arena.support.images, read.images)


def test_no_image_read_is_dropped_with_an_incomplete_batch(subject, monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.fine_tuning.FineTuning.batch_size", 16)
    arena = new_arena(subject, shots=6)
    assert len(arena.support) == 18
    assert sum(len(y) for _, y in arena.training_loader()) == sum(len(y) for _, y in arena.support_loader()) == 16


def test_plain_training_goes_over_the_images_read(subject, monkeypatch):
    monkeypatch.setattr("d2nwg_init.benchmarks.transfer.arena.NUM_SUPPORT", 24)
    arena = new_arena(subject)
    read = {image.numpy().tobytes() for image in arena.support.images}
    assert {image.numpy().tobytes() for x, _ in arena.support_loader() for image in x} == read


def test_few_shots_are_so_many_of_each_class(subject):
    arena = new_arena(subject, shots=5)
    assert torch.bincount(arena.train[1]).tolist() == [5, 5, 5]
    assert len(arena.support) == 15
    assert not torch.equal(arena.train[0], new_arena(subject, shots=5, seed=1).train[0])


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.few_shot])
def test_one_image_a_class_is_enough_for_every_row_of_few(subject, method):
    arena = new_arena(subject, shots=1)
    assert all(torch.isfinite(value).all() for value in made(arena, method).values())


def test_with_one_image_a_class_what_is_taken_from_the_zoo_is_weak(subject):
    assert make(new_arena(subject, shots=1), cell_of("zoo_selected")).notes["chosen"] == "universal_0.5"


def test_the_pretrained_body_is_the_base(arena, subject):
    state = made(arena, "pretrained")
    assert all(torch.equal(state[k], v) for k, v in subject.base.items())
    assert not any(torch.equal(made(arena, "scratch")[k], v) for k, v in subject.parameters().items() if v.ndim > 1)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.strength])
def test_a_delta_of_no_strength_is_the_base(arena, method):
    torch.testing.assert_close(made(arena, method, strength=1e-30), made(arena, "rescaled"))
    assert not same(made(arena, method), made(arena, "rescaled"))


def test_rescaling_changes_nothing_of_the_body_but_the_weights_of_batchnorm(arena, subject):
    solved, rescaled, base = made(arena, "solved"), made(arena, "rescaled"), subject.parameters()
    assert same({k: solved[k] for k in base}, base)
    changed = {k for k in base if not torch.equal(rescaled[k], base[k])}
    assert "bn1.weight" in changed <= set(batchnorm_rescaling(subject.body, arena.support.images))


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if "shuffled" in m.conditions])
def test_a_shuffled_condition_changes_the_body_and_not_the_images_of_the_head(subject, method):
    arena = new_arena(subject)
    swapped = make(arena, cell_of(method, condition="shuffled")).model
    shown = replace(arena, dataset=arena.other.dataset, other=None)
    if method != "generated_selected":  # which chooses by the arena's own images
        other = make(shown, cell_of(method)).model
        names = [k for k, v in subject.parameters().items() if v.ndim > 1]
        assert same({k: swapped.state_dict()[k] for k in names}, {k: other.state_dict()[k] for k in names})
        assert not same(body_state(swapped), body_state(other))  # BatchNorm is for the arena's own images
    assert accuracy(arena, swapped) > 0.5


def test_noise_grows_with_sigma(arena, subject):
    nearest = made(arena, "nearest")
    distances = []
    for sigma in (0.1, 1.0):
        noisy = made(arena, "noise_on_nearest", sigma=sigma)
        distances.append(sum((noisy[k] - nearest[k]).square().sum().item() for k in subject.parameters()))
    assert 0 < 50 * distances[0] < distances[1] < 150 * distances[0]


def test_the_oracle_is_no_worse_than_what_it_looks_through(arena):
    best = make(arena, cell_of("oracle"))
    rivals = [make(arena, cell_of(name)).model for name in ("solved", "universal", "nearest")]
    assert accuracy(arena, best.model) >= max(accuracy(arena, m) for m in rivals)
    assert best.notes["tried"] > 10


def test_plain_training_takes_the_time_that_the_hook_takes(arena):
    found = make(arena, cell_of("sgd_equal_time", learning_rate=1e-3))
    assert found.notes["steps"] >= 1
    assert not same(found.model.state_dict(), made(arena, "solved"))
