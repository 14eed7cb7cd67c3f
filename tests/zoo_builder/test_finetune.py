"""One task: what is trained, what is kept of it, and what it is said to be worth."""

import re
from dataclasses import replace

import pytest
import torch

from tests.zoo_builder.synthetic import SIZE, copied, random_body, same, seeded, striped_dataset, tiny_task
from tests.zoo_builder.test_rescaling import leaning_on_its_means
from zoo_builder import finetune, finetune_result
from zoo_builder.backbones import is_norm, prepare_images
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.domain_images import SharedImages
from zoo_builder.errors import DataError, ZooError
from zoo_builder.finetune import run_tasks
from zoo_builder.finetune_result import Start
from zoo_builder.tasks import Training

SEEDS = {"stripes": 0, "bands": 5}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):

    def load(name):
        if name not in SEEDS:
            raise DataError(f"No dataset {name}.")
        return striped_dataset(name, seed=SEEDS[name])

    return SharedImages(tmp_path_factory.mktemp("images"), SIZE, load)


@pytest.fixture
def run(shared):
    return lambda task, start=None: alone(task, random_body(), start, shared)


def alone(task, body, start, shared):
    return run_tasks([task], body, [start], shared)[task.id]


def training(steps=2, *rates, **more):
    return Training(steps, rates or (0.002,), batch_size=16, **more)


@pytest.mark.parametrize("kind", ["episodic", "finetune", "mixture"])
def test_same_task_gives_equal_bits_and_another_seed_others(run, kind):
    first, again, other = run(tiny_task(kind)), run(tiny_task(kind)), run(tiny_task(kind, seed=1))
    assert same(first.delta, again.delta)
    assert same(first.heads, again.heads)
    assert not same(first.delta, other.delta)
    assert {k: v for k, v in first.metrics.items() if k != "seconds"} == {
        k: v for k, v in again.metrics.items() if k != "seconds"
    }


def test_global_random_state_has_no_influence(run):
    torch.manual_seed(1)
    first = run(tiny_task("finetune"))
    torch.manual_seed(2)
    assert same(first.delta, run(tiny_task("finetune")).delta)


@pytest.mark.parametrize("kind", ["episodic", "finetune"])
def test_the_base_comes_back_as_it_was(shared, kind):
    body = random_body()
    before = copied(body.state_dict())
    alone(tiny_task(kind), body, None, shared)
    assert same(copied(body.state_dict()), before)
    assert all(p.requires_grad for p in body.parameters())


def test_training_lowers_the_loss(run):
    curve = run(tiny_task(training=training(40))).curve
    assert [step for step, _ in curve][-1] == 40
    losses = [loss for _, loss in curve]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_scopes_train_what_they_say(run):
    body = random_body()
    norms = {f"{n}.{p}" for n, m in body.named_modules() if is_norm(m) for p, _ in m.named_parameters()}
    assert run(tiny_task()).delta.keys() == dict(body.named_parameters()).keys()
    for kind in ("episodic", "finetune"):
        some = run(tiny_task(kind, scope="head+norm"))
        assert some.delta.keys() == norms
        assert any(v.abs().max() > 0 for v in some.delta.values())
    head = run(tiny_task("finetune", scope="head"))
    assert head.delta == {}
    assert head.metrics["gain"] == 0


def test_a_mixture_has_a_head_for_each_dataset(run):
    result = run(tiny_task("mixture", datasets=("stripes", "bands")))
    assert result.heads.keys() == {f"{n}/{k}" for n in ("stripes", "bands") for k in ("weight", "bias")}
    assert result.heads["bands/weight"].shape == (3, 96)
    assert "head_accuracy" in result.metrics
    assert run(tiny_task()).heads == {}


def test_own_share_and_related_datasets_have_influence(run):
    alone = run(tiny_task(own_share=1.0, related=("bands",)))
    assert same(alone.delta, run(tiny_task(own_share=1.0, related=("bands",))).delta)
    mixed = run(tiny_task(own_share=0.0, related=("bands",)))
    assert not same(alone.delta, mixed.delta)


def test_the_best_of_the_learning_rates_is_kept(run, monkeypatch):
    tried, results = [], finetune.score_members
    monkeypatch.setattr(finetune, "score_members", lambda *args: tried.extend(results(*args)) or tried)
    for rates in ((1e-6, 0.05), (0.05, 1e-6)):
        tried.clear()
        kept = run(tiny_task(training=training(10, *rates)))
        assert [t.metrics["learning_rate"] for t in tried] == list(rates)
        assert same(kept.delta, max(tried, key=lambda t: t.metrics["best_accuracy"]).delta)


KINDS = {
    "episodic": tiny_task(training=training(6)),
    "finetune": tiny_task("finetune", training=training(6)),
    "rates": tiny_task("finetune", training=training(6, 0.0005, 0.002)),
    "mixture": tiny_task("mixture", datasets=("stripes", "bands"), training=training(6)),
    "head": tiny_task("finetune", scope="head", training=training(6)),
    "norms": tiny_task(scope="head+norm", training=training(6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_side_by_side_become_what_they_become_alone(kind, shared):
    """But for the order in which floats are summed."""
    task = KINDS[kind]
    tasks = [replace(task, seed=seed) for seed in range(3)]
    body = random_body()
    recalibrate_batchnorm(body, torch.randn(64, 3, 32, 32, generator=seeded(0)))  # as a base has been somewhere
    together = run_tasks(tasks, body, [None] * 3, shared, at_once=4)
    for one in tasks:
        single, other = alone(one, body, None, shared), together[one.id]
        assert single.delta.keys() == other.delta.keys()
        far = sum((single.delta[k].float() - v.float()).norm() ** 2 for k, v in other.delta.items())
        size = sum(v.float().norm() ** 2 for v in single.delta.values())
        assert far <= 0.05**2 * size
        assert single.heads.keys() == other.heads.keys()
        for name, value in single.heads.items():
            torch.testing.assert_close(value, other.heads[name], atol=0.02, rtol=0.02)
        assert torch.equal(single.support, other.support)
        assert [loss for _, loss in single.curve] == pytest.approx([loss for _, loss in other.curve], rel=0.02)
        assert single.metrics["learning_rate"] == other.metrics["learning_rate"]
        assert single.metrics["accuracy"] == pytest.approx(other.metrics["accuracy"], abs=100 / 24 + 0.01)


def test_a_task_that_fails_leaves_those_beside_it_as_they_are(shared):
    """One diverges and one has no data."""
    good = tiny_task("finetune", training=training(3))
    start = Start({k: torch.zeros_like(p) for k, p in random_body().named_parameters()}, learning_rate=1e25)
    tasks = [good, replace(good, seed=1, datasets=("nowhere",)), replace(good, seed=2)]
    tasks = [replace(t, training=training(3, rate_of_start=0.002)) for t in tasks]
    starts = [replace(start, learning_rate=1.0), None, start]
    found = run_tasks(tasks, random_body(), starts, shared, at_once=3)
    assert "nowhere" in str(found[tasks[1].id])
    assert "diverged" in str(found[tasks[2].id])
    single = alone(tasks[0], random_body(), starts[0], shared)
    for name, value in found[tasks[0].id].delta.items():
        torch.testing.assert_close(value, single.delta[name], atol=1e-3, rtol=1e-2)


def test_half_precision_of_the_forward_pass_is_near_single(shared):
    task = tiny_task("finetune", training=training(20))
    found = [run_tasks([task], random_body(), [None], shared, bf16=half)[task.id] for half in (False, True)]
    assert not same(found[0].delta, found[1].delta)
    assert found[0].curve[-1][1] == pytest.approx(found[1].curve[-1][1], rel=0.2)


def test_a_rate_that_diverges_is_passed_over_and_all_of_them_are_an_error(run):
    assert run(tiny_task(training=training(3, 1e20, 0.02))).metrics["learning_rate"] == 0.02
    found = run(tiny_task(training=training(3, 1e20)))
    assert isinstance(found, ZooError)
    assert re.search(r"stripes.*diverged at the learning rates \[1e\+20", str(found))


def test_a_task_goes_on_from_its_start_at_a_share_of_its_rate(run):
    start = Start({k: 0.01 * torch.ones_like(p) for k, p in random_body().named_parameters()}, learning_rate=1e-6)
    result = run(tiny_task(training=training(2, rate_of_start=0.5)), start)
    assert result.metrics["learning_rate"] == 0.5e-6
    for name, value in result.delta.items():
        torch.testing.assert_close(value.float(), start.delta[name], atol=1e-4, rtol=0)


def test_metrics_hang_together(run):
    m = run(tiny_task(training=training(10))).metrics
    assert m["gain"] == m["best_accuracy"] - m["solved_accuracy"] >= 0
    assert m["best_accuracy"] >= m["accuracy"]
    assert 0 <= m["best_strength"] <= 1
    assert m["half_precision_loses"] < 0.1
    assert m["seconds"] > 0


def test_halves_that_lose_or_overflow_are_kept_whole(run, monkeypatch):
    monkeypatch.setattr(finetune_result, "HALF_LOSES", -1e9)
    whole = run(tiny_task())
    assert {v.dtype for v in whole.delta.values()} == {torch.float32}
    monkeypatch.undo()
    assert {v.dtype for v in run(tiny_task()).delta.values()} == {torch.float16}
    start = Start({k: torch.full_like(p, 1e5) for k, p in random_body().named_parameters()}, learning_rate=1e-9)
    far = run(tiny_task(training=training(1, rate_of_start=0.5)), start)
    assert {v.dtype for v in far.delta.values()} == {torch.float32}
    assert far.metrics["best_accuracy"] >= far.metrics["solved_accuracy"]


def test_support_and_embedding_are_of_the_dataset_alone(run):
    """Not of what was trained: it is what a generator will see of a dataset that it does not know."""
    one, other = run(tiny_task()), run(tiny_task(training=training(5, 0.05)))
    assert torch.equal(one.support, other.support)
    assert one.support.dtype == torch.uint8
    assert one.support.shape == (24, 3, SIZE, SIZE)
    assert torch.equal(one.embedding, other.embedding)
    halves = one.embedding.view(2, -1)
    torch.testing.assert_close(halves.norm(dim=1), torch.ones(2))


def test_training_is_of_the_base_as_it_is_fitted(shared):
    """Of a base that rescaling destroys little is learnt."""
    task, base = tiny_task("episodic"), random_body()
    images = shared.view(task.datasets[0], "plain", task).x_train
    recalibrate_batchnorm(base, prepare_images(base, images))
    leaning_on_its_means(base)
    rescaled, absorbed = (
        run_tasks([task], base, [None], shared, batchnorm=fit)[task.id].curve[0][1] for fit in ("rescaled", "absorbed")
    )
    assert absorbed < rescaled - 0.2
