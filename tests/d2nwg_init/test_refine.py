"""A few steps on the images read: better or not at all."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import Muon
from torch import nn

from d2nwg_init import candidates, hook, initialize
from d2nwg_init import refine as refine_module
from d2nwg_init.candidates import set_body_and_solve, solve_in_place
from d2nwg_init.refine import (
    RATES,
    SOFTER,
    _activations,
    _backward,
    _fit,
    _is_matrix,
    can_be_refined,
    default_steps,
    refine,
    trainings,
)
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, same
from zoo_builder.backbones import predict
from zoo_builder.support_set import SupportSet


@pytest.fixture(autouse=True)
def short_refining():
    """All of it here."""


def noisy_images(count, seed, noise=2):
    images, labels = labelled_images(count, 3, seed=seed)
    return images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)), labels


@pytest.fixture
def support():
    return SupportSet(*noisy_images(200, 0), 3)


def body(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}


def solved(support):
    model = new_model()
    set_body_and_solve(model, {}, support.images, support.labels)
    return model


def test_refined_weights_are_better_on_images_that_were_not_read(support):
    model, (images, labels) = solved(support), noisy_images(300, 1)
    loss = [torch.nn.functional.cross_entropy(predict(model, images), labels)]
    steps = []
    done = refine(model, support, 30, 0, advance=lambda: steps.append(1))
    loss.append(torch.nn.functional.cross_entropy(predict(model, images), labels))
    assert done.kept
    assert (done.steps, len(steps)) == (30, 30)
    assert done.after < done.before
    assert loss[1] < 0.9 * loss[0]


@pytest.mark.parametrize("rate", [1e5, 1e30])
def test_training_that_does_harm_leaves_the_body_as_it_was_with_a_solved_head(support, rate, monkeypatch):
    monkeypatch.setattr("d2nwg_init.refine.RATES", (rate, rate))
    expected, model = solved(support), new_model()
    done = refine(model, support, 6, 0)
    assert not done.kept
    assert done.after == done.before
    torch.testing.assert_close(body(model), body(expected), rtol=1e-4, atol=1e-4)  # in another memory format
    losses = [torch.nn.functional.cross_entropy(predict(m, support.images), support.labels) for m in (model, expected)]
    torch.testing.assert_close(*losses, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientvit_m0", "test_convnext", "test_vit"])
def test_what_is_called_a_matrix_is_one_to_muon(name):
    """It would train others by Adam, at a rate that is too high for that."""
    parameters = list(timm.create_model(name, num_classes=5).parameters())
    optimizer = Muon(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [_is_matrix(p) for p in parameters] == ["momentum_buffer" in optimizer.state[p] for p in parameters]


def test_features_that_are_not_finite_are_not_trained_on(support):
    model = new_model()
    torch.nn.init.constant_(model.layer4[0].conv1.weight, float("inf"))
    head = model.fc.weight.clone()
    assert refine(model, support, 6, 0) is None
    assert torch.equal(model.fc.weight, head)


def test_few_steps_come_to_the_full_rate_too(support, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    refine(new_model(), support, 3, 0)
    assert rates == pytest.approx([RATES[1] / 6, RATES[1], RATES[1]])


def test_the_weights_go_half_of_the_way(support, monkeypatch):
    start, half, whole = (solved(support) for _ in range(3))
    refine(half, support, 6, 0)
    monkeypatch.setattr("d2nwg_init.refine.SHARE", 1.0)
    refine(whole, support, 6, 0)
    states = [dict(model.named_parameters()) for model in (start, half, whole)]
    for name in states[0].keys() - {"fc.weight", "fc.bias"}:
        torch.testing.assert_close(states[1][name], (states[0][name] + states[2][name]) / 2)


def test_the_head_is_no_surer_of_itself_than_before(monkeypatch):
    """The images that the body was trained on would have it so; of one draw of so few not always, in the mean of four
    by far."""
    monkeypatch.setattr(refine_module, "FIRST", 0)  # the most that a body can be fitted to them
    monkeypatch.setattr(refine_module, "TRAININGS_OF_FEW", 1)
    losses = []
    for draw in range(4):
        few = SupportSet(*noisy_images(30, draw, noise=16), 3)
        images, labels = noisy_images(300, 100 + draw, noise=16)
        start, refined = solved(few), solved(few)
        refine(refined, few, 40, 0)
        surer = copy.deepcopy(refined)
        solve_in_place(surer, few.images, few.labels)
        predicted = [predict(start, images), predict(refined, images) / SOFTER, predict(surer, images)]
        losses.append([torch.nn.functional.cross_entropy(logits, labels) for logits in predicted])
    before, after, sure = torch.tensor(losses).mean(0)
    assert after < 0.9 * min(before, sure)


def test_the_head_of_a_refined_body_has_ridges_of_its_own(support, monkeypatch):
    tried, solve = [], refine_module.solve_head
    monkeypatch.setattr(refine_module, "RIDGES_AFTER", (7.0,))
    monkeypatch.setattr(refine_module, "solve_head", lambda *a, **k: tried.append(solve(*a, **k)) or tried[-1])
    model = solved(support)
    assert refine(model, support, 6, 0).kept
    before, after = tried
    assert before.ridge != 7
    assert after.ridge == 7
    torch.testing.assert_close(model.fc.weight, SOFTER * (before.scale / after.scale).float() * after.weight)


def test_few_images_are_trained_on_anew_from_the_same_start(monkeypatch):
    few, trained, starts, ends = SupportSet(*noisy_images(60, 0), 3), [], [], []

    def fit(model, parameters, *rest):
        trained[:] = parameters
        starts.append(copied(dict(enumerate(parameters))))
        ends.append(_fit(model, parameters, *rest))
        return ends[-1]

    monkeypatch.setattr("d2nwg_init.refine._fit", fit)
    model, steps = solved(few), []
    assert refine(model, few, 6, 0, advance=lambda: steps.append(1)).kept
    assert len(ends) == trainings(60) == 3
    assert len(steps) == 3 * 6
    assert all(same(starts[0], start) for start in starts)
    assert not torch.equal(ends[0][0], ends[1][0])
    for p, start, *ended in zip(trained, starts[0].values(), *ends, strict=True):
        torch.testing.assert_close(p, start / 2 + sum(ended) / 6)


def test_fewer_images_are_shown_more_often_in_the_same_time():
    assert [default_steps(n) for n in (1024, 128, 96, 48, 10, 2)] == [18, 18, 24, 40, 40, 40]


def test_of_the_users_own_body_few_images_are_shown_no_more_than_six_times():
    assert [default_steps(n, careful=True) for n in (1024, 384, 256, 160, 48, 2)] == [18, 18, 12, 6, 6, 6]


def test_images_are_jittered_only_from_the_third_time_on(support, monkeypatch):
    jittered = []
    monkeypatch.setattr("d2nwg_init.refine._jittered", lambda images, _: jittered.append(len(images)) or images)
    refine(solved(support), support, 4, 0)  # of 200 images in two batches
    assert jittered == []
    refine(solved(support), support, 6, 0)
    assert jittered == [100, 100]


def test_the_same_seed_gives_the_same_weights(support):
    one, other = solved(support), solved(support)
    for model in (one, other):
        torch.manual_seed(id(model) % 1000)
        refine(model, support, 5, 3)
    assert same(one.state_dict(), other.state_dict())


def test_only_parameters_in_the_scope_are_trained(support):
    model = solved(support)
    before = copied(model.state_dict())
    names = {k for k, _ in model.named_parameters() if k.startswith(("layer1.", "layer2.", "layer3."))}
    assert refine(model, support, 6, 0, names).kept
    changed = {k for k, v in model.named_parameters() if not torch.equal(before[k], v)}
    assert changed == names | {"fc.weight", "fc.bias"}


def test_the_first_layers_are_left_as_they_are(support):
    model = solved(support)
    model.requires_grad_(False)
    model.fc.weight.requires_grad_()
    before = copied(model.state_dict())
    assert refine(model, support, 6, 0).kept
    names = [name for name, _ in model.named_parameters() if not name.startswith("fc.")]
    size = sum(before[name].numel() for name in names)
    left = [torch.equal(before[name], model.get_parameter(name)) for name in names]
    assert left == sorted(left, reverse=True)
    assert 0.005 * size < sum(before[name].numel() for name in names[: sum(left)]) <= 0.01 * size
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc.weight"]
    assert all(model.get_parameter(name).grad is None for name in names[: sum(left)])


def test_one_image_of_each_class_is_not_trained_on(support):
    few = torch.stack([torch.nonzero(support.labels == c)[0, 0] for c in range(3)])
    small = SupportSet(support.images[few], support.labels[few], 3)
    model = solved(small)
    before = copied(model.state_dict())
    assert refine(model, small, 5, 0) is None
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("num_classes", "images", "can"), [(64, 3, True), (65, 3, False), (10, 2, True), (2, 1, False)]
)
def test_a_batch_must_hold_two_images_of_a_class(num_classes, images, can):
    labels = torch.arange(num_classes).repeat(images)
    assert can_be_refined(SupportSet(torch.zeros(len(labels), 3, 1, 1), labels, num_classes)) == can


def test_initialize_refines_what_it_chose_and_reports_it(loader, bundle, monkeypatch):
    monkeypatch.setattr(candidates, "ENOUGH_FOR_STATISTICS", 0)  # else the body as it is would be chosen, and kept
    monkeypatch.setattr(refine_module, "TRAININGS_OF_FEW", 1)
    models = [new_model() for _ in range(3)]
    options = {"generator": bundle, "num_candidates": 1}
    reports = [initialize(m, loader, refining_steps=n, **options) for m, n in zip(models, (0, 20, None), strict=True)]
    assert reports[0].refinement is None
    assert [r.refinement.steps for r in reports[1:]] == [20, 40]  # of 48 images
    assert all("refining" in r.seconds for r in reports[1:])
    assert '"refinement": {' in reports[1].to_json()
    assert reports[1].refinement.kept == (not same(body(models[0]), body(models[1])))
    assert initialize(new_model(), loader, generator=None).refinement is None
    late = initialize(new_model(), loader, refining_steps=3, budget=0)
    assert late.refinement is None
    assert "the budget ended before refining" in late.notes


def test_of_few_images_a_body_to_refine_goes_before_batchnorm_that_must_stay_as_it_is(loader, bundle, monkeypatch):
    # Here all solved heads are right, and which is the best is a matter of rounding.
    monkeypatch.setattr(hook, "select", lambda cs: next((c for c in cs if c.name == "own_body_as_is"), cs[0]))
    reports = []
    for steps in (0, 2):
        model = new_model()
        torch.nn.init.normal_(model.bn1.running_mean, std=0.01)  # an untrained body would not be in question
        options = {"generator": bundle, "scope": ["layer2"], "num_candidates": 1}
        reports.append(initialize(model, loader, refining_steps=steps, **options))
    assert reports[0].chosen == "own_body_as_is"
    assert "own_body_as_is" in {c.name for c in reports[1].candidates}
    assert reports[1].chosen != "own_body_as_is"
    assert reports[1].refinement.steps == 2


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_in_parts_the_gradients_are_those_of_the_whole_batch(name):
    images, labels = noisy_images(30, 0)
    images, gradients = F.interpolate(images, 160), []
    for parts in (1, 4):
        model = new_model(name).eval()
        _backward(model, images.tensor_split(parts), labels)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].norm() > 1e-3
    assert (gradients[1] - gradients[0]).norm() < 1e-3 * gradients[0].norm()


def test_what_an_image_holds_for_its_gradient_is_counted_once_and_without_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))
    images = torch.randn(2, 3, 16, 16)
    # The images, for the first layer's weights, and what is rectified, for the second's and its own.
    assert _activations(model, images) == (3 + 8) * 16 * 16 * 4
    model[0].requires_grad_(False)
    assert _activations(model, images) == 8 * 16 * 16 * 4


def test_a_batch_that_memory_does_not_hold_is_gone_through_in_parts_no_larger_than_the_loaders(support, monkeypatch):
    seen = []

    def backward(model, parts, labels):
        seen.append([len(p) for p in parts])
        _backward(model, parts, labels)

    monkeypatch.setattr(refine_module, "_backward", backward)
    monkeypatch.setattr(refine_module, "ACTIVATIONS", 1)
    assert refine(solved(support), replace(support, batch=40), 2, 0).steps == 2
    assert seen == [[34, 33, 33]] * 2
    seen.clear()
    refine(solved(support), support, 1, 0)  # which does not know the loader's
    assert len(seen[0]) == 13
    assert min(seen[0]) == 7
    seen.clear()
    monkeypatch.setattr(refine_module, "ACTIVATIONS", 2**30)
    refine(solved(support), replace(support, batch=40), 1, 0)
    assert seen == [[100]]


def test_a_body_of_the_users_own_is_refined_at_lower_rates(loader, monkeypatch):
    rates = []

    def fit(model, parameters, images, labels, largest, rate, *rest):
        rates.append(rate)
        assert largest == 16  # of the loader
        return _fit(model, parameters, images, labels, largest, rate, *rest)

    monkeypatch.setattr(refine_module, "_fit", fit)
    model = new_model()
    nn.init.normal_(model.bn1.running_mean, std=0.01)
    assert initialize(model, loader, generator=None, refining_steps=1).refinement
    assert set(rates) == {refine_module.CAREFUL_RATES}
