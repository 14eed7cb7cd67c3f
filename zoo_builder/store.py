"""A zoo on disk, or on any fsspec path. An entry is there and right, or not there.

ZOO/zoo.json                  what all entries share: backbone, size, held-out sets, the base's hash
ZOO/base.safetensors          the body that all deltas refer to
ZOO/datasets.json             licence, origin and hash of the datasets, and which are related
ZOO/entries/ID.safetensors    delta/* or weights/*, heads/*, support, support_labels, embedding
ZOO/rows/ID.parquet           one row: the task, what it is worth, the file's hash; or why it failed
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import nn

from zoo_builder.backbones import BackboneSpec, load_body
from zoo_builder.batchnorm_fit import BatchNormFit
from zoo_builder.checkpoint import halved_if_exact
from zoo_builder.errors import RecipeError, ZooError
from zoo_builder.files import as_path, is_local, write_bytes
from zoo_builder.finetune_result import FineTuneResult
from zoo_builder.recipe import parse_config
from zoo_builder.rows import read_rows, write_row
from zoo_builder.tasks import FineTuneTask, ZooRecipe

if TYPE_CHECKING:
    import pyarrow

FORMAT = 3  # of 2 the deltas were trained on a base that is not rescaled


@dataclass(frozen=True)
class ZooEntry:
    """One row; the tensors are read when asked for."""

    id: str
    zoo: Zoo
    task: FineTuneTask
    metrics: dict[str, float]  # accuracies in percent, see FineTuneResult
    curve: list[tuple[int, float]]  # (step, mean training loss since the point before)
    sha256: str  # of the file
    seconds: float
    about: dict[str, Any]  # versions, licences and hashes of the datasets, the machine

    @property
    def path(self) -> Path:
        return self.zoo.entry_path(self.id)

    def ancestry(self) -> Iterator[ZooEntry]:
        """Itself, the entry that it went on from, and so on, down to one that began at the base.

        Raises:
            ZooError: one of them is not in the zoo.
        """
        entry = self
        yield entry
        while entry.task.start is not None:
            entry = self.zoo.entry(entry.task.start)
            yield entry

    def delta(self) -> dict[str, torch.Tensor]:
        """float32 tensors by parameter name, fine-tuned minus base; what was not trained is not there."""
        tensors = self._tensors("delta/", "weights/")
        base = self.zoo.base() if any(k.startswith("weights/") for k in tensors) else {}
        names = {k: k.partition("/")[2] for k in tensors}
        return {n: tensors[k].float() - (base[n] if k.startswith("weights/") else 0) for k, n in names.items()}

    def heads(self) -> dict[str, torch.Tensor]:
        """DATASET/weight and DATASET/bias of trained heads; none of an episodic entry."""
        return {k.removeprefix("heads/"): v for k, v in self._tensors("heads/").items()}

    def support(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [n, 3, S, S] and labels int64 [n]."""
        tensors = self._tensors("support")
        return tensors["support"], tensors["support_labels"]

    def embedding(self) -> torch.Tensor:
        """[2 d] float32, of the support."""
        return self._tensors("embedding")["embedding"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the file holds, as it is stored."""
        return self._tensors("")

    def _tensors(self, *prefixes: str) -> dict[str, torch.Tensor]:
        """Mapped from a local file, so that only what is asked for is read."""
        try:
            if is_local(self.path):
                with safe_open(str(self.path), framework="pt") as file:
                    return {k: file.get_tensor(k) for k in file.keys() if k.startswith(prefixes)}  # noqa: SIM118
            whole = tensors_of(self.path.read_bytes())
            return {k: v for k, v in whole.items() if k.startswith(prefixes)}
        except (OSError, SafetensorError) as e:
            raise ZooError(f"{self.path} is not a readable zoo entry ({e!r}). Remove it and build again.") from e


@dataclass(frozen=True)
class Zoo:
    path: Path
    backbone: BackboneSpec
    size: int  # pixels
    held_out: tuple[str, ...]
    base_sha256: str
    keep: str = "delta"  # or "full"
    batchnorm: BatchNormFit = "rescaled"  # of the base, as deltas are added to it

    @property
    def model(self) -> str:
        return self.backbone.model

    @functools.cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Of the body's parameters by name, in their order."""
        with torch.random.fork_rng(devices=[]):  # a body draws its first weights, which nobody's seed should depend on
            return {name: p.shape for name, p in self.backbone.create().named_parameters()}

    @classmethod
    def create(cls, path: str | Path, backbone: BackboneSpec, base: dict[str, torch.Tensor], recipe: ZooRecipe,
               pretraining: str = "{}") -> Zoo:  # fmt: skip
        """Make the folder, or open one that was begun with the same backbone, base, size, held-out sets and `keep`.

        Raises:
            ZooError: the folder holds a zoo in which one of these is another.
        """
        path = as_path(path)
        stored = {k: halved_if_exact(v).contiguous() for k, v in sorted(base.items())}
        contents = bytes_of(stored, {"pretraining": pretraining})
        sha256 = hashlib.sha256(contents).hexdigest()
        zoo = cls(path, backbone, recipe.size, recipe.held_out, sha256, recipe.keep)
        if (path / "zoo.json").exists():
            before = cls.open(path)
            ours, theirs = (asdict(z) | {"held_out": sorted(z.held_out)} for z in (zoo, before))
            differing = [k for k in ours if k not in ("path", "batchnorm") and ours[k] != theirs[k]]
            if differing:
                raise ZooError(
                    f"{path} already holds a zoo with another {', '.join(differing)}. Take another --out, or the same "
                    "base and recipe as before."
                )
            return before
        write_bytes(path / "base.safetensors", contents)
        zoo.write_description()
        return zoo

    def write_description(self) -> None:
        """Write zoo.json."""
        about = {"format": FORMAT, **{k: v for k, v in asdict(self).items() if k != "path"}}
        write_bytes(self.path / "zoo.json", json.dumps(about, indent=1).encode())

    @classmethod
    def open(cls, path: str | Path) -> Zoo:
        """Open a zoo for reading; `path` may be a URL that fsspec knows.

        Raises:
            ZooError: not a zoo.
        """
        path = as_path(path)
        try:
            about = json.loads((path / "zoo.json").read_text())
            found = about.pop("format")
            if found != FORMAT:
                raise ZooError(f"{path} has zoo format {found}; this version reads {FORMAT}. Build it again.")
            if about.get("batchnorm", "rescaled") not in get_args(BatchNormFit):
                raise ValueError(f"batchnorm: expected one of {get_args(BatchNormFit)}, got {about['batchnorm']!r}")
            backbone = parse_config(about.pop("backbone"), BackboneSpec)
            return cls(path, backbone, **{**about, "held_out": tuple(about["held_out"])})
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecipeError) as e:
            raise ZooError(
                f"{path} is not a zoo: its zoo.json cannot be read ({e!r}). Make one with: d2nwg-init zoo build"
            ) from e

    def base(self) -> dict[str, torch.Tensor]:
        """The body's state dict in float32 (whole numbers stay)."""
        try:
            tensors = tensors_of((self.path / "base.safetensors").read_bytes())
        except (OSError, SafetensorError) as e:
            raise ZooError(f"{self.path}/base.safetensors cannot be read ({e}). Put it back, or build anew.") from e
        return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}

    def body(self, num_classes: int = 0) -> nn.Module:
        """The base as a model, with a random head of `num_classes`."""
        model = self.backbone.create(num_classes=num_classes)
        load_body(model, self.base(), str(self.path / "base.safetensors"))
        return model

    def base_pretrained_on(self) -> str:
        """As `pretrained_on`."""
        return pretrained_on(self.pretraining())

    def pretraining(self) -> str:
        """What the base's file says of its pretraining, in JSON."""
        with (self.path / "base.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return header.get("__metadata__", {}).get("pretraining", "{}")

    def entry_path(self, task_id: str) -> Path:
        """
        Raises:
            ZooError: the id is no file name, as of a zoo that was made to write elsewhere.
        """
        return self.path / "entries" / f"{_file_name(task_id)}.safetensors"

    def row_path(self, task_id: str) -> Path:
        """
        Raises:
            ZooError: as of `entry_path`.
        """
        return self.path / "rows" / f"{_file_name(task_id)}.parquet"

    def __contains__(self, task_id: str) -> bool:
        """The row is written last: where it is, the entry is whole."""
        return self.row_path(task_id).exists() and self.entry_path(task_id).exists()

    def table(self) -> pyarrow.Table:
        """All rows, entries and failures, in the order of their ids; for pyarrow, DuckDB, pandas."""
        return read_rows(sorted((self.path / "rows").glob("*.parquet")))

    def entries(
        self,
        plans: Sequence[str] = (),
        kinds: Sequence[str] = (),
        datasets: Sequence[str] = (),
        min_gain: float = float("-inf"),
    ) -> Iterator[ZooEntry]:
        """Entries in the order of their ids; of the given plans, kinds and datasets (of all, where none is given), that
        gain at least `min_gain` points over the solved base."""
        for row in self.table().to_pylist():
            if (
                row["error"] is None
                and (not plans or row["plan"] in plans)
                and (not kinds or row["kind"] in kinds)
                and (not datasets or set(datasets) & set(row["datasets"]))
                and row["gain"] >= min_gain
            ):
                yield self._entry(row)

    def entry(self, task_id: str) -> ZooEntry:
        """
        Raises:
            ZooError: not there.
        """
        if task_id not in self:
            raise ZooError(f"{self.path} has no entry {task_id!r}; d2nwg-init zoo list names them.")
        return self._entry(read_rows([self.row_path(task_id)]).to_pylist()[0])

    def failures(self) -> dict[str, str]:
        """Why tasks failed, by task id."""
        return {r["id"]: r["error"] for r in self.table().to_pylist() if r["error"] is not None}

    def stack(self, entries: Iterable[ZooEntry], out: Path) -> torch.Tensor:
        """float16 [n, parameters]: the entries' deltas, flattened in the order of the body's parameters, zero where
        nothing was trained. The tensor lies in the file `out` and is mapped: memory does not grow with the zoo."""
        entries = list(entries)
        width = sum(shape.numel() for shape in self.shapes.values())
        stacked = torch.from_file(str(out), shared=True, size=len(entries) * width, dtype=torch.half)
        stacked = stacked.view(len(entries), width)
        for row, entry in zip(stacked, entries, strict=True):
            delta = entry.delta()
            row.copy_(torch.cat([delta.get(k, torch.zeros(s)).flatten() for k, s in self.shapes.items()]))
        return stacked

    def write(self, task: FineTuneTask, result: FineTuneResult, about: dict[str, Any] | None = None) -> None:
        """The tensors first, then the row. One without a file is a failure's, which goes before: with a file it would
        count as done."""
        if task.id not in self:
            self.row_path(task.id).unlink(missing_ok=True)
        if self.keep == "full":
            base = self.base()
            body = {f"weights/{k}": base[k] + v.float() for k, v in result.delta.items()}
        else:
            body = {f"delta/{k}": v for k, v in result.delta.items()}
        tensors = body | {f"heads/{k}": v for k, v in result.heads.items()}
        tensors |= {
            "support": result.support, "support_labels": result.support_labels, "embedding": result.embedding,
        }  # fmt: skip
        contents = bytes_of({k: v.detach().cpu().contiguous() for k, v in sorted(tensors.items())})
        write_bytes(self.entry_path(task.id), contents)
        write_row(
            self.row_path(task.id),
            task,
            metrics=json.dumps(result.metrics),
            curve=json.dumps(result.curve),
            gain=result.metrics["gain"],
            seconds=result.metrics["seconds"],
            sha256=hashlib.sha256(contents).hexdigest(),
            bytes=len(contents),
            about=json.dumps(about or {}),
        )

    def write_failure(self, task: FineTuneTask, error: str) -> None:
        """The row; a file of the entry that is there goes first, or with a row it would count as done."""
        self.entry_path(task.id).unlink(missing_ok=True)
        write_row(self.row_path(task.id), task, error=error)

    def _entry(self, row: dict[str, Any]) -> ZooEntry:
        curve = [(int(step), float(loss)) for step, loss in json.loads(row["curve"])]
        return ZooEntry(
            id=row["id"],
            zoo=self,
            task=parse_config(json.loads(row["task"]), FineTuneTask),
            metrics=json.loads(row["metrics"]),
            curve=curve,
            sha256=row["sha256"],
            seconds=row["seconds"],
            about=json.loads(row["about"]),
        )


def _file_name(task_id: str) -> str:
    if not task_id or PurePath(task_id).name != task_id or "\\" in task_id or "\0" in task_id:
        raise ZooError(f"{task_id!r} is no id of an entry: an id is the name of a file. Do not use a zoo that has it.")
    return task_id


def pretrained_on(pretraining: str) -> str:
    """Names of datasets, joined by commas, of what a base's file says of its pretraining: that of `zoo base`, "unknown"
    of a base from elsewhere, and those that an exported entry was fine-tuned on."""
    about = json.loads(pretraining)
    return ", ".join([about.get("dataset", "unknown"), *about.get("fine_tuned_on", ())])


def files_sha256(entries: Iterable[ZooEntry]) -> str:
    """Of the hashes of these entries' files: equal where all weights are, as those of a zoo that was built again on
    another machine are not."""
    return hashlib.sha256("".join(e.sha256 for e in entries).encode()).hexdigest()
