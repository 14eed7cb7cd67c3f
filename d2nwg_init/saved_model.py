"""A model as a folder that timm loads: config.json and model.safetensors."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from zoo_builder.checkpoint import write_atomically, write_text_atomically
from zoo_builder.classifier import find_classifier
from zoo_builder.errors import ModelError


def save_model(model: nn.Module, folder: Path, texts: Mapping[str, str]) -> None:
    """Write `model` as it is now, and `texts` by file name. Each file is there whole or not at all.

    A model of timm is loaded by timm.create_model("local-dir:FOLDER", pretrained=True), head included; that of another
    library has no config.json, and its state dict is model.safetensors.

    Raises:
        ModelError: timm cannot describe the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if getattr(model, "pretrained_cfg", None):
        _save_for_timm(model, folder)
    else:
        write_atomically(folder / "model.safetensors", model.state_dict())
    for name, text in texts.items():
        write_text_atomically(folder / name, text)


def _save_for_timm(model: nn.Module, folder: Path) -> None:
    from timm.models import save_for_hf

    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # safetensors takes no other
    # Where the user put another layer in the head's place, timm still tells the number of classes of its own.
    head = find_classifier(plain)
    plain.num_classes = head.num_classes  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        try:
            if head.layer is not plain.get_classifier():  # type: ignore[operator]
                raise ValueError("several layers were put in its head's place")
            save_for_hf(plain, temporary, safe_serialization=True, model_args={"num_classes": head.num_classes})
        except (ValueError, RuntimeError) as e:
            raise ModelError(
                f"timm cannot describe this {type(model).__name__} ({e}). Save model.state_dict() instead."
            ) from e
        for file in sorted(Path(temporary).iterdir(), reverse=True):  # the weights, then what describes them
            os.replace(file, folder / file.name)
