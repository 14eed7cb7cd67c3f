"""Domains: the same pictures through another eye, fixed by name and seed."""

import pytest
import torch

from tests.zoo_builder.synthetic import seeded, striped_images
from zoo_builder.datasets.image_dataset import resize_images
from zoo_builder.domains import DOMAINS, apply_domain
from zoo_builder.errors import RecipeError

SEEDED = ("recolour", "many_colours")


@pytest.fixture(scope="module")
def images():
    return resize_images(striped_images(8)[0], 32)


@pytest.mark.parametrize("domain", DOMAINS)
def test_shape_and_type_are_kept_and_only_plain_changes_nothing(images, domain):
    before = images.clone()
    seen = apply_domain(images, domain, 3)
    assert (seen.shape, seen.dtype) == (images.shape, torch.uint8)
    assert torch.equal(seen, images) == (domain == "plain")
    assert torch.equal(images, before)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_look_depends_on_the_seed_and_not_on_the_global_state(images, domain):
    first = apply_domain(images, domain, 3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, apply_domain(images, domain, 3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("domain", [*SEEDED, "rotate"])
def test_another_seed_is_another_look(images, domain):
    looks = {apply_domain(images, domain, seed).numpy().tobytes() for seed in range(8)}
    assert len(looks) == (3 if domain == "rotate" else 8)


@pytest.mark.parametrize("domain", sorted({*DOMAINS} - {"many_colours"}))
def test_an_image_looks_the_same_whatever_its_neighbours(images, domain):
    many = images.repeat(200, 1, 1, 1)[:, :, :8, :8]  # more than one part of 1024
    seen = apply_domain(many, domain, 3)
    alone = apply_domain(many[5:6], domain, 3)
    assert torch.equal(seen[5:6], alone)
    assert torch.equal(seen[-3:], seen[5:8])


def test_inverting_twice_is_the_identity():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    once = apply_domain(every, "invert", 0)
    assert torch.equal(once, 255 - every)
    assert torch.equal(apply_domain(once, "invert", 1), every)


def test_rotating_four_times_is_the_identity(images):
    seen = images
    for _ in range(4):
        seen = apply_domain(seen, "rotate", 5)
    assert torch.equal(seen, images)


@pytest.mark.parametrize("domain", ["gray", "edges"])
def test_colour_is_gone(images, domain):
    seen = apply_domain(images, domain, 0)
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])


def test_edges_are_where_the_picture_changes():
    picture = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    picture[..., 8:] = 255
    seen = apply_domain(picture, "edges", 0)[0, 0]
    assert (seen[:, 7:9] == 255).all()
    assert seen[:, :7].max() == seen[:, 9:].max() == 0


@pytest.mark.parametrize("domain", ["blur", "pixelate", "coarse"])
def test_detail_is_lost_and_brightness_is_kept(domain):
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=seeded(0), dtype=torch.uint8)
    seen = apply_domain(noise, domain, 0).float()
    assert seen.std() < 0.5 * noise.float().std()
    assert abs(seen.mean() - noise.float().mean()) < 3


@pytest.mark.parametrize("seed", range(5))
def test_recoloured_pictures_stay_legible(seed):
    picture = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    picture[..., 4:] = 255
    seen = apply_domain(picture, "recolour", seed).float()
    assert (seen[..., 0] - seen[..., -1]).abs().sum(1).min() > 0.85 * 255


def test_unknown_domain_names_the_nearest(images):
    with pytest.raises(RecipeError, match="did you mean 'rotate'"):
        apply_domain(images, "rotat", 0)
