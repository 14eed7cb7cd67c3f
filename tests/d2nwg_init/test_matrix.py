"""Architectures x loaders, small: whatever a user brings gets finite weights, and gives back every bit."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from timm.data import FastCollateMixup
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from d2nwg_init import initialize
from tests.pretrained_generators.small import copied, labelled_images, same, seeded
from zoo_builder.backbones import BackboneSpec

CLASSES, COUNT, SIZE, SUPPORT = 3, 30, 32, 24

COVERED = ("test_resnet", "mobilenetv3_small_050")  # by embedded bundles
ARCHITECTURES = (
    *COVERED,
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_nfnet",
    "test_vit",
    "efficientvit_m0",
    "lcnet_035",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
)


def data():
    return TensorDataset(*labelled_images(COUNT, CLASSES, size=SIZE))


def pixels():
    """As timm's datasets are read: uint8 arrays and numbers."""
    images, labels = data().tensors
    arrays = (images * 40 + 100).clamp(0, 255).byte().numpy()
    return list(zip(arrays, labels.tolist(), strict=True))


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(data())


def as_dict(batch):
    images, labels = torch.utils.data.default_collate(batch)
    return {"pixel_values": images, "labels": labels}


def hugging_face():
    datasets = pytest.importorskip("datasets")
    images, labels = data().tensors
    made = datasets.Dataset.from_dict({"image": images.numpy(), "label": labels.tolist()})
    return DataLoader(made.with_format("torch"), batch_size=8, shuffle=True, generator=seeded(0))


def prefetching(collate):
    loader = DataLoader(pixels(), 8, shuffle=True, drop_last=True, collate_fn=collate, generator=seeded(0))
    return PrefetchLoader(loader, device=torch.device("cpu"))


def in_order():
    images, labels = data().tensors
    order = labels.argsort()
    return DataLoader(TensorDataset(images[order], labels[order]), batch_size=4)


LOADERS = {
    "pairs": lambda: DataLoader(data(), batch_size=7, shuffle=True, generator=seeded(0)),
    "dicts": lambda: DataLoader(data(), batch_size=8, shuffle=True, generator=seeded(0), collate_fn=as_dict),
    "hugging face": hugging_face,
    "prefetch": lambda: prefetching(fast_collate),
    "mixup": lambda: prefetching(FastCollateMixup(mixup_alpha=0.1, num_classes=CLASSES)),
    "sorted": in_order,
    "endless": lambda: DataLoader(Endless(), batch_size=8),
    "single images": lambda: DataLoader(data(), batch_size=1, shuffle=True, generator=seeded(0)),
}


@cache
def made(architecture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BackboneSpec(architecture, img_size=SIZE).create(num_classes=CLASSES)
    return model, copied(model.state_dict())


def pairs():
    """Every loader with a covered architecture and at least two others, every architecture with at least two loaders.
    No model meets a loader: what was read of one is a tensor of images by then, whatever it came from."""
    names = list(LOADERS)
    yield from itertools.product(ARCHITECTURES[:1], names)
    for i, architecture in enumerate(ARCHITECTURES[1:]):
        for at in (i, i + 3):
            yield architecture, names[at % len(names)]


@pytest.mark.parametrize(("architecture", "loader"), pairs())
def test_every_model_and_every_loader(architecture, loader):
    model, before = made(architecture)
    modes, batches = [m.training for m in model.modules()], LOADERS[loader]()
    np.random.seed(0)
    state = torch.get_rng_state()
    report = initialize(model, batches, num_candidates=1, num_support=SUPPORT, head="solve")
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert (report.images_read, report.classes_seen, report.image_shape) == (SUPPORT, CLASSES, (3, SIZE, SIZE))
    assert (report.bundle is None) == (architecture not in COVERED)
    assert all(c.loss < 20 for c in report.candidates)
    after = copied(model.state_dict())
    assert not same(after, before)
    assert all(torch.isfinite(v).all() for v in after.values())
    report.revert()
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(400) // 2,  # 2 images a class
        torch.cat([torch.zeros(380, dtype=torch.long), torch.arange(20) % 4 + 1]),  # heavy imbalance
        torch.arange(400),  # an image a class
    ],
    ids=["two_a_class", "imbalance", "one_a_class"],
)
def test_many_classes_and_few_images(labels):
    model = BackboneSpec("mobilenetv3_small_050").create(num_classes=1000)
    images = torch.randn(len(labels), 3, 32, 32, generator=seeded(1))
    images += labels.view(-1, 1, 1, 1) % 7 / 3
    report = initialize(model, [(images, labels)], generator=None, head="solve")
    assert (report.num_classes, report.classes_seen) == (1000, len(labels.unique()))
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    predicted = model.eval()(images).argmax(1)
    assert set(predicted.tolist()) <= set(labels.tolist())
