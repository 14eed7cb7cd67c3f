"""Models by name, their classifier, and the features that go into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from zoo_builder.checkpoint import read_tensors
from zoo_builder.classifier import find_classifier
from zoo_builder.datasets.image_dataset import normalize_images
from zoo_builder.errors import ModelError, nearest_names
from zoo_builder.inputs import noting_inputs

TORCHVISION = "torchvision:"
SOURCES = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights", "device",
    "dtype",
)  # fmt: skip
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # heads of torchvision's inception_v3 and googlenet, for training alone
EVAL_BATCH = 128  # images in one pass without gradients: of more, a core's cache holds too little


@dataclass(frozen=True)
class BackboneSpec:
    """How a body is made; the head is always left out.

    A stem of other than 3 channels is by timm's policy (the weights of the three are summed or repeated); a model built
    for one image size is built for `img_size`.
    """

    model: str  # timm's name, or "torchvision:NAME"
    in_chans: int = 3
    img_size: int | None = None  # pixels; None leaves the library's
    args: dict[str, str | int | float | bool] = field(default_factory=dict)  # more arguments of the library's factory

    def policies(self) -> dict[str, str]:
        """What is done to the library's model, in words."""
        stem = "as it is" if self.in_chans == 3 else f"adapted by timm to {self.in_chans} channels"
        return {"stem": stem, "head": "left out; heads are solved on its pooled features, or trained on them"}

    def create(self, checkpoint: str | Path | None = None, num_classes: int = 0) -> nn.Module:
        """The model in float32. With `num_classes=0` it gives pooled features [N, d].

        `checkpoint` is a safetensors file of the body (a classifier in it is left out), or "pretrained" for the
        library's own weights, which it may download.

        Raises:
            ModelError: unknown name, no image classifier, a checkpoint of another architecture, or the library's own
                weights cannot be fetched.
        """
        where = sorted(self.args.keys() & set(SOURCES))
        if where:
            raise ModelError(f"{self.model}: {where} say where weights come from or lie, not how the model is built.")
        make = self._torchvision if self.model.startswith(TORCHVISION) else self._timm
        try:
            model = make(checkpoint == "pretrained", num_classes)
        except (OSError, RuntimeError) as e:  # of urllib and the Hub's client; or there are none
            if checkpoint != "pretrained":
                raise
            raise ModelError(
                f"The pretrained weights of {self.model} cannot be had ({e}). Where that is for want of a connection, "
                "give a safetensors file of them."
            ) from e
        if checkpoint is not None and checkpoint != "pretrained":
            load_body(model, read_tensors(Path(checkpoint))[0], str(checkpoint))
        return model

    def _timm(self, pretrained: bool, num_classes: int) -> nn.Module:
        if not timm.is_model(self.model):
            known = [*timm.list_models(), *(TORCHVISION + n for n in torchvision_classifiers())]
            raise ModelError(f"timm has no model {self.model!r}; {nearest_names(self.model, known)}")
        args: dict[str, Any] = dict(self.args)
        config = timm.get_pretrained_cfg(self.model)
        if self.img_size is not None and config is not None and config.fixed_input_size:
            args["img_size"] = self.img_size

        def make(classes: int) -> nn.Module:
            return timm.create_model(
                self.model, pretrained=pretrained, num_classes=classes, in_chans=self.in_chans, **args
            )

        try:
            model = make(num_classes or 1)
            if num_classes:
                return model
            try:
                # With num_classes=0 timm would drop all of a head that has a norm before its classifier.
                model.set_submodule(find_classifier(model).name, nn.Identity())
                return model
            except ModelError:  # of several classifiers, or none that is linear
                return make(0)
        except (TypeError, ValueError, AssertionError) as e:
            raise ModelError(f"timm cannot make {self.model} with {args} for {self.in_chans} channels ({e}).") from e

    def _torchvision(self, pretrained: bool, num_classes: int) -> nn.Module:
        import torchvision

        name = self.model.removeprefix(TORCHVISION)
        if name not in torchvision_classifiers():
            if name in torchvision.models.list_models():
                raise ModelError(f"{self.model} does not classify images: detection, segmentation, video, flow and "
                                 "quantized models have no pooled features to solve a head on.")  # fmt: skip
            raise ModelError(f"torchvision has no {name!r}; {nearest_names(name, torchvision_classifiers())}")
        if self.in_chans != 3:
            raise ModelError(f"{self.model} takes 3 channels, not {self.in_chans}; models of timm adapt their stem.")
        args: dict[str, Any] = dict(self.args)
        if self.img_size is not None and name.startswith("vit_"):
            args["image_size"] = self.img_size
        if name in ("googlenet", "inception_v3"):
            args["aux_logits"] = False  # in training mode they would give more than the features
        model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **args)
        # Every classifier of torchvision ends in a linear layer or (squeezenet) a 1x1 convolution before the pooling.
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        where, last = layers[-1]
        head: nn.Module = nn.Identity()
        if num_classes and isinstance(last, nn.Linear):
            head = nn.Linear(last.in_features, num_classes)
        elif num_classes and isinstance(last, nn.Conv2d):
            head = nn.Conv2d(last.in_channels, num_classes, 1)
        model.set_submodule(where, head)
        return model


def torchvision_classifiers() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def create_backbone(name: str, checkpoint: str | Path | None = None, num_classes: int = 0) -> nn.Module:
    """`BackboneSpec(name).create(...)`."""
    return BackboneSpec(name).create(checkpoint, num_classes)


def load_body(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Fill all of `model` but its classifier from `tensors`, which must fit exactly.

    Raises:
        ModelError: names or shapes differ; the first difference is named.
    """
    expected = body_state(model)
    heads = tuple(f"{name}." for name in (*_classifier_names(model), *AUXILIARY))
    tensors = {k: v for k, v in tensors.items() if k in expected or not k.startswith(heads)}
    for key in sorted(expected.keys() | tensors.keys()):
        want = tuple(expected[key].shape) if key in expected else None
        have = tuple(tensors[key].shape) if key in tensors else None
        if want != have:
            raise ModelError(f"{source} does not fit this model: {key} is {have} in the file and {want} in the model.")
    model.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()}, strict=False)


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Where the classifier is, or was before it was left out."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if named:
        return (named,) if isinstance(named, str) else tuple(named)
    try:
        return (find_classifier(model).name,)
    except ModelError:
        return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Identity))


def body_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without the classifier's tensors (all of it where there is no classifier)."""
    try:
        prefix = find_classifier(model).name + "."
    except ModelError:
        return dict(model.state_dict())
    return {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}


def image_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels by channel, of images in [0, 1]: timm's of the model, else ImageNet's."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return tuple(config.get("mean", IMAGENET_DEFAULT_MEAN)), tuple(config.get("std", IMAGENET_DEFAULT_STD))


def prepare_images(body: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] -> what `body` takes: normalised float32, channels last; gray for a stem of one channel,
    red, green, blue, red, ... for one of more than three."""
    out = normalize_images(images, *image_statistics(body))
    stem = next((m for m in body.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if stem is None else stem.in_channels
    if channels == 1:
        out = out.mean(1, keepdim=True)
    elif channels > 3:
        out = out[:, [c % 3 for c in range(channels)]]
    return out.contiguous(memory_format=torch.channels_last)


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer of any kind, torch's or timm's, by its class's name; with parameters in it that are not its
    own it is something else (timm's NormMlpClassifierHead)."""
    return "Norm" in type(module).__name__ and not any(list(child.parameters()) for child in module.children())


def check_body(body: nn.Module, size: int, in_chans: int = 3) -> int:
    """The number of features d that a body gives for images of `size` pixels.

    Raises:
        ModelError: it cannot take them, or does not give one vector [d] an image.
    """
    with evaluating(body):
        try:
            features = body(torch.zeros(2, in_chans, size, size))
        except (RuntimeError, AssertionError, ValueError) as e:
            raise ModelError(f"{type(body).__name__} cannot take images of {size}x{size} pixels ({e}).") from e
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        came = f"{list(features.shape)}" if isinstance(features, torch.Tensor) else type(features).__name__
        raise ModelError(
            f"{type(body).__name__} gives {came} for two images, expected one vector of features each: it is no image "
            "classifier (a detector, a segmenter, a feature pyramid?)."
        )
    return features.shape[1]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients inside; every module's own mode is put back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():  # a model may keep what it computes, and a training takes no tensor of inference mode
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def caught_features(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What goes into the classifier, [B, d], of each call of `model` inside, with its gradient if there is one."""
    head = find_classifier(model)
    caught: list[torch.Tensor] = []
    with noting_inputs([head.layer], lambda _, x: caught.append(head.features(x))):
        yield caught


def extract_features(model: nn.Module, images: torch.Tensor, batch_size: int = EVAL_BATCH) -> torch.Tensor:
    """What goes into the classifier, [N, d] float32, in evaluation mode, of images [N, C, H, W]."""
    head = find_classifier(model)
    with caught_features(model) as caught, evaluating(model):
        for batch in images.split(batch_size):
            model(batch)
    features = torch.cat(caught)
    if features.shape != (len(images), head.in_features):
        raise ModelError(
            f"The classifier of {type(model).__name__} must see one vector an image, [{len(images)}, "
            f"{head.in_features}]; it sees {list(features.shape)}. Such a model is not supported."
        )
    return features


def set_head(model: nn.Module, weight: torch.Tensor, bias: torch.Tensor, images: torch.Tensor) -> None:
    """Give the classifier of `model` a linear head, weight [K, d] and bias [K]; for a convolution that is rectified
    and pooled see Classifier, whose range is taken over `images` [N, C, H, W]."""
    head = find_classifier(model)
    rectified = isinstance(head.layer, nn.Conv2d) and _is_rectified(model, images)
    head.set(weight, bias)
    if not rectified:
        return
    ranges: list[torch.Tensor] = []
    with head.layer.register_forward_hook(lambda _, args, out: ranges.append(torch.stack(out.aminmax()))):
        predict(model, images)
    low, high = torch.stack(ranges).unbind(1)
    head.raise_bias(low.min().item(), high.max().item())


def _is_rectified(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether what the classifier gives below zero is lost on its way to the logits; the classifier is overwritten."""
    head = find_classifier(model)
    head.set(torch.zeros_like(head.layer.weight), torch.full((head.num_classes,), -1.0))
    return predict(model, images[:2]).min().item() >= 0


def predict(model: nn.Module, images: torch.Tensor, batch_size: int = EVAL_BATCH) -> torch.Tensor:
    """Logits [N, K] float32 in evaluation mode."""
    with evaluating(model):
        return torch.cat([model(batch).float() for batch in images.split(batch_size)])
