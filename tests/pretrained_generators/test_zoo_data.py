from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrained_generators.generator import Generator
from pretrained_generators.training.zoo_data import draw_support, read_zoo_data, select_entries, target_delta
from pretrained_generators.weight_layout import WeightLayout
from tests.pretrained_generators.small import CHUNK, seeded, small_zoo
from tests.zoo_builder.tiny_zoo import rewrite
from zoo_builder.errors import ZooError


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.sampled_from([0, 1, 3, 4, 8]), min_size=2, max_size=40).filter(lambda y: len(set(y)) > 1),
    shots=st.integers(1, 6),
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
def test_drawn_support_is_a_renumbered_part_of_the_whole(labels, shots, classes, seed):
    labels = torch.tensor(labels)
    features = torch.stack([labels, torch.arange(len(labels))], dim=1).float()  # each image tells its class and place
    drawn, renumbered, count = draw_support(features, labels, shots, classes, seeded(seed))
    assert renumbered.unique().tolist() == list(range(count))
    assert 2 <= count <= min(classes, len(labels.unique()))
    assert renumbered.bincount().max() <= shots
    assert drawn[:, 1].unique().numel() == len(drawn)  # no image twice
    assert torch.equal(features[drawn[:, 1].long()], drawn)
    pairs = set(zip(drawn[:, 0].tolist(), renumbered.tolist(), strict=True))
    assert len(pairs) == count  # one new label for each class
    assert len({original for original, _ in pairs}) == count


def test_draws_differ_by_seed_alone():
    labels = torch.arange(40) % 4
    features = torch.arange(40.0)[:, None]
    first, again, other = (draw_support(features, labels, 5, 4, seeded(s))[0].tolist() for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_class_is_drawn_at_times():
    labels = torch.arange(40) % 4
    drawn = {c for s in range(20) for c in draw_support(labels[:, None], labels, 1, 2, seeded(s))[0].flatten().tolist()}
    assert drawn == {0, 1, 2, 3}


def test_target_is_the_delta_at_its_best_strength(zoo):
    strengths = set()
    for entry in zoo.entries():
        target, delta = target_delta(entry), entry.delta()
        strengths.add(entry.metrics["best_strength"])
        for name in delta:
            assert torch.equal(target[name], delta[name] * entry.metrics["best_strength"])
    assert strengths == {0.5, 1.0}


def test_target_of_what_was_not_trained_is_zero(tmp_path):
    [entry, *_] = small_zoo(tmp_path, 1, scope="head+norm").entries()
    target, trained = target_delta(entry), entry.delta()
    assert {k: v.shape for k, v in target.items()} == entry.zoo.shapes
    assert 0 < len(trained) < len(target)
    assert {k for k, v in target.items() if v.any()} == trained.keys()


def test_chunks_are_those_of_the_targets_and_features_those_of_the_base(zoo, generator):
    entries = select_entries(zoo, ("branch",))
    layout = WeightLayout.of(generator.base, CHUNK).scaled_to(target_delta(e) for e in entries)
    generator = Generator(replace(generator.config, layout=layout))
    data = read_zoo_data(entries, generator)
    assert data.chunks.shape == (10, layout.num_chunks, CHUNK)
    back = layout.to_tensors(data.chunks[3])
    assert all(torch.equal(v, back[k]) for k, v in target_delta(entries[3]).items())
    assert data.chunks.square().mean().sqrt().item() == pytest.approx(1, abs=0.3)  # standardised
    images, labels = entries[3].support()
    torch.testing.assert_close(data.features[3], generator.features(images.float()), rtol=1e-3, atol=1e-4)
    assert torch.equal(data.labels[3], labels)


def test_entries_of_other_kinds_are_not_selected(zoo):
    assert len(select_entries(zoo, ("branch",))) == 10
    with pytest.raises(ZooError, match="0 entries"):
        select_entries(zoo, ("finetune",))


def test_entries_of_heads_alone_or_of_no_use_are_nothing_to_learn_from(tmp_path):
    heads = small_zoo(tmp_path / "heads", 8, scope="head")
    useless = small_zoo(tmp_path / "useless", 8)
    for entry in list(useless.entries()):
        rewrite(entry, metrics=entry.metrics | {"best_strength": 0.0})
    for zoo in (heads, useless):
        with pytest.raises(ZooError, match=r"no entry of \['branch'\] changes the body"):
            select_entries(zoo, ("branch",))


def test_too_few_entries_are_an_error(tmp_path):
    with pytest.raises(ZooError, match=r"7 entries.*at least 8"):
        select_entries(small_zoo(tmp_path, 7), ("branch",))
