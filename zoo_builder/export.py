"""An entry as plain weights for timm or torchvision; the index as one table for anything."""

from __future__ import annotations

import io
import json
from pathlib import Path

from torch import nn

from zoo_builder.backbones import find_classifier, load_body, prepare_images
from zoo_builder.batchnorm import recalibrate_batchnorm
from zoo_builder.checkpoint import write_atomically
from zoo_builder.errors import ModelError, ZooError
from zoo_builder.files import as_path, write_bytes
from zoo_builder.model_stack import shifted
from zoo_builder.store import Zoo, ZooEntry


def export(zoo: Zoo, entry_id: str, out: str | Path) -> int:
    """Write the state dict of the zoo's model as an entry makes it, in float32: what timm.create_model(MODEL,
    num_classes=K, checkpoint_path=OUT) or load_state_dict() takes. Returns K: 0 is the body alone.

    The head of a plain fine-tuning on one dataset goes along, with the body at full strength, for which it was trained;
    any other body is the base plus the delta at its best strength. BatchNorm's statistics are those of the entry's
    support images, as in its scores.

    Raises:
        ZooError: no such entry.
    """
    entry = zoo.entry(entry_id)
    model, classes = _with_head(entry)
    strength = 1.0 if classes else entry.metrics["best_strength"]
    model.load_state_dict(shifted(model.state_dict(), entry.delta(), strength))
    recalibrate_batchnorm(model, prepare_images(model, entry.support()[0]))
    about = {
        "entry": entry.id,
        "model": zoo.model,
        "size": zoo.size,
        "strength": strength,
        "classes": classes,
        "base_sha256": zoo.base_sha256,
        "sources": entry.about.get("sources", {}),
    }
    write_atomically(Path(out), model.state_dict(), {"zoo_entry": json.dumps(about)})
    return classes


def _with_head(entry: ZooEntry) -> tuple[nn.Module, int]:
    """The base with the entry's own head and its number of classes; without one and 0 where it has not just one."""
    zoo, heads = entry.zoo, entry.heads()
    if entry.task.kind == "finetune" and len(heads) == 2:
        weight, bias = (next(v for k, v in heads.items() if k.endswith(f"/{part}")) for part in ("weight", "bias"))
        model = zoo.backbone.create(num_classes=len(weight))
        try:
            _, head = find_classifier(model)
            load_body(model, zoo.base(), str(zoo.path))
            head.load_state_dict({"weight": weight, "bias": bias})
            return model, len(weight)
        except ModelError:  # no linear layer: squeezenet's is a convolution
            pass
    model = zoo.backbone.create()
    load_body(model, zoo.base(), str(zoo.path))
    return model, 0


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
