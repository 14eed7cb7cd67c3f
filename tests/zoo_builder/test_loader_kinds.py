"""The loaders that users bring: each is read, its images and labels are right, and it is as it was."""

import itertools
import multiprocessing
import time

import numpy as np
import pytest
import torch
from timm.data import FastCollateMixup, Mixup
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader, fast_collate
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from tests.zoo_builder.synthetic import seeded
from zoo_builder.errors import DataError
from zoo_builder.support_set import read_support_set

CLASSES = 5


class Sorted(Dataset):
    """Image i is filled with i; the first fifth is of class 0, and so on. Counts what is fetched, workers' too."""

    def __init__(self, count=100):
        self.count, self.fetched = count, torch.zeros(count, dtype=torch.int32).share_memory_()

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        self.fetched[i] += 1
        return torch.full((3, 2, 2), float(i)), i * CLASSES // self.count


class Pixels(Sorted):
    """As timm's datasets are read: uint8 arrays."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image.byte().numpy(), label


class Stream(IterableDataset):
    def __init__(self, count=None):
        self.count = count

    def __iter__(self):
        for i in itertools.count() if self.count is None else range(self.count):
            yield torch.full((3, 2, 2), float(i)), i % CLASSES


def assert_right(support, classes=CLASSES, count=100):
    """Each image with its own label."""
    i = support.images[:, 0, 0, 0].long()
    assert torch.equal(support.labels, i * classes // count)
    assert i.unique().numel() == len(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_sorted_loader_all_classes_are_seen_and_no_image_too_many_is_fetched(workers):
    data = Sorted()
    loader = DataLoader(data, batch_size=5, num_workers=workers)
    support = read_support_set(loader, 40, CLASSES)
    assert len(support) == 40
    assert support.classes_seen == CLASSES
    assert_right(support)
    assert data.fetched.sum() == 40
    assert any("does not shuffle" in note for note in support.notes)
    assert torch.equal(next(iter(loader))[0][:, 0, 0, 0], torch.arange(5.0))  # the user's still begins at the beginning


def test_the_order_of_a_sorted_loader_follows_the_seed():
    read = [read_support_set(DataLoader(Sorted(), 8), 40, CLASSES, seed=s).images for s in (0, 0, 1)]
    assert torch.equal(read[0], read[1])
    assert not torch.equal(read[0], read[2])


def test_of_a_loader_over_a_part_of_its_dataset_no_other_image_is_read():
    data = Sorted()
    loader = DataLoader(data, 5, sampler=SequentialSampler(range(60)))
    support = read_support_set(loader, 40, CLASSES)
    assert_right(support)
    assert data.fetched[60:].sum() == 0
    assert support.classes_seen == 3


def test_a_sorted_loader_that_is_read_to_its_end_is_read_in_its_order():
    support = read_support_set(DataLoader(Sorted(), 8), 100, CLASSES)
    assert torch.equal(support.images[:, 0, 0, 0], torch.arange(100.0))
    assert support.notes == ()


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_fetch_nothing_ahead_of_what_is_asked_for(persistent):
    data = Sorted()
    loader = DataLoader(data, 5, shuffle=True, num_workers=2, prefetch_factor=4, persistent_workers=persistent)
    assert_right(read_support_set(loader, 20, CLASSES))
    assert data.fetched.sum() == 20
    assert loader._iterator is None  # no worker of the user's own was born


def test_spawned_workers():
    loader = DataLoader(Sorted(), 10, shuffle=True, num_workers=1, multiprocessing_context="spawn")
    assert_right(read_support_set(loader, 30, CLASSES))


@pytest.mark.parametrize(("count", "workers"), [(None, 0), (None, 1), (60, 0), (60, 1)])
def test_iterable_and_infinite_datasets(count, workers):
    loader = DataLoader(Stream(count), batch_size=8, num_workers=workers)
    support = read_support_set(loader, 100, CLASSES)
    assert len(support) == (count or 100)
    assert torch.equal(support.images[:, 0, 0, 0].long() % CLASSES, support.labels)


class OneShard(Stream):
    """All of it is the last worker's. Counts what is fetched."""

    def __init__(self, count=None):
        super().__init__(count)
        self.fetched = torch.zeros((), dtype=torch.int32).share_memory_()

    def __iter__(self):
        worker = get_worker_info()
        if worker.id == worker.num_workers - 1:
            for item in super().__iter__():
                self.fetched += 1
                yield item


@pytest.mark.parametrize("persistent", [False, True])
def test_a_stream_of_one_shard_is_read_whatever_the_workers_without_one_were_asked_for(persistent):
    data, before = OneShard(), set(multiprocessing.active_children())
    loader = DataLoader(data, 5, num_workers=2, prefetch_factor=16, persistent_workers=persistent)
    support = read_support_set(loader, 40, CLASSES)
    assert support.images[:, 0, 0, 0].tolist() == list(range(40))
    assert data.fetched <= 40 + 2 * 5  # a batch a worker ahead
    assert loader._iterator is None
    assert set(multiprocessing.active_children()) <= before
    assert len(read_support_set(DataLoader(OneShard(33), 5, num_workers=2), 40, CLASSES)) == 33


def test_an_infinite_sampler():
    data = Sorted()
    loader = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 100, 10**6, generator=seeded(0)), batch_size=16)
    support = read_support_set(loader, 100, CLASSES)
    assert_right(support)  # no image twice
    assert 50 < len(support) < 80  # of 112 draws
    assert data.fetched.sum() == len(support)


class Noisy(Sorted):
    """As augmentation does it: never twice the same."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image + torch.rand(()) / 2, label


# Indices in batches of six, of which the second has none that is new.
AGAIN = [3, 3, 1, 9, 9, 9, 3, 9, 1, 3, 1, 9, 0, 1, 2, 7, 7, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_a_sampler_draws_again_is_fetched_and_counts_once(workers):
    data = Noisy(10)
    loader = DataLoader(data, 6, sampler=AGAIN, num_workers=workers)
    support = read_support_set(loader, 18, CLASSES)
    assert support.images[:, 0, 0, 0].long().tolist() == [3, 1, 9, 0, 2, 7]
    assert torch.equal(support.labels, support.images[:, 0, 0, 0].long() // 2)
    assert data.fetched.max() == 1
    assert support.notes == ("12 images came again after they were read, and count once",)


def of_two_and_three(items):
    """As a collate_fn that goes with a sampler of P x K images; the first batch takes its time."""
    images, labels = default_collate(items)
    if labels[0] == 1:
        time.sleep(0.2)
    return images.view(2, 3, *images.shape[1:]).flatten(0, 1), labels


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_fn_of_ones_own_gets_batches_as_in_training_and_an_image_counts_once(workers):
    data = Noisy(10)
    loader = DataLoader(data, 6, sampler=AGAIN, num_workers=workers, collate_fn=of_two_and_three)
    loader.in_order = False  # with two workers the last batch would come first
    support = read_support_set(loader, 18, CLASSES)
    assert support.images[:, 0, 0, 0].long().tolist() == [3, 1, 9, 0, 2, 7]
    assert torch.equal(support.labels, support.images[:, 0, 0, 0].long() // 2)
    assert support.batch == 6
    assert data.fetched.sum() == 12  # nothing of a batch without a new image
    assert support.notes == ("12 images came again after they were read, and count once",)


def test_images_that_a_sampler_draws_again_may_be_mixed():
    mixup = Mixup(mixup_alpha=0.2, num_classes=CLASSES)
    np.random.seed(0)
    loader = DataLoader(Sorted(10), 6, sampler=AGAIN, collate_fn=lambda items: mixup(*default_collate(items)))
    assert len(read_support_set(loader, 18, CLASSES)) == 6


def test_where_a_collate_fn_leaves_images_out_equal_ones_count_once():
    loader = DataLoader(Sorted(10), 6, sampler=AGAIN, collate_fn=lambda items: default_collate(items[1:]))
    support = read_support_set(loader, 18, CLASSES)
    assert support.images[:, 0, 0, 0].tolist() == [3, 1, 9, 2, 7, 0]
    assert torch.equal(support.labels, support.images[:, 0, 0, 0].long() // 2)


def test_indices_that_cannot_be_compared_are_all_fetched():
    class Listed(Sorted):
        def __getitem__(self, i):
            return super().__getitem__(i[0])

    loader = DataLoader(Listed(10), 4, sampler=[[0], [8], [0], [9]])
    support = read_support_set(loader, 4, CLASSES)
    assert support.images[:, 0, 0, 0].tolist() == [0, 8, 9]  # as images they are


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_images_of_a_stream_count_once_where_their_labels_are_equal(channels, dtype):
    x = torch.tensor([0, 1, 0, 1, 2, 0], dtype=dtype)[:, None, None, None].expand(6, channels, 2, 2)
    y = torch.tensor([0, 1, 0, 2, 2, 0])
    support = read_support_set(itertools.cycle([(x, y)]), 60, CLASSES)
    assert support.images[:, 0, 0, 0].tolist() == [0, 1, 1, 2]
    assert support.labels.tolist() == [0, 1, 2, 2]
    assert any(note.startswith("56 images came again") for note in support.notes)


def test_an_iterator_is_read_and_the_loss_is_told():
    batches = iter([(torch.zeros(4, 3, 2, 2), torch.arange(4))] * 3)
    assert any("iterator" in note for note in read_support_set(batches, 4, CLASSES).notes)
    assert len(list(batches)) == 2
    assert read_support_set([(torch.zeros(4, 3, 2, 2), torch.arange(4))], 4, CLASSES).notes == ()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 64, "drop_last": True}, {"batch_size": 7}])
def test_batch_sizes(options):
    support = read_support_set(DataLoader(Sorted(), shuffle=True, **options), 50, CLASSES)
    assert len(support) == 50
    assert_right(support)


def test_a_loader_that_drops_its_only_batch_is_explained():
    with pytest.raises(DataError, match="drop_last"):
        read_support_set(DataLoader(Sorted(30), 64, drop_last=True), 50, CLASSES)


def test_a_dataset_whose_items_are_batches():
    data = [(torch.rand(4, 3, 2, 2), torch.arange(4)) for _ in range(3)]
    assert len(read_support_set(DataLoader(data, batch_size=None), 100, CLASSES)) == 12


def prefetching(data, collate=fast_collate, **options):
    loader = DataLoader(data, 10, collate_fn=collate, generator=seeded(3), **options)
    return PrefetchLoader(loader, mean=(0.5,) * 3, std=(0.25,) * 3, device=torch.device("cpu"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_timms_prefetch_loader_gives_normalised_images_once(shuffle):
    loader = prefetching(Pixels(), shuffle=shuffle)
    before = loader.loader.generator.get_state()
    support = read_support_set(loader, 30, CLASSES)
    assert support.classes_seen > 2
    i = support.images[:, 0, 0, 0] * 0.25 * 255 + 0.5 * 255
    torch.testing.assert_close((i + 0.01).floor() * CLASSES // 100, support.labels.float())
    assert loader.dataset.fetched.sum() == 30
    assert torch.equal(loader.loader.generator.get_state(), before)


def test_timms_prefetch_loader_goes_on_as_if_never_read():
    torch.manual_seed(0)
    expected = [y.tolist() for _, y in prefetching(Pixels(), shuffle=True)]
    torch.manual_seed(0)
    loader = prefetching(Pixels(), shuffle=True)
    read_support_set(loader, 30, CLASSES)
    assert [y.tolist() for _, y in loader] == expected


@pytest.mark.parametrize("shuffle", [False, True])
def test_timms_loader_of_many_epochs_begins_as_if_never_read(shuffle):
    data = Sorted()
    loader = MultiEpochsDataLoader(data, 8, shuffle=shuffle, generator=seeded(0) if shuffle else None)
    assert_right(read_support_set(loader, 40, CLASSES))
    assert data.fetched.sum() == 40
    expected = MultiEpochsDataLoader(Sorted(), 8, shuffle=shuffle, generator=seeded(0) if shuffle else None)
    for _ in range(2):
        epochs = [[i for x, _ in one for i in x[:, 0, 0, 0].tolist()] for one in (loader, expected)]
        assert epochs[0] == epochs[1]


def test_mixed_targets_count_by_their_largest():
    mixup = FastCollateMixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=CLASSES)
    np.random.seed(0)
    support = read_support_set(prefetching(Pixels(), mixup, shuffle=True), 30, CLASSES)
    assert support.labels.dtype == torch.int64
    assert support.classes_seen > 2
    assert any("soft" in note for note in support.notes)


def test_labels_in_a_column_are_labels():
    labels = torch.tensor([[1], [0], [2]])
    assert read_support_set([(X[:3], labels)], 3, 3).labels.tolist() == [1, 0, 2]


def test_one_hot_targets_are_labels():
    x, y = torch.rand(6, 3, 2, 2), torch.arange(6) % 3
    for dtype in (torch.float32, torch.float16, torch.int64):
        targets = torch.nn.functional.one_hot(y).to(dtype)
        for form in (targets, targets.to_sparse()):
            support = read_support_set([(x, form)], 6, 3)
            assert torch.equal(support.labels, y)
            assert support.notes == ()


def test_datasets_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    arrays = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 2, 2).tolist()
    data = datasets.Dataset.from_dict({"pixel_values": arrays, "label": [i % 3 for i in range(12)]}).with_format(
        "torch"
    )
    support = read_support_set(DataLoader(data, batch_size=4, shuffle=True), 12, 3)
    assert torch.equal(support.images[:, 0, 0, 0].long() % 3, support.labels)
    support = read_support_set(DataLoader(data.to_iterable_dataset(), batch_size=4), 8, 3)
    assert len(support) == 8
    with pytest.raises(DataError, match="with_format"):
        read_support_set(data.with_format(None), 12, 3)


X = torch.zeros(4, 3, 2, 2)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((X, ["ant", "bee", "ant", "bee"]), "names such as 'ant'.*names.index"),
        ({"image": X, "label": ("ant", "bee", "ant", "bee")}, "names such as 'ant'"),
        ((X, torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])), "multi-label"),
        ((X, torch.rand(4, 3).sigmoid() * 5), "multi-label"),
        ((X, torch.eye(4)), r"\[N, 4\] and the model has 3 classes"),
        ((X, torch.tensor([1, 2, 3, 1])), r"target_transform=lambda y: y - 1"),
        ((X, torch.tensor([7, 8, 9, 7])), r"target_transform=lambda y: y - 7"),
    ],
    ids=["names", "names_in_a_dict", "several_labels", "scores", "other_classes", "from_1", "from_7"],
)
def test_targets_that_cannot_be_used_are_refused_with_advice(batch, words):
    with pytest.raises(DataError, match=words):
        read_support_set([batch], 4, 3)


def test_a_dataset_in_place_of_a_loader_is_refused_with_advice():
    with pytest.raises(DataError, match="DataLoader"):
        read_support_set([Sorted()[i] for i in range(9)], 4, CLASSES)


@pytest.mark.parametrize("count", [0, 1, -3])
def test_too_few_images_asked_for(count):
    with pytest.raises(DataError, match="num_support"):
        read_support_set([(X, torch.arange(4))], count, 4)
