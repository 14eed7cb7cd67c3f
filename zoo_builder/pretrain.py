"""`zoo base`: pretrain a body from scratch on one dataset. Its weights are what every zoo entry is a delta to."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3

from zoo_builder.backbones import BackboneSpec, body_state, image_statistics, predict
from zoo_builder.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_atomically
from zoo_builder.classifier import find_classifier
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import normalize_images, resize_images
from zoo_builder.domain_images import stable_seed
from zoo_builder.errors import DataError, RecipeError
from zoo_builder.progress import progress_bar
from zoo_builder.small_maps import SmallMaps
from zoo_builder.training_loop import one_cycle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    model: str = "test_resnet"
    size: int = 64  # pixels
    epochs: int = 60
    batch_size: int = 128  # images
    learning_rate: float = 3e-3  # peak of one cycle, AdamW
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    crop_scale: float = 0.4  # smallest area of the random crop, as a fraction of the image
    ema_decay: float = 0.998
    seed: int = 0


def random_resized_crop(images: torch.Tensor, smallest_area: float, generator: torch.Generator) -> torch.Tensor:
    """A random crop, shape and mirror image for each of a batch at once; [N, C, H, W] float, the same size out."""
    n = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    area, ratio = uniform(smallest_area, 1), uniform(-0.29, 0.29).exp()  # aspect 3/4 to 4/3
    width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, uniform(-1, 1) * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def pretrain(dataset: ImageDataset, config: PretrainConfig, out: Path) -> float:
    """Train a classifier and keep its body, averaged over time (EMA), in `out` (safetensors, fp16).

    A checkpoint beside `out` after every epoch lets a killed run go on to the same weights. A body of the same
    settings and dataset that is there already is left as it is.

    Returns:
        Top-1 test accuracy in percent.

    Raises:
        RecipeError: `out` holds a body, or a begun training, of other settings or another dataset.
        ModelError: the model has no linear head. DataError: there are no test images.
    """
    if not len(dataset.x_test):
        raise DataError(
            f"Dataset {dataset.name!r} has no test images to measure the base on. Give 5 images a class or more, or a "
            "test/ folder beside train/."
        )
    work: dict[str, object] = {**asdict(config), "dataset": dataset.name, "dataset_sha256": dataset.sha256}
    if out.exists():
        about = json.loads(read_tensors(out)[1].get("pretraining", "{}"))
        accuracy = float(about.pop("test_accuracy", 0.0))
        _check_same_work(out, about, work)
        log.warning("%s is there already, of these settings and this dataset: nothing is trained.", out)
        return accuracy
    torch.manual_seed(config.seed)
    spec = BackboneSpec(config.model, img_size=config.size)
    model = spec.create(num_classes=dataset.num_classes).to(memory_format=torch.channels_last)
    find_classifier(model)  # a model without a linear head has no body to keep
    mean, std = image_statistics(model)
    average = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    x_train, y_train = resize_images(dataset.x_train, config.size), torch.from_numpy(dataset.y_train)
    x_test, y_test = resize_images(dataset.x_test, config.size), torch.from_numpy(dataset.y_test)
    batch_size = min(config.batch_size, len(x_train))
    steps = len(x_train) // batch_size
    length = config.epochs * steps
    schedule = one_cycle(optimizer, length, length // 10, config.learning_rate / 20)
    state = out.with_name(out.name + ".resume")
    first, accuracy = 0, 0.0
    if state.exists():
        _check_same_work(state, json.loads(read_tensors(state)[1].get("progress", "{}")).get("work"), work)
        progress = load_checkpoint(state, {"model": model, "average": average.module}, optimizer)
        first, accuracy = int(str(progress["epoch"])) + 1, float(str(progress["accuracy"]))

    with progress_bar(
        f"pretraining {config.model} on {dataset.name} -> {out}", total=length, done=first * steps
    ) as bar:
        for epoch in range(first, config.epochs):
            torch.manual_seed(stable_seed(config.seed, epoch))  # dropout drops the same when it is resumed
            generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
            order = torch.randperm(len(x_train), generator=generator)
            model.train()
            for step in range(steps):
                now = epoch * steps + step
                schedule.step_update(now)
                index = order[step * batch_size : (step + 1) * batch_size]
                images = normalize_images(x_train[index], mean, std)
                images = random_resized_crop(images, config.crop_scale, generator)
                images = images.contiguous(memory_format=torch.channels_last)
                with SmallMaps():
                    logits = model(images)
                loss = F.cross_entropy(logits, y_train[index], label_smoothing=config.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                average.update(model, step=now)
                bar.advance()
            logits = torch.cat([predict(average.module, normalize_images(x, mean, std)) for x in x_test.split(1024)])
            accuracy = 100 * (logits.argmax(1) == y_test).float().mean().item()
            bar.note(f"test {accuracy:.1f} %")
            progress = {"work": work, "epoch": epoch, "accuracy": accuracy}
            save_checkpoint(state, {"model": model, "average": average.module}, optimizer, progress)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in body_state(average.module).items()}
    write_atomically(out, tensors, {"pretraining": json.dumps({**work, "test_accuracy": accuracy})})
    state.unlink(missing_ok=True)
    return accuracy


def _check_same_work(path: Path, found: object, work: dict[str, object]) -> None:
    """What `path` says that it was made with must be what is asked for."""
    before = found if isinstance(found, dict) else {}
    if not before:
        raise RecipeError(f"{path} does not say what it was made with. Remove it, or take another --out.")
    differing = [f"{k} {before.get(k)!r}, asked for {v!r}" for k, v in work.items() if before.get(k) != v]
    if differing:
        raise RecipeError(f"{path} was made with {'; '.join(differing)}. Remove it, or take another --out.")
