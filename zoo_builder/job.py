"""What a worker does: run tasks of one plan, and write their entries."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from zoo_builder.domain_images import SharedImages
from zoo_builder.errors import ZooError
from zoo_builder.finetune import run_tasks
from zoo_builder.finetune_result import FineTuneResult, Start
from zoo_builder.sources import SourceRecord
from zoo_builder.store import Zoo
from zoo_builder.tasks import FineTuneTask
from zoo_builder.versions import versions


@dataclass(frozen=True)
class Device:
    """Where bodies are trained, and how many in one pass."""

    name: str = "cpu"  # as torch names it
    at_once: int = 1  # models; a core is filled by one, a GPU by tens of small ones
    bf16: bool = False  # the forward pass in training


CPU = Device()


@dataclass(frozen=True)
class Job:
    """All that a worker needs to run tasks and to write their entries."""

    zoo: Zoo
    shared: SharedImages
    sources: dict[str, SourceRecord]
    device: Device

    def __call__(self, tasks: Sequence[FineTuneTask]) -> dict[str, str]:
        """Run tasks of one plan; the errors of those that failed, by id. An entry that is there already stays.

        Raises:
            ZooError: a full disk and the like, which is no failure of a task.
        """
        if all(task.id in self.zoo for task in tasks):  # another builder on the same store was first
            return {}
        try:
            return self._run(tasks)
        except OSError as e:
            raise ZooError(
                f"{self.zoo.path} cannot be written to ({e}). What is done is kept: free space, then run again."
            ) from e

    def _run(self, tasks: Sequence[FineTuneTask]) -> dict[str, str]:
        results: Mapping[str, FineTuneResult | Exception]
        if self.device.name != "cpu":  # or equal seeds would not give equal bits
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            base = self.zoo.body()
            base = base.to(self.device.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
            starts = [self._start(task.start) for task in tasks]
            at_once, bf16 = self.device.at_once, self.device.bf16
            results = run_tasks(
                tasks, base, starts, self.shared, at_once=at_once, bf16=bf16, batchnorm=self.zoo.batchnorm
            )
        except OSError:
            raise
        except Exception as e:
            results = dict.fromkeys((task.id for task in tasks), e)
        failed = {}
        for task in [t for t in tasks if t.id not in self.zoo]:  # the others were beside them when they were made
            result = results[task.id]
            if isinstance(result, Exception):
                self.zoo.write_failure(task, "".join(traceback.format_exception(result)))
                failed[task.id] = str(result).strip() or type(result).__name__
            else:
                self.zoo.write(task, result, self._about(task))
        return failed

    def _about(self, task: FineTuneTask) -> dict[str, object]:
        return {
            "versions": versions(),
            "machine": platform.machine(),
            "device": asdict(self.device),
            "backbone": asdict(self.zoo.backbone) | self.zoo.backbone.policies(),
            "sources": {n: asdict(self.sources[n]) for n in (*task.datasets, *task.related)},
        }

    def _start(self, task_id: str | None) -> Start | None:
        if task_id is None:
            return None
        entry = self.zoo.entry(task_id)
        strength = entry.metrics["best_strength"]
        delta = {k: strength * v for k, v in entry.delta().items()}
        return Start(delta, entry.metrics["learning_rate"])
