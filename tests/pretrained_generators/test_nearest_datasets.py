"""How far images are from a bundle's datasets: the unit, what it does not depend on, and how it is kept."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from pretrained_generators.bundle import TrainedOn, load_bundle, statistics_file
from pretrained_generators.nearest_datasets import (
    ENOUGH_IMAGES,
    Neighbour,
    feature_statistics,
    nearest_datasets,
    neighbours,
)
from tests.pretrained_generators.small import SIZE, labelled_images, random_generator, save_random_bundle, seeded
from zoo_builder.errors import BundleError

NAMES = ("bands", "noise", "flat")


def images_of(name, seed=0, count=80):
    noise = seeded(seed)
    if name == "bands":
        return labelled_images(count, 3, seed=seed)[0]
    if name == "noise":
        return torch.rand(count, 3, SIZE, SIZE, generator=noise)
    return torch.rand(count, 3, 1, 1, generator=noise).expand(-1, -1, SIZE, SIZE).contiguous()


def generator_of_three():
    generator = random_generator()
    generator.statistics = torch.stack(
        [feature_statistics(generator, generator.features(images_of(n, seed=9))) for n in NAMES]
    )
    return generator


@pytest.fixture
def path(tmp_path):
    trained_on = tuple(TrainedOn(n, 2) for n in NAMES)
    save_random_bundle(tmp_path / "three", generator=generator_of_three(), trained_on=trained_on)
    return tmp_path / "three"


def test_the_unit_is_the_median_distance_between_nearest_datasets():
    """On a line at 0, 2 and 8: the nearest others are 2, 2 and 6 away; a dataset at 11 is 3 from the last."""
    statistics = torch.zeros(3, 2, 1)
    statistics[:, 0, 0] = torch.tensor([0.0, 2.0, 8.0])
    here = torch.tensor([[11.0], [0.0]])
    assert neighbours(here, statistics, "abc") == (Neighbour("c", 1.5), Neighbour("b", 4.5), Neighbour("a", 5.5))


def test_mean_and_deviation_count_alike():
    statistics = torch.zeros(2, 2, 1)
    statistics[1, 0] = 5.0
    assert neighbours(torch.tensor([[3.0], [4.0]]), statistics, "ab")[0].name == "b"  # 20 ** 0.5, before 25 ** 0.5


@pytest.mark.parametrize(
    "statistics", [torch.zeros(0, 2, 3), torch.zeros(1, 2, 3), torch.zeros(2, 2, 3), torch.full((2, 2, 3), 1e38)]
)
def test_where_there_is_no_distance_none_is_told(statistics):
    assert neighbours(torch.zeros(2, 3), statistics, "ab") == ()


@pytest.mark.parametrize("name", NAMES)
def test_other_images_of_a_dataset_are_nearest_to_it(path, name):
    found = nearest_datasets(load_bundle(path).generator, images_of(name))
    assert found[0].name == name
    assert [n.distance for n in found] == sorted(n.distance for n in found)
    assert {n.name for n in found} == set(NAMES)


def test_neither_normalisation_nor_order_has_an_influence(path):
    generator, images = load_bundle(path).generator, images_of("bands")
    before = nearest_datasets(generator, images)
    for other in (images * 3 - 1, images.flip(0)):
        for a, b in zip(before, nearest_datasets(generator, other), strict=True):
            assert a.name == b.name
            assert a.distance == pytest.approx(b.distance, rel=1e-3)


def test_of_few_images_and_of_other_bundles_nothing_is_told(path, tmp_path):
    generator, images = load_bundle(path).generator, images_of("bands")
    assert nearest_datasets(generator, images[:ENOUGH_IMAGES])
    assert nearest_datasets(generator, images[: ENOUGH_IMAGES - 1]) == ()
    save_random_bundle(tmp_path / "without")
    assert nearest_datasets(load_bundle(tmp_path / "without").generator, images) == ()


def test_it_is_kept_beside_the_weights_and_does_not_change_them(path, tmp_path):
    again = save_random_bundle(tmp_path / "without")
    bundle = load_bundle(path)
    assert bundle.config.weights_sha256 == again.weights_sha256
    assert torch.equal(bundle.generator.statistics, generator_of_three().statistics.half().float())
    bundle.generator.save_pretrained(tmp_path / "saved")
    saved = load_bundle(tmp_path / "saved")
    assert torch.equal(saved.generator.statistics, bundle.generator.statistics)


def test_of_a_bundle_from_the_hub_the_commit_is_known(path):
    assert load_bundle(path).generator.revision is None
    assert load_bundle(path, blobs=path.parent / "blobs").generator.revision == "three"


HOSTILE = {
    "of fewer datasets": {"statistics": torch.zeros(2, 2, 96)},
    "of more features": {"statistics": torch.zeros(3, 2, 97)},
    "of integers": {"statistics": torch.zeros(3, 2, 96, dtype=torch.int64)},
    "of infinite numbers": {"statistics": torch.full((3, 2, 96), float("inf"))},
    "of another name": {"statistic": torch.zeros(3, 2, 96)},
    "with more beside": {"statistics": torch.zeros(3, 2, 96), "more": torch.zeros(1)},
}


@pytest.mark.parametrize("case", [*HOSTILE, "no safetensors"])
def test_what_does_not_fit_the_config_is_refused(path, case):
    file = path / "datasets.safetensors"
    assert load_bundle(path).generator.statistics.shape == (3, 2, 96)
    if case in HOSTILE:
        save_file(HOSTILE[case], file)
    else:
        file.write_bytes(b"\x80\x04pickle")
    config = json.loads((path / "config.json").read_text())
    [told] = [f for f in config["files"] if f["name"] == file.name]
    data = file.read_bytes()
    told |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"datasets\.safetensors"):
        load_bundle(path)


def test_it_is_not_believed_before_it_is_recorded(tmp_path):
    save_random_bundle(tmp_path)
    (tmp_path / "datasets.safetensors").write_bytes(statistics_file(torch.zeros(1, 2, 96)))
    with pytest.raises(BundleError, match=r"datasets\.safetensors"):
        load_bundle(tmp_path)
