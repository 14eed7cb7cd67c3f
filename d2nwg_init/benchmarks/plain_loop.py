"""The fine-tuning loop of the tutorials: an ImageFolder, a DataLoader, a loop over the batches. Knows no zoo.

What the zoo builder is measured against, with the same optimizer, schedule and clipping.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from zoo_builder.backbones import image_statistics
from zoo_builder.domain_images import DomainImages, sample_images
from zoo_builder.errors import DataError
from zoo_builder.finetune import QUERIES
from zoo_builder.tasks import FineTuneTask


def write_folders(images: DomainImages, task: FineTuneTask, place: Path) -> None:
    """`place`/train and `place`/test, a folder of PNG files a class: all train images, and the test images that the
    builder scores the task's entry on."""
    x_test, index = sample_images(images.x_test, QUERIES, task.seed)
    if not len(x_test):
        raise DataError(f"Dataset {task.datasets[0]!r} has no test images to measure on. Leave it out of the recipe.")
    for part, x, y in (("train", images.x_train, images.y_train), ("test", x_test, images.y_test[index])):
        for c in range(images.num_classes):
            (place / part / f"{c:04}").mkdir(parents=True)
        for i, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / part / f"{label:04}" / f"{i:05}.png")


def plain_loop(model: nn.Module, place: Path, task: FineTuneTask) -> float:
    """Fine-tune `model`, where it is, on `place`/train, write `place`/model.safetensors; its accuracy (%)."""
    torch.manual_seed(task.seed)
    training, rate = task.training, task.training.learning_rates[0]
    normalize = transforms.Normalize(*image_statistics(model))
    transform = transforms.Compose([transforms.Resize((task.size, task.size)), transforms.ToTensor(), normalize])
    train_set = ImageFolder(str(place / "train"), transform, allow_empty=True)
    test_set = ImageFolder(str(place / "test"), transform, allow_empty=True)
    size = min(training.batch_size, len(train_set))
    loader = DataLoader(train_set, size, shuffle=True, num_workers=2, drop_last=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, eps=1e-6)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=training.steps,
        warmup_t=max(1, training.steps // 10),
        warmup_lr_init=rate / 20,
        t_in_epochs=False,
    )
    device = next(model.parameters()).device
    model.train()
    losses = []
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, (images, labels) in zip(range(training.steps), epochs, strict=False):
        schedule.step_update(step)
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())  # as most loops do, for their log
    save_file(model.state_dict(), place / "model.safetensors")
    return loader_accuracy(model, DataLoader(test_set, training.batch_size, num_workers=2))


@torch.no_grad()
def loader_accuracy(model: nn.Module, loader: DataLoader) -> float:
    """Top-1 in percent, in evaluation mode, which stays."""
    model.eval()
    device = next(model.parameters()).device
    right = seen = 0
    for images, labels in loader:
        right += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
        seen += len(labels)
    return 100 * right / seen
