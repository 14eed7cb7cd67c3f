"""Which models are accepted, what is inside a wrapper, and the copy that all work is done on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from zoo_builder.attention_cache import forget_biases
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError

# Where a class comes from -> what such models do instead of classifying images.
OTHERS = {
    "torchvision.models.detection": "It detects objects. Initialise an image classifier and use it as its backbone",
    "torchvision.models.segmentation": "It labels pixels. Initialise an image classifier and use it as its backbone",
    "torchvision.models.optical_flow": "It estimates optical flow",
    "torchvision.models.video": "It takes videos",
    "torchvision.models.quantization": "Its weights are quantized: initialise the float model, then quantize it",
    "torch.distributed.fsdp": "Its weights are in shards: initialise the model before sharding it",
    "transformers": "It is a model of Hugging Face transformers, which takes pixel_values and gives no plain logits. "
    "Create the same architecture with timm.create_model(...)",
}


class _LocalBatchNorm(_BatchNorm):
    """Of any number of dimensions, as SyncBatchNorm is."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


class _UnsplitBatchNorm(nn.BatchNorm2d):
    """timm's SplitBatchNorm2d as it is in evaluation, in training too: its other parts, which images of a number that
    they do not divide have none of, are in the state dict alone, and have what the first one has."""

    num_splits: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        for name in ("drop", "act"):
            x = getattr(self, name, nn.Identity())(x)
        return x

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for part in ("", *(f"aux_bn.{i}." for i in range(self.num_splits - 1))):
            super()._save_to_state_dict(destination, prefix + part, keep_vars)

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, [], errors)  # the others' are not taken


LOCAL_BATCHNORM: dict[type, type] = {SyncBatchNormAct: BatchNormAct2d}  # timm's computes more in it


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel, whose parameters it shares."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def check_model(model: nn.Module) -> int:
    """The number of classes of an image classifier.

    Raises:
        ModelError: it is something else.
    """
    for origin, advice in OTHERS.items():
        if any(f"{c.__module__}.".startswith(f"{origin}.") for c in type(model).__mro__):
            raise ModelError(f"{type(model).__name__} is no image classifier of timm or torchvision. {advice}.")
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise ModelError("Parameters of the model have no shape yet. Run an image through its lazy layers first.")
    if any(p.is_inference() for p in model.parameters()):
        raise ModelError(
            "The model was made inside torch.inference_mode(), where parameters are made that nothing can change. Make "
            "it outside."
        )
    if any(p.is_meta for p in model.parameters()):
        raise ModelError("Parameters of the model are on the meta device, where they have no values. Create it on cpu.")
    state = model.state_dict()
    if missing := next((name for name, _ in model.named_parameters() if name not in state), None):
        raise ModelError(
            f"{missing} is a parameter of {type(model).__name__}, and its state_dict() has none of this name: weights "
            "could not be put back. Wrap layers (checkpoint_wrapper) and add state dict hooks after initialize()."
        )
    head = find_classifier(model)
    if head.num_classes < 2:
        raise ModelError(f"The model has {head.num_classes} output; create it with num_classes >= 2.")
    own = {id(p) for p in head.layer.parameters()}
    for name, module in model.named_modules():
        if module is not head.layer and own & {id(p) for p in module.parameters(recurse=False)}:
            raise ModelError(
                f"The classifier of {type(model).__name__}, {head.name}, shares its weights with {name}, and a head "
                "that is solved for would change what goes into it. Give the classifier weights of its own."
            )
    return head.num_classes


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or hasattr(getattr(module, "forward", None), "_torchdynamo_orig_callable")


@contextmanager
def not_compiled(model: nn.Module) -> Iterator[None]:
    """Inside, compiled parts of `model` and of its copies run as they are written: hooks in what is compiled may not be
    called."""
    if not any(_is_compiled(m) for m in model.modules()):
        yield  # the compiler is not even imported
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def give_copies(model: nn.Module) -> None:
    """Of images, at each call: what it changes in place is its own then."""
    model.register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:]))


def working_copy(model: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """A copy to try weights in: on `device`, in float32 where the model is in half precision, channels last, which is
    the faster layout for convolutions, on CPUs above all. Its BatchNorm waits for no other process, and is of the whole
    batch.

    Raises:
        ModelError: it cannot be copied.
    """
    forget_biases(model)  # they may have a gradient, and then there is no copy of them
    try:
        work = copy.deepcopy(model).requires_grad_(False)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as e:
        raise ModelError(
            f"{type(model).__name__} cannot be copied, and nothing is tried in the model itself ({e}). Remove what "
            "computes its weights (torch.nn.utils.weight_norm, prune) and hooks on it, and put them back afterwards."
        ) from e
    for module in list(work.modules()):
        if isinstance(module, nn.SyncBatchNorm):
            module.__class__ = LOCAL_BATCHNORM.get(type(module), _LocalBatchNorm)
        elif isinstance(module, SplitBatchNorm2d):
            module.__class__ = _UnsplitBatchNorm  # type: ignore[assignment]
            del module.aux_bn
    for tensor in (*work.parameters(), *work.buffers()):
        if tensor.is_floating_point() and tensor.itemsize < 4:
            tensor.data = tensor.data.float()  # no other: Module.to(dtype) takes their imaginary part from complex ones
    return work.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def first_weight(model: nn.Module) -> nn.Parameter:
    """Of a layer: images have its type, whatever scales, tables and spectra the model holds beside its layers."""
    return next(p for p in model.parameters() if p.is_floating_point() and p.ndim > 1)


class ApartFrom(TorchFunctionMode):
    """Inside, a copy of `model` that computes with tensors of `model` itself is refused: a function is not copied, and
    one that runs the model's parts, as a forward that was replaced, runs them in the copy too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._names = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for part in value if isinstance(value, tuple | list) else (value,):
                if id(part) in self._names:
                    self._refuse(self._names[id(part)])
        return func(*args, **kwargs)

    def _refuse(self, tensor: str) -> NoReturn:
        name = type(self._model).__name__
        replaced = [part or name for part, m in self._model.named_modules() if "forward" in vars(m)]
        function = f"What the forward of {', '.join(replaced)} was replaced by"
        raise ModelError(
            f"{function if replaced else f'A function that {name} or a hook on it holds'} runs the model itself, and "
            f"not the copy in which everything is tried: it computes with the model's {tensor}. Put it there after "
            "initialize(); part.compile(), in place of torch.compile(part.forward), may come before."
        )


def check_precision(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """That what was computed in float32 is no infinity in the model's own precision.

    Raises:
        ModelError: tensors of `state`, a state dict of `model`, are out of its range.
    """
    for name, own in model.state_dict().items():
        value = state.get(name)
        if not isinstance(value, torch.Tensor) or not own.is_floating_point():
            continue
        if bool((torch.isfinite(value) & ~torch.isfinite(value.to(own.dtype))).any()):
            raise ModelError(
                f"{name} has values up to {value.abs().max().item():.3g}, and the model is in {own.dtype}, of which "
                f"the largest is {torch.finfo(own.dtype).max:.3g}. Nothing was changed. Normalise the images, or "
                "pass the model in bfloat16 or float32."
            )
