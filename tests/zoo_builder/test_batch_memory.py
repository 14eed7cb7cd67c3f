"""What is read is a copy: a loader may fill the memory of a batch anew, and that of a worker's is a file held open."""

import os

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from zoo_builder.support_set import read_support_set

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def data(count, channels):
    """Image i is filled with i, and its label is i too."""
    return torch.arange(count * 1.0)[:, None, None, None].repeat(1, channels, 4, 4), torch.arange(count)


class Reusing:
    """As FFCV's, and those that fetch ahead by hand: each batch is in the memory of the one before."""

    def __init__(self, channels, layout):
        self.images, self.labels = data(64, channels)
        self.memory = torch.empty(16, channels, 4, 4).contiguous(memory_format=layout), torch.empty(16).long()

    def __iter__(self):
        for batch in zip(self.images.split(16), self.labels.split(16), strict=True):
            for memory, new in zip(self.memory, batch, strict=True):
                memory.copy_(new)
            yield self.memory


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [64, 40])
def test_a_loader_that_fills_one_memory_anew_is_read_as_any(channels, layout, count):
    support = read_support_set(Reusing(channels, layout), count, 64)
    assert support.images[:, 0, 0, 0].tolist() == list(range(count))
    assert support.labels.tolist() == list(range(count))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_read_does_not_change_with_the_users_batch(channels, layout):
    images, labels = data(16, channels)
    images = images.contiguous(memory_format=layout)
    support = read_support_set([(images, labels)], 16, 64)
    images.zero_(), labels.zero_()
    assert support.images[:, 0, 0, 0].tolist() == support.labels.tolist() == list(range(16))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_of_workers_hold_no_files_open(channels):
    most = 0

    class Counting:
        def __iter__(self):
            nonlocal most
            for batch in DataLoader(TensorDataset(*data(150, channels)), num_workers=1):
                most = max(most, len(os.listdir("/proc/self/fd")))
                yield batch

    before = len(os.listdir("/proc/self/fd"))
    assert len(read_support_set(Counting(), 150, 150)) == 150
    assert most < before + 50
