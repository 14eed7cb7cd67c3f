"""The advice on the learning rate is what the benchmark found, and is given for nothing else."""

import json
from pathlib import Path

import pytest
import torch

from d2nwg_init import initialize
from d2nwg_init.learning_rate import INITIALIZED, OWN_BODY, WITHOUT_BATCHNORM, measured_learning_rate
from tests.pretrained_generators.small import labelled_images, seeded

RESULTS = Path(__file__).parents[2] / "docs/results"
CHOICES = RESULTS / "transfer_choices.json"


@pytest.mark.parametrize(
    ("bundle", "rate"),
    [
        ("mobilenetv3_small_050-64", INITIALIZED),
        ("efficientvit_m0-64", INITIALIZED),
        ("squeezenet1_1-64", WITHOUT_BATCHNORM),
    ],
)
def test_it_is_what_the_development_sets_chose(bundle, rate):
    rows = json.loads(CHOICES.read_text())["choices"][bundle]["methods"]
    assert rows["initialize"]["learning_rate"] == rows["refined"]["learning_rate"] == rate


def test_they_chose_no_one_rate_for_generated_weights_that_are_not_refined():
    rows = json.loads(CHOICES.read_text())["choices"]
    rates = {b: rows[b]["methods"]["generated_mean"]["learning_rate"] for b in rows}
    assert rates["mobilenetv3_small_050-64"] != rates["efficientvit_m0-64"]  # both with BatchNorm


def test_fresh_heads_want_thrice_of_it():
    rows = json.loads(CHOICES.read_text())["choices"]["mobilenetv3_small_050-64"]["methods"]
    assert rows["pretrained"]["learning_rate"] == 3 * INITIALIZED


@pytest.mark.parametrize("options", [{}, {"scope": "all"}])
def test_generated_weights_that_are_refined_come_with_it(options, model, bundle):
    images, labels = labelled_images(96, 3)
    images += 3 * torch.randn(images.shape, generator=seeded(0))  # else there is nothing to refine
    report = initialize(model, [(images, labels)], generator=bundle, num_candidates=1, select=False, **options)
    assert report.refinement.kept
    assert report.learning_rate == INITIALIZED


def test_generated_weights_that_are_not_refined_come_without(model, loader, bundle):
    given = {"num_candidates": 1, "select": False, "scope": "body", "head": "solve", "refining_steps": 0}
    assert initialize(model, loader, generator=bundle, **given).learning_rate is None


def test_a_body_that_was_never_trained_comes_without():
    known = {"solved_head": True, "whole_body": True, "has_batchnorm": True, "absorbing": False, "refined": True}
    assert measured_learning_rate("own_body", **known, pretrained=True) == OWN_BODY
    assert measured_learning_rate("own_body", **known, pretrained=False) is None


def test_a_refined_body_of_the_users_own_has_what_was_best_for_a_model_of_no_bundle():
    rows = json.loads((RESULTS / "uncovered.json").read_text())["rows"]
    measured = {r["method"]: float(r["condition"].split("learning rate ")[1].split(",")[0]) for r in rows}
    assert measured["initialize"] == OWN_BODY
    assert measured["pretrained"] > 3 * OWN_BODY  # of which the report advises a third
    assert measured_learning_rate("own_body", True, True, has_batchnorm=True, absorbing=False, refined=True) == OWN_BODY


@pytest.mark.parametrize(
    ("kind", "has_batchnorm", "refined"),
    [
        ("own_body", True, False),
        ("own_body", False, True),
        ("base", True, False),
        ("generated", True, False),
        ("probe", False, False),
        ("as_passed", True, False),
    ],
)
def test_other_bodies_come_without(kind, has_batchnorm, refined):
    assert measured_learning_rate(kind, True, True, has_batchnorm, False, refined) is None


@pytest.mark.parametrize("kind", ["probe", "generated", "base"])
def test_bodies_of_a_base_that_absorbs_come_without(kind):
    known, absorbing = (measured_learning_rate(kind, True, True, True, a, refined=True) for a in (False, True))
    assert known is not None
    assert absorbing is None


@pytest.mark.parametrize("options", [{"head": "fresh"}, {"head": "keep"}, {"scope": "norm"}, {"scope": ["layer2"]}])
def test_what_was_not_measured_comes_without(options, model, loader, bundle):
    report = initialize(model, loader, generator=bundle, num_candidates=1, select=False, **options)
    assert report.chosen == "generated_0"
    assert report.learning_rate is None


def test_an_untrained_body_of_the_users_own_comes_without(model, loader):
    assert initialize(model, loader, generator=None).learning_rate is None
