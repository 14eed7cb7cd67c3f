"""One task -> one entry: the body's delta to the base, and what it is worth."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import nn

from zoo_builder.backbones import image_statistics
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.datasets import ImageDataset
from zoo_builder.datasets.image_dataset import normalize_images, resize_images
from zoo_builder.domains import apply_domain
from zoo_builder.errors import ZooError
from zoo_builder.solved_head import ridge_query_logits, solve_head
from zoo_builder.tasks import FineTuneTask, Training

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
QUERY_IMAGES = 1000  # test images that score an entry, at most
TRAIN_IMAGES = 4000  # train images of each dataset in a task's memory, at most


@dataclass(frozen=True)
class DomainImages:
    """One dataset as one domain sees it, at the size of the model."""

    x_train: torch.Tensor  # uint8 [N, 3, S, S]
    y_train: torch.Tensor  # int64 [N]
    x_test: torch.Tensor  # uint8 [M, 3, S, S]
    y_test: torch.Tensor  # int64 [M]
    num_classes: int


@dataclass(frozen=True)
class FineTuneResult:
    delta: dict[str, torch.Tensor]  # float tensors of the body's parameters minus the base's
    support: torch.Tensor  # uint8 [n, 3, S, S], a sample of the train images, for the dataset embedding
    support_labels: torch.Tensor  # int64 [n]
    metrics: dict[str, float]  # accuracies in percent, the best strength, seconds


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach() for k, v in model.named_parameters()}


def domain_images(dataset: ImageDataset, domain: str, task: FineTuneTask) -> DomainImages:
    """Resize, draw the task's class subset, and look through `domain`."""
    classes = np.arange(dataset.num_classes)
    if task.class_subset is not None and dataset.num_classes > task.class_subset:
        rng = np.random.default_rng(_seed(task.seed, dataset.name, domain))
        classes = np.sort(rng.choice(classes, task.class_subset, replace=False))
    renumber = np.full(dataset.num_classes, -1)
    renumber[classes] = np.arange(len(classes))
    parts = []
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        keep = np.flatnonzero(renumber[y] >= 0)
        if len(keep) > TRAIN_IMAGES:
            keep = np.random.default_rng(_seed(task.seed, dataset.name)).choice(keep, TRAIN_IMAGES, replace=False)
        images = apply_domain(resize_images(x[keep], task.size), domain, _seed(task.seed, domain))
        parts += [images, torch.from_numpy(renumber[y[keep]])]
    x_train, y_train, x_test, y_test = parts
    return DomainImages(x_train, y_train, x_test, y_test, len(classes))


def run_task(
    task: FineTuneTask,
    base: nn.Module,
    start: dict[str, torch.Tensor] | None,
    load: Callable[[str], ImageDataset],
) -> FineTuneResult:
    """Train `base` (a headless timm body; changed in place) from base + `start` and return its delta to the base.

    Deterministic in (task, base, start) on one machine.

    Raises:
        ZooError: the training diverged.
    """
    began = time.perf_counter()
    torch.manual_seed(_seed(task.seed, task.id))
    origin = {k: v.clone() for k, v in base.state_dict().items()}
    weights = {k: v.clone() for k, v in parameters_of(base).items()}
    mean, std = image_statistics(base)
    sources = {(n, d): domain_images(load(n), d, task) for n in (task.dataset, *task.related) for d in task.domains}
    own = sources[task.dataset, task.domains[0]]

    if start is not None:
        set_parameters(base, weights, start, 1.0)
    recalibrate_batchnorm(base, normalize_images(_sample(own.x_train, task.support, task.seed)[0], mean, std))
    if task.kind == "finetune":
        loss = _plain_loss(base, own, task, mean, std)
    else:
        loss = _episodic_loss(base, sources, task, mean, std)
    delta = {k: v - weights[k] for k, v in parameters_of(base).items()}
    if not all(torch.isfinite(d).all() for d in delta.values()):
        raise ZooError(f"{task.id} diverged (its last loss is {loss}). Lower its learning_rate.")

    support, index = _sample(own.x_train, task.support, task.seed)
    labels = own.y_train[index]
    query, query_index = _sample(own.x_test, QUERY_IMAGES, task.seed)
    scores = {}
    for strength in STRENGTHS:
        base.load_state_dict(origin)
        set_parameters(base, weights, delta, strength)
        images = normalize_images(torch.cat([support, query]), mean, std)
        scores[strength] = solved_accuracy(base, images, labels, own.y_test[query_index], own.num_classes)
    base.load_state_dict(origin)
    best = max(STRENGTHS, key=lambda s: (scores[s], s))
    metrics = {
        "solved_accuracy": scores[0.0],
        "accuracy": scores[1.0],
        "best_accuracy": scores[best],
        "best_strength": best,
        "last_loss": loss,
        "seconds": time.perf_counter() - began,
    }
    return FineTuneResult(delta, support, labels, metrics)


def set_parameters(
    model: nn.Module, base: Mapping[str, torch.Tensor], delta: Mapping[str, torch.Tensor], strength: float
) -> None:
    """Parameters become base + strength * delta, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(base[name] + strength * delta[name])


def solved_accuracy(
    body: nn.Module, images: torch.Tensor, support_labels: torch.Tensor, query_labels: torch.Tensor, num_classes: int
) -> float:
    """Test accuracy in percent of a solved head after BatchNorm recalibration; the first images are the support."""
    n = len(support_labels)
    recalibrate_batchnorm(body, images[:n])
    body.eval()
    with torch.no_grad():
        features = torch.cat([body(batch) for batch in images.split(256)])
    head = solve_head(features[:n], support_labels, num_classes)
    logits = features[n:] @ head.weight.T + head.bias
    return 100 * (logits.argmax(1) == query_labels).float().mean().item()


def _episodic_loss(
    body: nn.Module,
    sources: dict[tuple[str, str], DomainImages],
    task: FineTuneTask,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> float:
    """Train in place. Each step draws a dataset and a few classes, solves a head on half of a batch and takes the
    cross-entropy of the other half through the solve (R2-D2, Bertinetto et al., ICLR 2019)."""
    rng = np.random.default_rng(_seed(task.seed, task.id, "episodes"))
    others = [key for key in sources if key[0] != task.dataset]
    mine = [key for key in sources if key[0] == task.dataset]
    log_ridge = nn.Parameter(torch.tensor(-2.3))
    log_scale = nn.Parameter(torch.tensor(2.0))
    steps = _Steps(task, [*body.parameters(), log_ridge, log_scale])
    value = 0.0
    for step in range(task.training.steps):
        if task.kind == "trunk":
            key = list(sources)[rng.integers(len(sources))]
        else:
            pool = mine if not others or rng.random() < task.own_share else others
            key = pool[rng.integers(len(pool))]
        source = sources[key]
        index, labels, classes = _episode(source.y_train.numpy(), source.num_classes, task.training, rng)
        body.train()
        features = body(normalize_images(source.x_train[index], mean, std))
        half = len(labels) // 2
        ridge, scale = log_ridge.exp(), log_scale.exp()
        logits = ridge_query_logits(features[:half], labels[:half], features[half:], classes, ridge, scale)
        value = steps.take(step, F.cross_entropy(logits, labels[half:]))
    return value


def _episode(
    y: np.ndarray, num_classes: int, training: Training, rng: np.random.Generator
) -> tuple[np.ndarray, torch.Tensor, int]:
    """Indices of a balanced batch over a few random classes, shuffled; labels renumbered from 0; the class count."""
    count = min(training.classes, num_classes)
    classes = rng.choice(num_classes, count, replace=False)
    quota = -(-training.batch_size // count)
    index, labels = [], []
    for i, c in enumerate(classes):
        members = np.flatnonzero(y == c)
        # Never an image twice: it would stand on both sides of the support and query split.
        index.append(rng.choice(members, min(quota, len(members)), replace=False))
        labels.append(np.full(len(index[-1]), i))
    order = rng.permutation(sum(map(len, index)))[: training.batch_size]
    return np.concatenate(index)[order], torch.from_numpy(np.concatenate(labels)[order]), count


def _plain_loss(
    body: nn.Module, own: DomainImages, task: FineTuneTask, mean: tuple[float, ...], std: tuple[float, ...]
) -> float:
    """Ordinary fine-tuning in place, from a solved head: what the paper's zoos are made of."""
    support, index = _sample(own.x_train, task.support, task.seed)
    body.eval()
    with torch.no_grad():
        features = torch.cat([body(b) for b in normalize_images(support, mean, std).split(256)])
    solved = solve_head(features, own.y_train[index], own.num_classes)
    head = nn.Linear(features.shape[1], own.num_classes)
    head.load_state_dict({"weight": solved.weight, "bias": solved.bias})
    steps = _Steps(task, [*body.parameters(), *head.parameters()])
    rng = np.random.default_rng(_seed(task.seed, task.id, "batches"))
    value = 0.0
    for step in range(task.training.steps):
        batch = rng.integers(len(own.y_train), size=task.training.batch_size)
        body.train()
        logits = head(body(normalize_images(own.x_train[batch], mean, std)))
        value = steps.take(step, F.cross_entropy(logits, own.y_train[batch]))
    return value


class _Steps:
    """SGD with momentum under one cycle, gradients clipped; the same for every kind of task."""

    def __init__(self, task: FineTuneTask, parameters: list[nn.Parameter]) -> None:
        t = task.training
        self.parameters = parameters
        self.optimizer = torch.optim.SGD(parameters, lr=t.learning_rate, momentum=0.9)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=t.steps,
            warmup_t=max(1, t.steps // 10),
            warmup_lr_init=t.learning_rate / 20,
            t_in_epochs=False,
        )

    def take(self, step: int, loss: torch.Tensor) -> float:
        self.schedule.step_update(step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        return loss.item()


def _sample(images: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` images without replacement, with their indices."""
    index = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[index], index


def _seed(*parts: object) -> int:
    """A stable 31-bit seed from any values (Python's hash() differs from run to run)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1
