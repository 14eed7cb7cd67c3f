"""When the user's own body stays: trained or not, the bundle's base or another, and of how few images."""

import pytest
import torch

from d2nwg_init import initialize
from tests.d2nwg_init.conftest import new_model
from tests.d2nwg_init.test_initialize import keep_candidates
from tests.pretrained_generators.small import labelled_images


@pytest.mark.parametrize(("trained", "chosen"), [(False, "generated_0"), (True, "own_body_as_is")])
def test_one_image_a_class_gives_a_model_with_a_fresh_head_another(trained, chosen, bundle):
    """Left out, an image's class is unknown to every solved head, so that a random one seemed better."""
    images, labels = labelled_images(3, 3)
    assert sorted(labels.tolist()) == [0, 1, 2]
    model = new_model(classes=3)
    if trained:
        torch.nn.init.normal_(model.bn1.running_mean)
    report = initialize(model, [(images, labels)], generator=bundle, num_candidates=1)
    assert report.chosen == chosen
    assert (model.eval()(images).argmax(1) == labels).all()


def test_a_model_with_the_bundles_base_has_it_tried_once_and_no_advantage(loader, bundle):
    model = with_base_of(bundle)
    report = initialize(model, loader, generator=bundle, num_candidates=3, refining_steps=0)
    assert [c.kind for c in report.candidates] == ["as_passed", "base", "base", "generated", "generated"]
    best = min(report.candidates[1:], key=lambda c: c.loss)  # as it was passed it knows nothing
    assert report.chosen == best.name


def test_of_one_image_a_class_a_model_with_the_bundles_base_has_the_weakest_sample(bundle):
    images, labels = labelled_images(3, 3)
    report = initialize(with_base_of(bundle), [(images, labels)], generator=bundle)
    assert report.chosen == "generated_1_x0.5"


def with_base_of(bundle):
    """A model with the base's weights, rounded, and a fresh head."""
    model = new_model()
    rounded = {name: value.half().float() for name, value in bundle.generator.base.state_dict().items()}
    model.load_state_dict(rounded, strict=False)
    return model


def test_a_body_that_was_never_trained_goes_where_there_is_another(model, loader, bundle):
    assert initialize(new_model(), loader, generator=None).chosen.startswith("own_body")
    report = initialize(model, loader, generator=bundle, num_candidates=1, refining_steps=0)
    assert report.from_bundle
    losses = {c.name: c.loss for c in report.candidates}
    assert losses["own_body_as_is"] <= losses[report.chosen]  # it would have been chosen


def test_an_image_alone_in_its_class_judges_nobody(bundle, monkeypatch):
    images, labels = labelled_images(9, 3)
    labels[-1] = 3
    candidates = keep_candidates(monkeypatch)
    initialize(new_model(classes=4), [(images, labels)], generator=bundle, num_candidates=1)
    alone = torch.bincount(labels)[labels] == 1
    assert alone.any()
    assert {len(c.losses) for c in candidates} == {int((~alone).sum())}
