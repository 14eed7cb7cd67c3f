"""Reading a loader: what comes out, what is refused, and that no trace is left."""

import random
import re

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, TensorDataset

from tests.zoo_builder.synthetic import seeded
from zoo_builder.errors import DataError
from zoo_builder.support_set import IMAGE_KEYS, LABEL_KEYS, read_support_set


class Augmented(Dataset):
    """Each image is its index plus noise from each of the three global random states."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return torch.full((3, 4, 4), i + noise / 4), i % 4


def shuffled(**options):
    return DataLoader(Augmented(), batch_size=8, shuffle=True, generator=seeded(7), **options)


def globally_shuffled():
    return DataLoader(Augmented(), batch_size=8, shuffle=True)


def own_sampler():
    return DataLoader(Augmented(), batch_size=8, sampler=RandomSampler(Augmented(), generator=seeded(7)))


def own_batch_sampler():
    sampler = RandomSampler(Augmented(), generator=seeded(7))
    return DataLoader(Augmented(), batch_sampler=BatchSampler(sampler, 8, drop_last=False))


def persistent_workers():
    return shuffled(num_workers=1, persistent_workers=True)


def with_workers():
    return shuffled(num_workers=1)


class OwnOrder(Sampler):
    """Indices in an order of its own `state`, whatever it is called."""

    def __init__(self, state, permuted):
        self.state, self._permuted = state, permuted

    def __iter__(self):
        return iter(self._permuted(self))

    def __len__(self):
        return len(Augmented())


class Counting(OwnOrder):
    def __iter__(self):
        self.state += 1
        return super().__iter__()


def numpy_order(sampler):
    return sampler.state.permutation(40).tolist()


ORDERS = {
    "torch": lambda: OwnOrder(seeded(7), lambda s: torch.randperm(40, generator=s.state).tolist()),
    "numpy": lambda: OwnOrder(np.random.default_rng(7), numpy_order),
    "numpy's old": lambda: OwnOrder(np.random.RandomState(7), numpy_order),
    "python": lambda: OwnOrder(random.Random(7), lambda s: s.state.sample(range(40), 40)),
    "epochs": lambda: Counting(0, lambda s: torch.randperm(40, generator=seeded(s.state)).tolist()),
}


@pytest.mark.parametrize("within", ["sampler", "batch_sampler", "another"])
@pytest.mark.parametrize("kind", ORDERS)
def test_next_epoch_is_as_if_never_read_with_a_sampler_of_ones_own(kind, within):
    def make():
        order = ORDERS[kind]()
        if within == "sampler":
            return DataLoader(Augmented(), 8, sampler=order)
        if within == "batch_sampler":
            return DataLoader(Augmented(), batch_sampler=BatchSampler(order, 8, drop_last=False))
        return DataLoader(Augmented(), 8, sampler=OwnOrder(order, lambda s: list(s.state)))

    test_next_epoch_is_as_if_never_read(make)


def set_global_states():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


def global_states():
    return repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()


def batch(n=6, classes=3):
    return torch.arange(n * 12.0).view(n, 3, 2, 2), torch.arange(n) % classes


@pytest.mark.parametrize("count", [5, 6, 14])
def test_the_first_images_are_read_and_no_more_than_asked_for(count):
    taken = []

    def batches():
        for i in range(5):
            x, y = batch()
            taken.append((x + 100 * i, y))
            yield taken[-1]

    support = read_support_set(batches(), count, 3)
    assert torch.equal(support.images, torch.cat([x for x, _ in taken])[:count])
    assert torch.equal(support.labels, torch.cat([y for _, y in taken])[:count])
    assert len(taken) == -(-count // 6)


def test_short_loader_gives_all_it_has():
    x, y = batch(4)
    support = read_support_set([batch(6), (x + 100, y)], 100, 3)
    assert len(support) == 10
    assert support.classes_seen == 3


def test_images_are_float32_and_labels_int64_whatever_the_loader_gives():
    x, y = batch()
    support = read_support_set([(x.half(), y.int())], 6, 5)
    assert support.images.dtype == torch.float32
    assert support.labels.dtype == torch.int64
    assert (support.num_classes, support.classes_seen) == (5, 3)


@pytest.mark.parametrize("keys", [("pixel_values", "labels"), ("image", "label"), ("images", "targets")])
def test_dicts_and_pairs_read_the_same(keys):
    support = read_support_set([dict(zip(keys, batch(), strict=True))], 4, 3)
    assert torch.equal(support.images, batch()[0][:4])
    assert torch.equal(support.labels, batch()[1][:4])


@pytest.mark.parametrize("make", [shuffled, globally_shuffled, own_sampler, with_workers])
def test_next_epoch_is_as_if_never_read(make):
    set_global_states()
    expected = [(x.tolist(), y.tolist()) for x, y in make()]
    set_global_states()
    loader = make()
    before = global_states()
    assert len(read_support_set(loader, 20, 4)) == 20
    assert global_states() == before
    assert [(x.tolist(), y.tolist()) for x, y in loader] == expected


@pytest.mark.parametrize("make", [own_batch_sampler, persistent_workers])
def test_next_epoch_is_as_if_never_read_from_rarer_loaders(make):
    test_next_epoch_is_as_if_never_read(make)


def test_the_loaders_generator_is_put_back():
    loader = shuffled()
    before = loader.generator.get_state()
    read_support_set(loader, 20, 4)
    assert torch.equal(loader.generator.get_state(), before)


def test_random_states_are_put_back_when_the_data_is_wrong():
    loader = shuffled()
    set_global_states()
    before, own = global_states(), loader.generator.get_state()
    with pytest.raises(DataError, match=r"0\.\.1"):
        read_support_set(loader, 20, 2)
    assert global_states() == before
    assert torch.equal(loader.generator.get_state(), own)


X, Y = batch()
NAN, INFINITE = X.clone(), X.clone()
NAN[2, 0, 0, 0], INFINITE[:2] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "no images"),
        ([(X[:0], Y[:0])], "no images"),
        ([(X, torch.ones(6, dtype=torch.long))], "label 1; at least two classes"),
        ([(X, Y + 1)], r"0..2 .* got 1..3"),
        ([(X, Y - 1)], r"0..2 .* got -1..1"),
        ([(NAN, Y)], "1 of 6 images hold NaN"),
        ([(INFINITE, Y)], "2 of 6 images hold NaN or infinite"),
        ([(X.byte(), Y)], "float tensor .* torch.uint8"),
        ([(X[0], Y[:3])], r"\[N, C, H, W\], got torch.float32 \[3, 2, 2\]"),
        ([(X, torch.rand(6, 3))], "sum to 1"),
        ([(X, Y.float())], "one integer an image"),
        ([(X, Y[:4])], r"one integer an image, \[6\]"),
        ([(X, Y), (torch.zeros(6, 3, 4, 4), Y)], "one shape"),
        ([X], "got Tensor"),
        ([{"x": X, "y": Y}], r"keys \['x', 'y'\]"),
        ([(X.numpy(), Y)], "got .ndarray, Tensor"),
    ],
    ids=[
        *("empty", "empty_batch", "one_class", "label_too_large", "negative_label", "nan", "infinite", "uint8"),
        *("no_batch_axis", "soft_labels", "float_labels", "fewer_labels", "two_shapes", "no_labels", "keys", "numpy"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_the_cause(batches, words):
    with pytest.raises(DataError, match=words):
        read_support_set(batches, 100, 3)


def test_a_plain_tensor_dataset_loader_works():
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    assert torch.equal(read_support_set(loader, 6, 3).images, X)


@pytest.mark.parametrize("keys", [("jpg", "cls"), ("x", "y"), ("image", "cls"), ("jpg", "label")])
def test_a_dict_with_other_names_is_told_which_are_taken(keys):
    with pytest.raises(DataError, match="as a pair or in a dict") as refused:
        read_support_set([dict(zip(keys, batch(), strict=True))], 4, 3)
    taken = (*IMAGE_KEYS, *LABEL_KEYS)
    assert all(re.search(rf"\b{key}\b", str(refused.value)) for key in (*keys, *taken))
