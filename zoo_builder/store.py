"""A zoo on disk. One safetensors file an entry, moved into place when whole: it is there and right, or not there.

ZOO/zoo.json                  what all entries share: model, size, held-out sets, the base's hash, versions
ZOO/base.safetensors          the body that all deltas refer to
ZOO/entries/ID.safetensors    delta/* (fp16), support, support_labels; the task and its metrics in the header
ZOO/failed/ID.json            why a task failed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from zoo_builder.checkpoint import read_tensors, write_atomically, write_text_atomically
from zoo_builder.errors import ZooError
from zoo_builder.finetune import FineTuneResult
from zoo_builder.tasks import FineTuneTask, ZooRecipe


@dataclass(frozen=True)
class ZooEntry:
    """An entry's header; the tensors are read when asked for."""

    id: str
    path: Path
    task: dict[str, object]
    metrics: dict[str, float]

    def delta(self) -> dict[str, torch.Tensor]:
        """float32 tensors by parameter name, fine-tuned minus base."""
        with safe_open(str(self.path), framework="pt") as file:
            names = [k for k in file.keys() if k.startswith("delta/")]  # noqa: SIM118
            return {k.removeprefix("delta/"): file.get_tensor(k).float() for k in names}

    def support(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [n, 3, S, S] and labels int64 [n]."""
        with safe_open(str(self.path), framework="pt") as file:
            return file.get_tensor("support"), file.get_tensor("support_labels")


@dataclass(frozen=True)
class Zoo:
    path: Path
    model: str  # timm name of the body
    size: int  # pixels
    held_out: tuple[str, ...]
    base_sha256: str

    @classmethod
    def create(cls, path: Path, model: str, base: Path, recipe: ZooRecipe, versions: dict[str, str]) -> Zoo:
        """Make the folder, or open one that was begun with the same base and held-out sets.

        Raises:
            ZooError: the folder holds a zoo of another base or another split.
        """
        sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
        if (path / "zoo.json").exists():
            zoo = cls.open(path)
            if (zoo.base_sha256, zoo.model, zoo.size, zoo.held_out) != (sha256, model, recipe.size, recipe.held_out):
                raise ZooError(
                    f"{path} already holds a zoo of another base, size or held-out list (base {zoo.base_sha256[:12]}, "
                    f"now {sha256[:12]}). Take another --out, or the same base and recipe as before."
                )
            return zoo
        tensors, metadata = read_tensors(base)
        write_atomically(path / "base.safetensors", tensors, metadata)
        about = {
            "format": 1,
            "model": model,
            "size": recipe.size,
            "held_out": recipe.held_out,
            "base_sha256": sha256,
            "versions": versions,
        }
        write_text_atomically(path / "zoo.json", json.dumps(about, indent=1))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Zoo:
        """Open a zoo for reading.

        Raises:
            ZooError: not a zoo.
        """
        path = Path(path)
        try:
            about = json.loads((path / "zoo.json").read_text())
            return cls(path, about["model"], about["size"], tuple(about["held_out"]), about["base_sha256"])
        except (OSError, KeyError, TypeError, ValueError) as e:
            raise ZooError(
                f"{path} is not a zoo: its zoo.json cannot be read ({e!r}). Make one with: d2nwg-init zoo build"
            ) from e

    def base(self) -> dict[str, torch.Tensor]:
        return {k: v.float() for k, v in read_tensors(self.path / "base.safetensors")[0].items()}

    def base_pretrained_on(self) -> str:
        """Name of the dataset that `zoo base` pretrained on, "unknown" for a base from elsewhere."""
        about = read_tensors(self.path / "base.safetensors")[1].get("pretraining", "{}")
        return json.loads(about).get("dataset", "unknown")

    def entry_path(self, task_id: str) -> Path:
        return self.path / "entries" / f"{task_id}.safetensors"

    def __contains__(self, task_id: str) -> bool:
        return self.entry_path(task_id).exists()

    def entry(self, task_id: str) -> ZooEntry:
        path = self.entry_path(task_id)
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata()
            return ZooEntry(task_id, path, json.loads(header["task"]), json.loads(header["metrics"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
            raise ZooError(f"{path} is not a readable zoo entry ({e!r}). Remove it and build again.") from e

    def entries(self, *kinds: str) -> Iterator[ZooEntry]:
        """Entries in the order of their ids, of the given kinds (all, where none is given)."""
        for path in sorted((self.path / "entries").glob("*.safetensors")):
            entry = self.entry(path.stem)
            if not kinds or entry.task["kind"] in kinds:
                yield entry

    def failures(self) -> dict[str, str]:
        """Why tasks failed, by task id."""
        return {p.stem: json.loads(p.read_text())["error"] for p in sorted((self.path / "failed").glob("*.json"))}

    def write(self, task: FineTuneTask, result: FineTuneResult) -> None:
        tensors = {f"delta/{k}": v.half() for k, v in result.delta.items()}
        tensors |= {"support": result.support, "support_labels": result.support_labels}
        header = {"task": json.dumps(asdict(task)), "metrics": json.dumps(result.metrics)}
        write_atomically(self.entry_path(task.id), tensors, header)

    def write_failure(self, task: FineTuneTask, error: str) -> None:
        write_text_atomically(self.path / "failed" / f"{task.id}.json", json.dumps({"error": error}))
