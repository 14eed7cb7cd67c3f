"""Loaders that give an image several times, each time augmented otherwise: it counts once."""

import pytest
import torch
from timm.data import AugMixDataset
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from tests.zoo_builder.synthetic import seeded
from zoo_builder.support_set import read_support_set

CLASSES = 3


class Noisy(Dataset):
    """Image i is i and, as augmentation does it, a fraction that is never twice the same. Counts what is fetched."""

    def __init__(self, count=12, first=0):
        self.count, self.first, self.fetched = count, first, [0] * count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.fetched[i] += 1
        return torch.full((3, 2, 2), self.first + i + torch.rand(()).item() / 2), (self.first + int(i)) % CLASSES


def read(data, count=100, **options):
    """The numbers of the images read, in their order, and the notes; labels are checked."""
    options = {"batch_size": 5, "shuffle": True, "generator": seeded(3)} | options
    support = read_support_set(DataLoader(data, **options), count, CLASSES)
    numbers = support.images[:, 0, 0, 0].long()
    assert torch.equal(support.labels, numbers % CLASSES)
    return numbers.tolist(), support.notes


EVERY = list(range(12))
# What holds the twelve images of a dataset four times.
FOURFOLD = {
    "repeated indices": lambda data: Subset(data, EVERY * 4),
    "indices of NumPy": lambda data: Subset(data, torch.tensor(EVERY * 4).numpy()),
    "indices of torch": lambda data: Subset(data, torch.tensor(EVERY * 4)),
    "concatenated": lambda data: ConcatDataset([data] * 4),
    "a part of what is concatenated": lambda data: Subset(ConcatDataset([data] * 5), range(6, 54)),
    "parts concatenated": lambda data: ConcatDataset([Subset(data, EVERY[:7]), Subset(data, EVERY[7:])] * 4),
}


@pytest.mark.parametrize("kind", FOURFOLD)
def test_an_image_that_a_dataset_holds_several_times_is_fetched_and_counts_once(kind):
    data = Noisy()
    numbers, notes = read(FOURFOLD[kind](data))
    assert sorted(numbers) == EVERY
    assert data.fetched == [1] * 12
    assert notes == ("36 images came again after they were read, and count once",)


def test_equal_indices_of_several_datasets_are_several_images():
    numbers, notes = read(ConcatDataset([Noisy(), Subset(Noisy(12, 12), EVERY), Noisy(6, 24)]))
    assert sorted(numbers) == list(range(30))
    assert notes == ()


def test_parts_without_repeats_are_read_in_the_loaders_order():
    data = ConcatDataset([Subset(Noisy(), EVERY[::-1]), Noisy(12, 12)])
    expected = [i for x, _ in DataLoader(data, 5, shuffle=True, generator=seeded(3)) for i in x[:, 0, 0, 0].long()]
    assert read(data, 11) == (expected[:11], ())


def test_a_dataset_that_is_asked_for_by_names():
    class Named(Noisy):
        def __getitem__(self, name):
            return super().__getitem__("abcdefghijkl".index(name))

    assert read(Named(), sampler=["a", "c", "a", "e"], shuffle=False)[0] == [0, 2, 4]
    assert sorted(read(Subset(Named(), list("aceace")))[0]) == [0, 2, 4]
    both = ConcatDataset([Noisy(), Noisy(12, 12)])
    assert read(both, sampler=[-1, 0, 23], shuffle=False)[0] == [23, 0]


class Arrays(Noisy):
    """As timm's datasets are read, before a transform makes arrays of them."""

    transform = (None, None, None)

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image.mul(8).byte(), label


def three_views(data):
    views = AugMixDataset(data, num_splits=3)
    views.augmentation, views.normalize = lambda x: x + 4, lambda x: x.numpy()
    return views


@pytest.mark.parametrize("batch_size", [1, 4, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_of_the_views_that_timm_makes_of_an_image_the_clean_one_counts(batch_size, workers):
    data = Arrays()
    loader = DataLoader(three_views(data), batch_size, shuffle=True, collate_fn=fast_collate, num_workers=workers)
    loader = PrefetchLoader(loader, mean=(0.0,) * 3, std=(1 / 255,) * 3, device=torch.device("cpu"))
    support = read_support_set(loader, 12, CLASSES)
    numbers = support.images[:, 0, 0, 0] / 8
    assert sorted(numbers.long().tolist()) == EVERY
    assert torch.equal(support.labels, numbers.long() % CLASSES)
    assert (numbers % 1).max() < 0.5  # which augmented views have more of
    assert support.batch == 3 * batch_size
    assert support.notes == ("of 3 views of each image the first alone counts",)


def test_views_of_images_of_one_class_count_once():
    loader = DataLoader(three_views(Arrays()), 4, sampler=[*EVERY[::3], *EVERY[1::3]], collate_fn=fast_collate)
    loader = PrefetchLoader(loader, mean=(0.0,) * 3, std=(1 / 255,) * 3, device=torch.device("cpu"))
    assert read_support_set(loader, 12, CLASSES).labels.tolist() == [0] * 4 + [1] * 4


def test_views_of_images_that_come_again_count_once():
    # In the second batch two images of four are new: two views of these are as many images as it drew.
    views = three_views(Arrays())
    views.num_splits = 2
    loader = DataLoader(views, 4, sampler=[0, 1, 2, 3, 0, 1, 4, 5], collate_fn=fast_collate)
    loader = PrefetchLoader(loader, mean=(0.0,) * 3, std=(1 / 255,) * 3, device=torch.device("cpu"))
    support = read_support_set(loader, 8, CLASSES)
    assert (support.images[:, 0, 0, 0] / 8).long().tolist() == EVERY[:6]


def in_blocks(items):
    images, labels = default_collate(items)
    return torch.cat([images, images + 100]), labels.repeat(2)


def test_views_of_a_collate_fn_of_ones_own_count_once_also_where_they_come_again():
    numbers, notes = read(Noisy(), shuffle=False, sampler=[3, 1, 3, 2, 0, 2, 2, 4], batch_size=4, collate_fn=in_blocks)
    assert numbers == [3, 1, 2, 0, 4]
    assert sorted(notes) == [
        "3 images came again after they were read, and count once",
        "of 2 views of each image the first alone counts",
    ]


def bags(items):
    """Of each item, or class, several images."""
    images, labels = default_collate(items)
    return torch.cat([images, images + 3]), torch.cat([labels, (labels + labels.numel() % 2) % CLASSES])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_several_images_of_an_item_that_are_no_views_all_count(batch_size):
    """With labels of their own; or, of one item, with the same, which is no more than chance."""
    loader = DataLoader(Noisy(), batch_size, sampler=[0, 7, 2], collate_fn=bags if batch_size == 3 else in_blocks)
    assert len(read_support_set(loader, 100, CLASSES)) == 6
