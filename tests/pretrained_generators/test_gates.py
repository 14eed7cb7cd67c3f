import math

import pytest
import torch

from pretrained_generators.training.gates import (
    GainKept,
    LeftOut,
    reconstruction_gain_kept,
    sampling_gain_kept,
)
from pretrained_generators.training.zoo_data import select_entries, target_delta
from tests.pretrained_generators.small import copied, labelled_images, random_generator, same, seeded


def deltas(generator, by, seed=0):
    noise = seeded(seed)
    return {k: by * torch.randn(p.shape, generator=noise) for k, p in generator.base.named_parameters()}


def test_measuring_leaves_the_base_as_it_was(generator):
    before = copied(generator.base.state_dict())
    LeftOut(generator, *labelled_images(30, 3)).accuracy(deltas(generator, 0.1))
    assert same(generator.base.state_dict(), before)


def test_base_is_put_back_when_the_images_cannot_be_used():
    generator = random_generator()
    before = copied(generator.base.state_dict())
    images, labels = labelled_images(30, 3)
    with pytest.raises(RuntimeError):
        LeftOut(generator, images, labels[:4]).accuracy(deltas(generator, 0.1))
    with pytest.raises(RuntimeError):
        LeftOut(generator, torch.zeros(4, 5, 32, 32), torch.arange(4) % 2)
    assert same(generator.base.state_dict(), before)


def test_no_delta_is_the_base(generator):
    images, labels = labelled_images(30, 3)
    left_out = LeftOut(generator, images, labels)
    assert torch.equal(left_out.logits(deltas(generator, 0.0)), left_out.logits({}))


def test_what_was_judged_before_leaves_no_trace(generator):
    images, labels = labelled_images(30, 3)
    left_out = LeftOut(generator, images, labels)
    first = left_out.logits({})
    left_out.logits(deltas(generator, 0.1))
    assert torch.equal(left_out.logits({}), first)


def test_accuracy_is_high_where_classes_are_easy_and_by_chance_where_labels_are_noise(generator):
    images, labels = labelled_images(60, 3)
    assert LeftOut(generator, images, labels).accuracy({}) > 90
    assert LeftOut(generator, images, labels[torch.randperm(60, generator=seeded(0))]).accuracy({}) < 60


def test_body_that_sees_nothing_is_by_chance(generator):
    images, labels = labelled_images(60, 3)
    gone = {k: -p.detach() for k, p in generator.base.named_parameters()}
    assert LeftOut(generator, images, labels).accuracy(gone) < 45


def test_share_is_of_the_original_gain():
    assert GainKept(4.0, 3.0).share == 0.75
    assert math.isnan(GainKept(0.0, 3.0).share)
    assert math.isnan(GainKept(-1.0, 3.0).share)


def test_exact_reconstruction_keeps_the_whole_gain(zoo):
    generator = random_generator()
    entries = select_entries(zoo, ("branch",))[:4]
    generator.vae.start_at_svd(torch.stack([generator.config.layout.to_chunks(target_delta(e)) for e in entries]))
    kept = reconstruction_gain_kept(generator, entries)
    assert kept.reproduced == pytest.approx(kept.original, abs=1e-6)
    for name in ("basis", "mean"):
        getattr(generator.vae, name).zero_()
    assert reconstruction_gain_kept(generator, entries).reproduced == pytest.approx(0, abs=1e-6)


def test_samples_that_are_the_base_gain_nothing(zoo):
    generator = random_generator()
    entries = select_entries(zoo, ("branch",))[:3]
    generator.vae.basis.zero_()
    assert sampling_gain_kept(generator, entries, samples=1, seed=0).reproduced == pytest.approx(0, abs=1e-6)
    generator.vae.mean.copy_(generator.config.layout.to_chunks(generator.base_parameters()) * -1)
    assert sampling_gain_kept(generator, entries, samples=1, seed=0).reproduced < 0
