import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from d2nwg_init import hook, initialize
from d2nwg_init.accepted_model import working_copy
from d2nwg_init.benchmarks.fine_tuning import accuracy
from d2nwg_init.candidates import SAMPLING_STEPS, become, propose
from pretrained_generators.bundle import Bundle
from tests.d2nwg_init.conftest import new_model
from tests.pretrained_generators.small import copied, labelled_images, random_generator, same
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import BundleError, ModelError
from zoo_builder.rescaling import batchnorm_rescaling
from zoo_builder.support_set import read_support_set


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def keep_candidates(monkeypatch):
    """The candidates of the next call, in a list."""
    kept = []

    def keeping(*args):
        for candidate in propose(*args):
            kept.append(candidate)
            yield candidate

    monkeypatch.setattr(hook, "propose", keeping)
    return kept


def state_of(candidate, loader, solve=True):
    """What a fresh model is as this candidate, of the images in the loader's order."""
    model = working_copy(new_model())
    become(model, candidate, read_support_set(loader, 1024, 3), solve)
    return model.state_dict()


@pytest.mark.parametrize("kind", ["as_passed", "own_body", "base", "generated"])
def test_model_ends_with_the_state_of_the_chosen_candidate(kind, model, loader, bundle, monkeypatch):
    candidates = keep_candidates(monkeypatch)
    monkeypatch.setattr(hook, "compete", lambda candidates, *_: candidates)
    monkeypatch.setattr(hook, "select", lambda cs: next(c for c in cs if c.kind == kind))
    report = initialize(model, loader, generator=bundle, num_candidates=2, refining_steps=0)
    chosen = next(c for c in candidates if c.kind == kind)
    assert report.chosen == chosen.name
    ends = {c.name: state_of(c, loader) for c in candidates}
    assert same(model.state_dict(), ends.pop(chosen.name))
    assert not any(same(end, model.state_dict()) for end in ends.values())


def test_chosen_is_what_select_chose(model, loader, bundle, monkeypatch):
    candidates = keep_candidates(monkeypatch)
    report = initialize(model, loader, generator=bundle, num_candidates=2, refining_steps=0)
    chosen = hook.select(hook.compete(candidates, 3, own_is_untrained=True))
    assert same(model.state_dict(), state_of(chosen, loader))
    assert report.chosen == chosen.name


def test_every_kind_of_candidate_competes(model, loader, bundle):
    report = initialize(model, loader, generator=bundle, num_candidates=3)
    *names, first, second = (c.name for c in report.candidates)
    assert names == ["as_passed", "own_body_as_is", "own_body", "base"]
    assert {first, second} < {"generated_0", "generated_1_x0.5", "generated_2_x2"}  # the best two
    assert [c.kind for c in report.candidates][2:] == ["own_body", "base", *["generated"] * 2]
    assert report.bundle == "tiny-random"
    assert report.bundle_sha256 == bundle.config.weights_sha256
    assert report.images_read == 48
    assert (report.num_classes, report.classes_seen, report.seed) == (3, 3, 0)
    assert not any("never predicts" in note for note in report.notes)
    assert report.seconds.keys() - {"solving", "refining"} == {"reading", "bundle", "candidates", "writing"}
    assert ("solving" in report.seconds) == (report.refinement is None or not report.refinement.kept)


def test_base_and_generated_candidates_have_the_bundles_body(model, loader, bundle, monkeypatch):
    candidates = {c.name: c for c in _run(model, loader, bundle, monkeypatch)}
    images, labels = next(iter(DataLoader(loader.dataset, 48)))
    base = bundle.generator.fitted_base(images)
    for name, value in base.items():
        torch.testing.assert_close(candidates["base"].parameters[name], value, rtol=1e-4, atol=1e-4)
    one, two = (candidates[name].parameters for name in ("generated_0", "generated_1_x0.5"))
    assert not all(torch.equal(one[k], base[k]) for k in base)
    assert not all(torch.equal(one[k], two[k]) for k in base)
    embedding = bundle.generator.embed(images, labels, 3)  # of the same images in another order
    whole, half = bundle.generator.sample_deltas(embedding, 2, 0, SAMPLING_STEPS)
    for name in whole:
        torch.testing.assert_close(one[name], base[name] + whole[name], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(two[name], base[name] + 0.5 * half[name], rtol=1e-3, atol=1e-4)


def _run(model, loader, bundle, monkeypatch):
    candidates = keep_candidates(monkeypatch)
    initialize(model, loader, generator=bundle, num_candidates=2)
    return candidates


def test_own_body_keeps_its_parameters_and_gets_another_head_and_batchnorm(model, loader, bundle, monkeypatch):
    before = copied(model.state_dict())
    candidates = {c.name: state_of(c, loader) for c in _run(model, loader, bundle, monkeypatch)}
    assert same(candidates["as_passed"], before)
    changed = {k for k in before if not torch.equal(candidates["own_body"][k], before[k])}
    assert {"fc.weight", "fc.bias"} <= changed
    rescaled = set(batchnorm_rescaling(model, next(iter(DataLoader(loader.dataset, 48)))[0]))
    assert all("running_" in k or "num_batches" in k for k in changed - {"fc.weight", "fc.bias"} - rescaled)
    assert any("running_mean" in k for k in changed)
    assert "bn1.weight" in changed & rescaled


def test_path_and_bundle_give_equal_bits(loader, bundle, bundle_path):
    models = [new_model() for _ in range(3)]
    for given, generator in zip(models, (bundle, bundle_path, str(bundle_path)), strict=True):
        initialize(given, loader, generator=generator, num_candidates=1)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert same(models[0].state_dict(), models[2].state_dict())


def test_equal_seeds_give_equal_bits_and_others_do_not(loader, bundle, monkeypatch):
    monkeypatch.setattr(hook, "select", lambda cs: cs[-1])
    models = [new_model() for _ in range(3)]
    for given, seed in zip(models, (4, 4, 5), strict=True):
        torch.manual_seed(random.randrange(1000))
        initialize(given, loader, generator=bundle, num_candidates=1, seed=seed)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not same(models[0].state_dict(), models[2].state_dict())


def test_untrained_model_learns_separable_classes(model, loader, bundle):
    images, labels = loader.dataset.tensors
    before = accuracy(model, images, labels)
    report = initialize(model, loader, generator=bundle, num_candidates=2, refining_steps=0)
    assert report.chosen != "as_passed"
    assert before < 70
    assert accuracy(model, images, labels) > 95
    unseen = labelled_images(48, 3, seed=1)
    assert accuracy(model, *unseen) > 90


LOADERS = {
    "once": lambda data: DataLoader(data, 48),
    "drawn with replacement": lambda data: DataLoader(
        data, 16, sampler=WeightedRandomSampler([1.0] * 48, 480, generator=torch.Generator().manual_seed(0))
    ),
    "again and again": lambda data: itertools.cycle(DataLoader(data, 16)),
}


@pytest.mark.parametrize("how", LOADERS)
def test_reported_scores_are_those_of_left_out_images(how, model, loader, bundle):
    """With labels of pure noise nothing can be right beyond chance, though a head could learn them by heart."""
    images, labels = loader.dataset.tensors
    noise = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    read = LOADERS[how](TensorDataset(images, noise))
    report = initialize(model, read, generator=bundle, num_candidates=1, num_support=480)
    assert report.images_read == 48
    assert any("432 images came again" in note for note in report.notes) == (how != "once")
    for candidate in report.candidates[1:]:
        assert candidate.accuracy < 65
        assert candidate.loss > 0.9


def test_model_that_is_right_and_sure_keeps_its_weights(model, loader, bundle):
    initialize(model, loader, generator=None)
    with torch.no_grad():
        model.fc.weight.mul_(20)
        model.fc.bias.mul_(20)
    before = copied(model.state_dict())
    report = initialize(model, loader, generator=bundle, num_candidates=1)
    assert report.chosen == "as_passed"
    assert same(model.state_dict(), before)


def test_random_states_are_unchanged(model, loader, bundle):
    before, own = random_states(), loader.generator.get_state()
    initialize(model, loader, generator=bundle, num_candidates=1)
    assert random_states() == before
    assert torch.equal(loader.generator.get_state(), own)


def test_random_states_are_unchanged_by_an_unseeded_loader(model, bundle):
    loader = DataLoader(TensorDataset(*labelled_images(24, 3)), 8, shuffle=True)
    before = random_states()
    initialize(model, loader, generator=bundle, num_candidates=1)
    assert random_states() == before


def test_training_mode_of_every_module_is_unchanged(model, loader, bundle):
    for part, mode in ((model, True), (model.layer1, False), (model.layer2[0].bn1, False)):
        part.train(mode)
    before = {n: m.training for n, m in model.named_modules()}
    assert len(set(before.values())) == 2
    initialize(model, loader, generator=bundle, num_candidates=1)
    assert {n: m.training for n, m in model.named_modules()} == before


def test_parameters_stay_the_users_own(model, loader, bundle):
    """An optimizer that was made before goes on with them."""
    parameters = dict(model.named_parameters())
    model.layer1.requires_grad_(False)
    asks = {k: p.requires_grad for k, p in parameters.items()}
    initialize(model, loader, generator=bundle, num_candidates=1)
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert parameter.requires_grad == asks[name]
        assert parameter.grad is None
    model.train()
    model(loader.dataset.tensors[0]).sum().backward()
    assert model.fc.weight.grad is not None


def test_momentum_of_batchnorm_is_unchanged(model, loader):
    model.layer1[0].bn1.momentum = 0.37
    initialize(model, loader, generator=None)
    assert model.layer1[0].bn1.momentum == 0.37


def test_no_generator_leaves_the_users_own_weights(model, loader):
    torch.nn.init.normal_(model.bn1.running_mean)  # else it would count as one that was never trained
    report = initialize(model, loader, generator=None)
    assert [c.name for c in report.candidates] == ["as_passed", "own_body_as_is", "own_body"]
    assert not any("never trained" in note for note in report.notes)
    assert report.bundle is None
    assert report.bundle_sha256 is None
    assert "no generator" in report.reason


UNCOVERED = {
    "timm batchnorm": lambda: new_model("lcnet_050"),
    "torchvision batchnorm": lambda: torchvision.models.resnet18(num_classes=3),
    "torchvision batchnorm and dropout": lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_uncovered_architecture_still_gets_its_own_body_solved(name, loader):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = UNCOVERED[name]()
    report = initialize(model, loader, generator="auto")
    assert [c.name for c in report.candidates] == ["as_passed", "own_body"]
    assert report.chosen == "own_body"
    assert sum("the body was never trained" in note for note in report.notes) == 1
    assert "no embedded bundle covers this architecture" in report.reason
    assert "no embedded bundle covers" in " ".join(str(report).split())
    assert accuracy(model, *loader.dataset.tensors) > 60


@pytest.mark.parametrize(
    "options", [{"generator": None}, {"scope": "head"}, {"budget": 0}, {"generator": None, "refining_steps": 2}]
)
@pytest.mark.parametrize("make", [lambda: new_model("mobilenetv3_small_050"), UNCOVERED["timm batchnorm"]])
def test_a_body_that_was_never_trained_bears_the_first_steps_of_a_training(make, options, loader):
    """By the statistics that BatchNorm begins with, deep bodies all but vanish: a head on that had weights of 1e8."""
    model, (images, labels) = make(), loader.dataset.tensors
    initialize(model, loader, **options)
    assert find_classifier(model).layer.weight.abs().max() < 10
    optimizer = torch.optim.AdamW(model.train().parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        assert F.cross_entropy(model.eval()(images), labels) < 2  # chance has 1.1


def test_vit_without_batchnorm_gets_a_solved_head():
    model = new_model("test_vit")
    images, labels = labelled_images(24, 3, size=160)
    report = initialize(model, [(images, labels)])
    assert report.chosen == "own_body"
    assert accuracy(model, images, labels) > 60


def test_explicit_bundle_that_does_not_fit_is_an_error(loader, bundle):
    model = new_model("mobilenetv3_small_050")
    before = copied(model.state_dict())
    with pytest.raises(BundleError, match=r"test_resnet.*do not fit"):
        initialize(model, loader, generator=bundle)
    assert same(model.state_dict(), before)


def test_unknown_bundle_is_an_error(model, loader):
    before = copied(model.state_dict())
    for unknown in ("no-such-bundle", Path("nowhere")):
        with pytest.raises(BundleError, match=str(unknown)):
            initialize(model, loader, generator=unknown)
    assert same(model.state_dict(), before)


def test_model_without_a_linear_classifier_is_an_error(loader):
    model = new_model(classes=0)
    before = copied(model.state_dict())
    with pytest.raises(ModelError, match="no linear classifier"):
        initialize(model, loader)
    assert same(model.state_dict(), before)


def test_a_convolutional_classifier_is_solved_for(loader):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=3).eval()
    report = initialize(model, loader)
    images, labels = labelled_images(48, 3)
    own = next(c for c in report.candidates if c.name == "own_body")
    assert report.chosen == "own_body"
    assert 100 * (model(images).argmax(1) == labels).float().mean() >= own.accuracy > 60


def test_a_bundle_of_a_torchvision_model_covers_it(loader, bundle):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=3).eval()
    theirs = Bundle(bundle.config, random_generator("torchvision:squeezenet1_1"))
    report = initialize(model, loader, generator=theirs, num_candidates=1)
    assert {c.kind for c in report.candidates} == {"as_passed", "own_body", "base", "generated"}


def test_model_of_one_output_is_an_error(loader):
    with pytest.raises(ModelError, match="num_classes >= 2"):
        initialize(new_model(classes=1), loader)


def exploding_bundle(bundle):
    generator = random_generator()
    generator.vae.basis.mul_(1e25)
    return Bundle(bundle.config, generator)


def test_generated_weights_that_explode_are_discarded(model, loader, bundle):
    report = initialize(model, loader, generator=exploding_bundle(bundle), num_candidates=2)
    scores = {c.name: c for c in report.candidates}
    exploded = {"generated_0", "generated_1_x0.5"}
    assert exploded <= scores.keys()
    assert all(scores[n].loss != scores[n].loss for n in exploded)
    discarded = {f"{name} was discarded: its predictions are not finite" for name in exploded}
    assert {n for n in report.notes if "discarded" in n} == discarded
    assert report.chosen in ("own_body_as_is", "own_body", "base")
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_own_weights_that_are_no_numbers_are_replaced_by_the_bundles(model, loader, bundle):
    with torch.no_grad():
        model.layer1[0].conv1.weight.fill_(float("nan"))
    report = initialize(model, loader, generator=bundle, num_candidates=1)
    assert report.chosen in ("base", "generated_0")
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_own_weights_that_are_no_numbers_are_an_error_without_a_bundle(model, loader):
    with torch.no_grad():
        model.layer1[0].conv1.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="finite"):
        initialize(model, loader, generator=None)


def test_no_more_images_are_read_than_asked_for(model):
    batches = [labelled_images(10, 2, seed=s) for s in range(5)]
    report = initialize(model, batches, generator=None, num_support=25)
    assert report.images_read == 25
    whole = new_model()
    images, labels = (torch.cat(parts)[:25] for parts in zip(*batches, strict=True))
    initialize(whole, [(images, labels)], generator=None)
    assert same(model.state_dict(), whole.state_dict())


def test_classes_without_images_are_reported_and_never_predicted(loader, bundle):
    model = new_model(classes=6)
    report = initialize(model, loader, generator=bundle, num_candidates=1)
    assert (report.num_classes, report.classes_seen) == (6, 3)
    assert "of 3 classes no image was read, and the head never predicts them" in report.notes
    assert accuracy(model, *loader.dataset.tensors) > 95


def test_bundle_itself_is_unchanged(model, loader, bundle):
    before = copied(bundle.generator.state_dict())
    initialize(model, loader, generator=bundle, num_candidates=1)
    assert same(bundle.generator.state_dict(), before)


def test_model_in_double_precision(loader, bundle):
    model = new_model().double()
    initialize(model, [(x.double(), y) for x, y in loader], generator=bundle, num_candidates=1)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    images, labels = loader.dataset.tensors
    assert accuracy(model, images.double(), labels) > 95
