"""The advice on the learning rate is what the benchmark found, and is given for nothing else."""

import json
from pathlib import Path

import pytest

from d2nwg_init import initialize
from d2nwg_init.learning_rate import FRESH_HEAD, INITIALIZED, WITHOUT_BATCHNORM, measured_learning_rate

CHOICES = Path(__file__).parents[2] / "docs/results/transfer_choices.json"


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
    assert rows["initialize"]["learning_rate"] == rows["generated_mean"]["learning_rate"] == rate


def test_fresh_heads_have_what_the_development_sets_chose():
    rows = json.loads(CHOICES.read_text())["choices"]["mobilenetv3_small_050-64"]["methods"]
    assert rows["pretrained"]["learning_rate"] == FRESH_HEAD == 3 * INITIALIZED


@pytest.mark.parametrize("options", [{}, {"scope": "body", "head": "solve", "refining_steps": 0}])
def test_generated_weights_come_with_it(options, model, loader, bundle):
    report = initialize(model, loader, generator=bundle, num_candidates=1, select=False, **options)
    assert report.learning_rate == INITIALIZED


def test_other_bodies_come_without():
    for kind in ("own_body", "base", "as_passed"):
        assert measured_learning_rate(kind, solved_head=True, whole_body=True, has_batchnorm=True) is None


@pytest.mark.parametrize("options", [{"head": "fresh"}, {"head": "keep"}, {"scope": "norm"}, {"scope": ["layer2"]}])
def test_what_was_not_measured_comes_without(options, model, loader, bundle):
    report = initialize(model, loader, generator=bundle, num_candidates=1, select=False, **options)
    assert report.chosen == "generated_0"
    assert report.learning_rate is None


def test_the_users_own_body_comes_without(model, loader):
    assert initialize(model, loader, generator=None).learning_rate is None
