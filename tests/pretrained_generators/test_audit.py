import json
import shutil
from dataclasses import replace

import pytest
import torch

from pretrained_generators.audit import (
    Sighting,
    gaussian,
    judge,
    largest_overlap,
    mann_whitney,
    nearest_distance,
    noisy,
)
from pretrained_generators.bundle import load_bundle
from pretrained_generators.training.audit_zoo import audit_zoo
from tests.cli.conftest import fail, succeed
from tests.pretrained_generators.small import RECIPE, save_random_bundle, seeded, write_measured_card
from zoo_builder.errors import BundleError


def test_distance_is_to_the_nearest_and_a_stretched_copy_has_none():
    known = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    for stretched in (0.1, 1.0, 3.0):
        assert nearest_distance(stretched * known[0], known) == pytest.approx(0, abs=1e-6)
    assert nearest_distance(torch.tensor([1.0, 0.0]), known) == pytest.approx(0.8)
    assert nearest_distance(-known[1], known[1:]) == 1  # what does the contrary is no copy
    assert nearest_distance(torch.tensor([7.0, 0.0]), known[1:]) == 1


def test_overlap_is_of_the_most_alike_mistakes():
    known = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]).bool()
    assert largest_overlap(torch.tensor([1, 0, 0, 0]).bool(), known) == 0.5
    assert largest_overlap(known[1], known) == 1
    assert largest_overlap(torch.zeros(4).bool(), torch.zeros(2, 4).bool()) == 0


def test_rank_test_is_low_where_the_first_are_nearer_and_agrees_with_its_mirror():
    near, far = [0.1, 0.2, 0.3, 0.4] * 4, [0.5, 0.6, 0.7, 0.8] * 4
    (z, p), (mirrored, not_nearer) = mann_whitney(near, far), mann_whitney(far, near)
    assert z < -4
    assert z == pytest.approx(-mirrored)
    assert p < 1e-4 < 1 - 1e-4 < not_nearer
    assert mann_whitney(near, near)[0] == pytest.approx(0)
    assert mann_whitney([], far) == (0, 1)
    assert mann_whitney([1, 2], [3, 4, 5]) == (pytest.approx(-(3**0.5)), pytest.approx(1 / 10))  # of ten orders one


def sightings(generated, held_out, mean=50.0):
    """Distances of models, each of a task of its own."""
    made = [Sighting(str(i), "d", "generated", d, 0.5, 80.0) for i, d in enumerate(generated)]
    made += [Sighting(str(i), "d", "held_out", d, 0.5, 90.0) for i, d in enumerate(held_out)]
    others = {"generated_shuffled": (1.0, 75.0), "generated_null": (1.0, 72.0), "zoo_mean": (1.0, mean)}
    others["training"] = (0.1, 99.0)
    return [*made, *(Sighting("0", "d", m, distance, 0.5, a) for m, (distance, a) in others.items())]


def test_verdict_tells_copies_from_models_of_their_own():
    apart = [1.0 + 0.01 * i for i in range(12)]
    near = [0.01 * i for i in range(12)]
    copying, honest = judge(sightings(near, apart)), judge(sightings(apart, near, mean=85.0))
    assert copying.copies
    assert str(copying).startswith("Copying")
    assert not honest.copies
    assert (honest.condition_drop, honest.null_drop) == (5, 8)
    assert (copying.beaten_by, honest.beaten_by) == ((), ("zoo_mean",))
    assert "zoo_mean" in str(honest)


def test_more_samples_of_a_task_are_no_more_evidence():
    apart, near = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.1, 0.2, 0.3, 0.4, 0.45, 0.48]
    for tasks in (2, 6):
        found = sightings(near[:tasks], apart[:tasks])
        again = judge(found + 9 * [s for s in found if s.method == "generated"])
        assert again == judge(found)
        assert again.copies is (None if tasks == 2 else True)
    mixed = sightings([0.1] * 6 + [2.0] * 6, apart)
    mixed = [replace(s, task=str(int(s.task) % 6)) for s in mixed]  # one sample of each task is near
    assert judge(mixed).copies is False


@pytest.mark.parametrize(("generated", "held_out", "copies"), [(2, 1, None), (4, 4, None), (8, 4, True), (16, 8, True)])
def test_copies_are_told_where_there_are_enough_models_to(generated, held_out, copies):
    found = judge(sightings([0.0] * generated, [0.5 + 0.01 * i for i in range(held_out)]))
    assert found.copies is copies
    assert str(found).startswith("Too few" if copies is None else "Copying")


def test_verdict_of_a_zoo_of_one_dataset_has_no_other_condition():
    found = judge([s for s in sightings([1.0] * 9, [0.5] * 9) if s.method != "generated_shuffled"])
    assert found.condition_drop is None
    assert "another dataset" not in str(found)


def test_noise_is_relative_to_each_tensor():
    delta = torch.cat([torch.full((4000,), 10.0), torch.zeros(4000)])
    shaken = noisy(delta, {"a": 4000, "b": 4000}, 0.3, seeded(0)) - delta
    assert shaken[:4000].std().item() == pytest.approx(3.0, rel=0.1)
    assert (shaken[4000:] == 0).all()


def test_gaussian_has_the_mean_and_the_spread_of_each_parameter():
    known = torch.stack([torch.tensor([0.0, 5.0]), torch.tensor([2.0, 5.0])])
    drawn = torch.stack([gaussian(known, seeded(i)) for i in range(2000)])
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, 5.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.tensor([2.0**0.5, 0.0]), atol=0.1, rtol=0)


def test_every_method_is_seen_on_every_task_that_was_held_back(zoo, trained):
    found = audit_zoo(load_bundle(trained), zoo, samples=2)
    config = load_bundle(trained).config
    assert set(config.learnt) | set(config.kept_back) == {e.id for e in zoo.entries()}
    assert {s.task for s in found} == set(config.kept_back)
    counts = {m: sum(s.method == m for s in found) for m in {s.method for s in found}}
    assert counts["generated"] == counts["generated_null"] == 2 * RECIPE.held_back
    assert counts["gaussian"] == counts["noise_on_nearest_0.3"] == 2 * RECIPE.held_back
    once = ("held_out", "nearest", "zoo_mean", "similarity_mean", "least_squares")
    assert all(counts[m] == RECIPE.held_back for m in once)
    assert counts["training"] == RECIPE.held_back * len(config.learnt)  # as few as they are, all are near
    assert all(s.distance < 1e-5 for s in found if s.method == "nearest")
    assert all(s.distance > 0 for s in found if s.method in ("held_out", "gaussian", "training"))
    assert all(0 <= s.overlap <= 1 and 0 <= s.accuracy <= 100 for s in found)


def test_command_writes_the_audit_and_tells_it_in_the_card(zoo, trained, tmp_path):
    bundle = shutil.copytree(trained, tmp_path / "bundle")
    text = succeed("generator", "audit", bundle, "--zoo", zoo.path, "--samples", "1")
    report = json.loads((bundle / "audit.json").read_text())
    assert report["verdict"]["text"] in " ".join(text.split())
    assert not (bundle / "README.md").exists()  # it has no results
    load_bundle(bundle)
    write_measured_card(bundle)
    assert report["verdict"]["text"] in (bundle / "README.md").read_text()
    assert (bundle / "audit.svg").read_text().startswith("<?xml")
    load_bundle(bundle)


def test_other_zoos_are_refused(zoo, tmp_path):
    save_random_bundle(tmp_path)
    assert "another base" in fail("generator", "audit", tmp_path, "--zoo", zoo.path)
    save_random_bundle(tmp_path, base_sha256=zoo.base_sha256)
    with pytest.raises(BundleError, match="train it again"):
        audit_zoo(load_bundle(tmp_path), zoo)
