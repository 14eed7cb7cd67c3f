"""What each argument of initialize() does, and the report's way back."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from d2nwg_init import InitReport, hook, initialize
from d2nwg_init.candidates import Candidate
from pretrained_generators.bundle import Bundle
from pretrained_generators.probes import Probes
from tests.d2nwg_init.conftest import new_model
from tests.d2nwg_init.test_initialize import exploding_bundle, keep_candidates, state_of
from tests.pretrained_generators.small import copied, random_generator, same
from zoo_builder.errors import BundleError, ModelError, RecipeError


def changed(before, after):
    """Names of what differs, BatchNorm statistics aside."""
    return {k for k in before if not torch.equal(before[k], after[k]) and "running" not in k and "batches" not in k}


def states(monkeypatch, model, loader, **options) -> dict[str, Candidate]:
    kept = keep_candidates(monkeypatch)
    initialize(model, loader, num_candidates=2, **options)
    return {c.name: c for c in kept}


@pytest.mark.parametrize("head", ["auto", "keep"])
def test_scope_says_what_generated_weights_may_replace(head, model, loader, bundle, monkeypatch):
    own = copied(model.state_dict())
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for scope, inside in (
        ("norm", lambda k: k.rpartition(".")[0] in norms),
        (["layer2"], lambda k: k.startswith("layer2.")),
    ):
        tried = states(monkeypatch, new_model(), loader, generator=bundle, scope=scope, head=head)
        for name in ("generated_0", "generated_1_x0.5"):
            state = state_of(tried[name], loader, solve=head == "auto")
            differs = changed(own, state) - {"fc.weight", "fc.bias"}
            assert differs
            assert all(map(inside, differs))


def test_scope_of_the_head_alone_generates_nothing_and_says_so(model, loader, bundle):
    report = initialize(model, loader, generator=bundle, scope="head")
    assert [c.name for c in report.candidates] == ["as_passed", "own_body"]
    assert any("scope holds no parameter of the body" in note for note in report.notes)


@pytest.mark.parametrize(("scope", "error"), [("bodies", RecipeError), (["layer9"], ModelError)])
def test_unknown_scope_is_named(scope, error, model, loader, bundle):
    with pytest.raises(error, match=r"body|layer2"):
        initialize(model, loader, generator=bundle, scope=scope)


def test_a_spent_budget_leaves_the_users_own_weights_and_tells_what_was_not_tried(model, loader, bundle):
    report = initialize(model, loader, generator=bundle, num_candidates=3, budget=0)
    assert [c.name for c in report.candidates] == ["as_passed", "own_body"]
    assert "the budget ended before 3 of 3 bodies were tried" in report.notes


def test_a_budget_that_ends_midway_keeps_what_was_tried(model, loader, bundle, monkeypatch):
    now = 0.0

    def clock():
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(hook.time, "perf_counter", clock)
    monkeypatch.setattr("d2nwg_init.stages.time", SimpleNamespace(perf_counter=lambda: 0.0))
    report = initialize(model, loader, generator=bundle, num_candidates=3, budget=3.5)
    assert [c.name for c in report.candidates][:4] == ["as_passed", "own_body_as_is", "own_body", "base"]
    assert [c.kind for c in report.candidates][4:] == ["generated"]
    assert "the budget ended before 1 of 3 bodies were tried" in report.notes


def test_an_ample_budget_changes_nothing(loader, bundle):
    one, two = new_model(), new_model()
    initialize(one, loader, generator=bundle, num_candidates=1)
    late = initialize(two, loader, generator=bundle, num_candidates=1, budget=1e6)
    assert not any("budget" in note for note in late.notes)
    assert same(one.state_dict(), two.state_dict())


def test_solve_never_leaves_the_model_as_passed(loader, bundle):
    model = _sure_model(loader)
    assert initialize(model, loader, generator=bundle, num_candidates=1).chosen == "as_passed"
    report = initialize(model, loader, generator=bundle, num_candidates=1, head="solve")
    assert report.chosen != "as_passed"
    assert report.candidates[0].name == "as_passed"  # it is shown all the same
    assert report.head == "solve"


def _sure_model(loader):
    model = new_model()
    initialize(model, loader, generator=None)
    with torch.no_grad():
        model.fc.weight.mul_(20)
        model.fc.bias.mul_(20)
    return model


def test_keep_leaves_the_head_in_every_candidate(model, loader, bundle, monkeypatch):
    own = copied(model.state_dict())
    tried = states(monkeypatch, model, loader, generator=bundle, head="keep")
    assert len(tried) == 5
    for candidate in tried.values():
        assert torch.equal(state_of(candidate, loader, solve=False)["fc.weight"], own["fc.weight"])
    state = state_of(tried["own_body"], loader, solve=False)
    assert "bn1.weight" in changed(own, state) <= set(tried["own_body"].parameters)  # BatchNorm's weights
    assert not torch.equal(state["bn1.running_mean"], own["bn1.running_mean"])


def test_fresh_gives_the_chosen_body_a_random_head_that_follows_the_seed(loader, bundle):
    models = [new_model() for _ in range(3)]
    reports = [
        initialize(m, loader, generator=bundle, num_candidates=1, head="fresh", seed=s)
        for m, s in zip(models, (0, 0, 1), strict=True)
    ]
    solved = new_model()
    chosen = initialize(solved, loader, generator=bundle, num_candidates=1, head="solve").chosen
    assert reports[0].chosen == chosen
    assert changed(solved.state_dict(), models[0].state_dict()) == {"fc.weight", "fc.bias"}
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not torch.equal(models[0].fc.weight, models[2].fc.weight)
    assert models[0].fc.weight.abs().max() <= models[0].fc.in_features ** -0.5


def test_fresh_is_the_head_of_a_model_that_has_it_by_two_names(loader):
    model, plain = new_model(), new_model()
    model.head = model.fc
    for m in (model, plain):
        initialize(m, loader, generator=None, refining_steps=0, head="fresh")
    assert torch.equal(model.fc.weight, plain.fc.weight)


def test_generated_heads_are_refused_with_what_to_do(model, loader, bundle):
    with pytest.raises(BundleError, match="head='solve'"):
        initialize(model, loader, generator=bundle, head="generate")
    with pytest.raises(RecipeError, match="did you mean 'solve'"):
        initialize(model, loader, generator=bundle, head="solved")


def test_without_selection_the_first_generated_body_is_taken(loader, bundle, monkeypatch):
    model = _sure_model(loader)  # which selection would leave alone
    report = initialize(model, loader, generator=bundle, num_candidates=4, select=False)
    assert report.chosen == "generated_0"
    assert [c.kind for c in report.candidates].count("generated") == 1


def test_without_selection_weights_that_explode_are_still_not_taken(model, loader, bundle):
    report = initialize(model, loader, generator=exploding_bundle(bundle), select=False)
    assert report.chosen in ("own_body_as_is", "own_body", "base")


def test_without_selection_no_better_probe_takes_the_place_of_a_sample(model, loader, bundle):
    generator = random_generator()
    generator.config = replace(generator.config, probes=5)
    generator.probes = Probes(5, generator.config.layout.num_chunks, generator.config.vae.latent)
    generator.embed = lambda *_: None
    generator.sample_latents = lambda *_: [None]
    generator.decoded = lambda *_: {k: -v for k, v in generator.base_parameters().items()}  # of no use
    report = initialize(model, loader, generator=Bundle(bundle.config, generator), select=False)
    assert report.chosen == "generated_0"
    assert "probe" not in {c.kind for c in report.candidates}  # none was tried in vain


@pytest.mark.parametrize("select", [True, False])
def test_of_no_candidates_none_is_generated(select, model, loader, bundle):
    report = initialize(model, loader, generator=bundle, num_candidates=0, select=select)
    assert [c.kind for c in report.candidates] == ["as_passed", "own_body", "own_body", "base"]


@pytest.mark.parametrize("options", [{"num_candidates": -1}, {"num_support": 3.5}, {"refining_steps": -1}])
def test_numbers_of_something_are_whole(options, model, loader, bundle):
    (name,) = options
    with pytest.raises(RecipeError, match=f"{name} must be a whole number"):
        initialize(model, loader, generator=bundle, **options)


def test_any_kind_of_integer_is_a_number(model, loader, bundle):
    numbers = {"seed": 3, "num_candidates": 1, "num_support": 40, "refining_steps": 2}
    report = initialize(model, loader, generator=bundle, **{k: np.int64(v) for k, v in numbers.items()})
    other = new_model()
    expected = initialize(other, loader, generator=bundle, **numbers)
    assert same(model.state_dict(), other.state_dict())
    assert '"seed": 3' in report.to_json()
    assert InitReport.from_json(report.to_json()).refinement == expected.refinement


def test_a_model_whose_head_was_replaced_since_is_not_reverted(model, loader):
    report = initialize(model, loader, generator=None, head="solve", refining_steps=1)
    model.reset_classifier(5)
    with torch.no_grad():
        model.conv1[0].weight.mul_(2)
    before = copied(model.state_dict())
    with pytest.raises(ModelError, match=r"fc\.(weight|bias) was"):
        report.revert()
    assert same(model.state_dict(), before)


def test_revert_gives_back_every_bit(model, loader, bundle):
    before = copied(model.state_dict())
    report = initialize(model, loader, generator=bundle, num_candidates=1)
    assert not same(model.state_dict(), before)
    with torch.no_grad():
        model.fc.weight.zero_()  # as training would change it
    report.revert()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_device_may_be_named(device, loader, bundle):
    one, two = new_model(), new_model()
    initialize(one, loader, generator=bundle, num_candidates=1)
    initialize(two, loader, generator=bundle, num_candidates=1, device=device)
    assert same(one.state_dict(), two.state_dict())


def test_nothing_is_printed_where_there_is_no_terminal(model, loader, capfd):
    initialize(model, loader, generator=None)
    initialize(model, loader, generator=None, progress=False)
    assert capfd.readouterr() == ("", "")
