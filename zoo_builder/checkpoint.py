"""Long work that resumes: modules and their optimizer in one safetensors file, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from zoo_builder.errors import D2NWGError
from zoo_builder.files import temporary_name


def write_atomically(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors to a temporary name in the same folder, then move it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # of any file that the user makes; safetensors' own are for the owner alone
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # as `write_together` does, whose bytes would take twice more memory
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    """What `write_atomically` would write, without metadata."""
    return save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})


def halved_if_exact(tensor: torch.Tensor) -> torch.Tensor:
    """In half precision where that loses nothing."""
    if tensor.is_floating_point() and torch.equal(tensor.half().float(), tensor.float()):
        return tensor.half()
    return tensor


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and string metadata of a safetensors file.

    Raises:
        D2NWGError: missing or damaged.
    """
    try:
        path.open("rb").close()  # what the system says of it is truer than what safetensors makes of that
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as e:
        raise D2NWGError(f"{path} is not a readable file ({e.strerror or e}). Expected a .safetensors one.") from e
    except SafetensorError as e:
        raise D2NWGError(
            f"{path} is not a readable safetensors file ({e}). Get or make it again; a state dict in a file of another "
            "kind is saved as one by safetensors.torch.save_file."
        ) from e


def save_checkpoint(
    path: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer, progress: dict[str, object]
) -> None:
    """Keep all that is needed to go on: modules, optimizer moments, and `progress` (JSON values)."""
    tensors = {f"{name}/{k}": v for name, m in modules.items() for k, v in m.state_dict().items()}
    scalars: dict[str, dict[str, object]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            elif value is not None:
                scalars.setdefault(str(index), {})[key] = value
    write_atomically(path, tensors, {"progress": json.dumps(progress), "optimizer": json.dumps(scalars)})


def load_checkpoint(
    path: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer
) -> dict[str, object]:
    """Undo `save_checkpoint`: fill the modules and the optimizer in place and return `progress`.

    Raises:
        D2NWGError: missing, damaged, or not of these modules.
    """
    tensors, metadata = read_tensors(path)
    try:
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, object]] = {int(i): dict(s) for i, s in json.loads(metadata["optimizer"]).items()}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, field = key.split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return json.loads(metadata["progress"])
    except (KeyError, RuntimeError, ValueError) as e:
        raise D2NWGError(f"{path} holds no state of this training ({e}). Remove it to begin anew.") from e
