"""A model as a folder that timm loads: config.json and model.safetensors."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import nn

from d2nwg_init.torch_defaults import torch_defaults
from zoo_builder.backbones import predict
from zoo_builder.checkpoint import write_atomically
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError
from zoo_builder.random_state import unchanged_random_state


def save_model(model: nn.Module, folder: Path, image_shape: Sequence[int]) -> None:
    """Write `model` as it is now. Each file is there whole or not at all.

    A model of timm is loaded by timm.create_model("local-dir:FOLDER", pretrained=True), head included, and says that it
    is for images of `image_shape` (C, H, W); that of another library has no config.json, and its state dict is
    model.safetensors.

    Raises:
        ModelError: timm cannot describe the model, or would make another of its description; the state of
            another library's holds more than tensors.
    """
    if getattr(model, "pretrained_cfg", None) and hasattr(model, "get_classifier"):  # others may have a cfg, too
        _save_for_timm(model, folder, tuple(image_shape))
    else:
        state = model.state_dict()
        if others := {name: type(v).__name__ for name, v in state.items() if not isinstance(v, torch.Tensor)}:
            raise ModelError(
                f"model.safetensors holds tensors alone, and the state of this {type(model).__name__} has {others}. "
                "Save it as the library that it is of does."
            )
        write_atomically(folder / "model.safetensors", state)


def _save_for_timm(model: nn.Module, folder: Path, image_shape: tuple[int, ...]) -> None:
    from timm.models import save_for_hf

    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # safetensors takes no other
    # Where the user put another layer in the head's place, timm still tells the number of classes of its own.
    head = find_classifier(plain)
    plain.num_classes = head.num_classes  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        try:
            if head.layer is not plain.get_classifier():  # type: ignore[operator]
                raise ValueError("several layers were put in its head's place")
            save_for_hf(
                plain,
                temporary,
                safe_serialization=True,
                model_args={"num_classes": head.num_classes},
                data_config={"input_size": image_shape},
            )
            _check_made_again(plain, temporary, image_shape)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as e:
            raise ModelError(
                f"timm cannot describe this {type(model).__name__} ({e}). Save model.state_dict() instead."
            ) from e
        described = Path(temporary) / "config.json"
        for file in sorted(Path(temporary).iterdir(), reverse=True):  # the weights, then what describes them
            file.chmod(described.stat().st_mode)  # safetensors' own files are for the owner alone
            os.replace(file, folder / file.name)


def _check_made_again(model: nn.Module, folder: str, image_shape: tuple[int, ...]) -> None:
    """What timm makes of the folder must have the tensors of `model`, which becomes float32, and compute the same;
    layers may have been replaced or fused since timm made it."""
    with unchanged_random_state(), torch_defaults():
        again = timm.create_model(f"local-dir:{folder}", pretrained=False)
    again.load_state_dict(model.float().state_dict())
    parameter = next(model.parameters())
    images = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    expected, found = (predict(m.to(parameter.device), images.to(parameter.device)) for m in (model, again))
    tolerance = 1e-3 * float(expected.abs().max())
    if found.shape != expected.shape or not torch.allclose(found, expected, 1e-3, tolerance, equal_nan=True):
        raise ValueError("it computes something else than what timm makes by its name and arguments")
