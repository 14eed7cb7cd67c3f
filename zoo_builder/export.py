"""An entry as plain weights for timm or torchvision; the index as one table for anything."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from zoo_builder.backbones import prepare_images, set_head
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.batchnorm_fit import fit_batchnorm
from zoo_builder.checkpoint import write_atomically
from zoo_builder.errors import ZooError
from zoo_builder.files import as_path, write_bytes
from zoo_builder.model_stack import shifted
from zoo_builder.store import Zoo, ZooEntry


def export(zoo: Zoo, entry_id: str, out: str | Path) -> int:
    """Write the state dict of the zoo's model as an entry makes it, in float32: what timm.create_model(MODEL,
    num_classes=K, checkpoint_path=OUT) or load_state_dict() takes. Returns K: 0 is the body alone.

    The head of a plain fine-tuning on one dataset goes along, with the body at full strength, for which it was trained;
    any other body is the base plus the delta at its best strength. BatchNorm is fitted to the entry's support images
    and recalibrated on them, as in its scores.

    Raises:
        ZooError: no such entry, or another suffix than .safetensors, by which timm and torch know what they read.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ZooError(f"Weights are a .safetensors file, got {out.name!r}. Name it {out.stem}.safetensors.")
    entry = zoo.entry(entry_id)
    head = _head(entry)
    classes = len(head[1]) if head else 0
    model = zoo.body(classes)
    strength = 1.0 if classes else entry.metrics["best_strength"]
    images = prepare_images(model, entry.support()[0])
    fitted = shifted(model.state_dict(), fit_batchnorm(model, images, zoo.batchnorm))
    model.load_state_dict(shifted(fitted, entry.delta(), strength))
    recalibrate_batchnorm(model, images)
    if head:
        set_head(model, *head, images)
    about = {
        "entry": entry.id,
        "model": zoo.model,
        "size": zoo.size,
        "strength": strength,
        "classes": classes,
        "base_sha256": zoo.base_sha256,
        "sources": entry.about.get("sources", {}),
    }
    pretraining = json.loads(zoo.pretraining())  # of what may become the base of another zoo
    tasks = [a.task for a in entry.ancestry()]
    names = {*pretraining.get("fine_tuned_on", ()), *(name for t in tasks for name in (*t.datasets, *t.related))}
    pretraining["fine_tuned_on"] = sorted(names)
    metadata = {"zoo_entry": json.dumps(about), "pretraining": json.dumps(pretraining)}
    write_atomically(out, model.state_dict(), metadata)
    return classes


def _head(entry: ZooEntry) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight and bias of the entry's own head, where it has just one."""
    heads = entry.heads()
    if entry.task.kind != "finetune" or len(heads) != 2:
        return None
    weight, bias = (next(v for k, v in heads.items() if k.endswith(f"/{part}")) for part in ("weight", "bias"))
    return weight, bias


def export_table(zoo: Zoo, out: str | Path) -> int:
    """Write all rows, entries and failures, into one .parquet or .csv file; returns how many. In CSV the names of
    datasets and domains are joined by semicolons.

    Raises:
        ZooError: another suffix.
    """
    out = as_path(out)
    if out.suffix not in (".parquet", ".csv"):
        raise ZooError(f"An index is a .parquet or .csv file, got {out.name!r}. Name it so, or name an entry.")
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet

    table = zoo.table()
    buffer = io.BytesIO()
    if out.suffix == ".parquet":
        pa.parquet.write_table(table, buffer)
    else:
        for name in ("datasets", "domains"):
            joined = pc.binary_join(table[name], ";")
            table = table.set_column(table.column_names.index(name), name, joined)
        pa.csv.write_csv(table, buffer)
    write_bytes(out, buffer.getvalue())
    return len(table)
