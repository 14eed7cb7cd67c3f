"""A loader gives the next epoch that it would have given, whatever object holds it and whatever its sampler keeps."""

import numpy as np
import pytest
import torch
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, Sampler, TensorDataset

from tests.zoo_builder.synthetic import seeded
from zoo_builder.random_state import unchanged_random_state
from zoo_builder.support_set import read_support_set

IMAGES, LABELS = torch.arange(24.0)[:, None, None, None].repeat(1, 3, 2, 2), torch.arange(24) % 3


class Wrapper:
    """As a loader that moves its batches to a device."""

    def __init__(self, loader):
        self._dl = loader

    def __iter__(self):
        yield from self._dl


def shuffled():
    return DataLoader(TensorDataset(IMAGES, LABELS), 4, shuffle=True, generator=seeded(1))


def prefetching():
    pixels = [(image.byte().numpy(), int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    loader = DataLoader(pixels, 4, shuffle=True, generator=seeded(1), collate_fn=fast_collate)
    return PrefetchLoader(loader, device=torch.device("cpu"))


def order(loader):
    return [round(i, 3) for images, _ in loader for i in images[:, 0, 0, 0].tolist()]


def assert_next_epoch_is_as_if_never_read(make):
    np.random.seed(0)
    expected, second = order(loader := make()), order(loader)
    assert expected != second
    np.random.seed(0)
    loader = make()
    assert len(read_support_set(loader, 10, 3)) == 10
    assert [order(loader), order(loader)] == [expected, second]


@pytest.mark.parametrize("within", [shuffled, prefetching, lambda: Wrapper(shuffled())], ids=["torch", "timm", "twice"])
def test_a_loader_in_an_object_of_ones_own(within):
    assert_next_epoch_is_as_if_never_read(lambda: Wrapper(within()))


class Rotating(Sampler):
    """Keeps its indices in `state`, whose order `turn` changes when it is gone through."""

    def __init__(self, state, turn, indices=lambda state: state):
        self.state, self._turn, self._indices = state, turn, indices

    def __iter__(self):
        np.random.shuffle(self._turn(self))
        return iter([int(i) for i in self._indices(self.state)])

    def __len__(self):
        return 24


def own(sampler):
    return sampler.state


def of_two(state):
    return [*state[0], *state[1]]


def rebound(sampler):
    sampler.state = [*sampler.state]
    return sampler.state


KEPT = {
    "list": lambda: Rotating([*range(24)], own),
    "array": lambda: Rotating(np.arange(24), own),
    "tensor": lambda: Rotating(torch.arange(24), lambda s: s.state.numpy()),
    "another list": lambda: Rotating([*range(24)], rebound),
    "lists": lambda: Rotating([[*range(12)], [*range(12, 24)]], lambda s: s.state[1], of_two),
    "lists by class": lambda: Rotating({0: [*range(12)], 1: [*range(12, 24)]}, lambda s: s.state[1], of_two),
    "arrays by class": lambda: Rotating({0: np.arange(12), 1: np.arange(12, 24)}, lambda s: s.state[0], of_two),
    "a count by class": lambda: Rotating({"first": 0}, count, lambda state: np.roll(np.arange(24), state["first"])),
}


def count(sampler):
    sampler.state["first"] += 1
    return [0]


@pytest.mark.parametrize("kind", KEPT)
def test_a_sampler_that_keeps_an_order_of_its_own(kind):
    assert_next_epoch_is_as_if_never_read(lambda: DataLoader(TensorDataset(IMAGES, LABELS), 4, sampler=KEPT[kind]()))


def test_what_a_sampler_holds_besides_is_not_touched():
    """A dataset that is a list, say: neither is it copied nor replaced."""
    frozen = np.arange(24)
    frozen.flags.writeable = False
    items = [[torch.zeros(3, 2, 2), 0], [torch.ones(3, 2, 2), 1]]
    sampler = Rotating(frozen, lambda s: [0])
    sampler.data_source, sampler.weights = items, torch.rand(24)
    inner, weights = items[0], sampler.weights
    with unchanged_random_state(DataLoader(items, sampler=sampler)):
        items[0][1] = 2
        weights[0] = 3
    assert sampler.data_source is items
    assert items[0] is inner
    assert items[0][1] == 2
    assert sampler.weights is weights
    assert weights[0] == 3
