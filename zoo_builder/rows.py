"""The index of a zoo: one Parquet file of one row a task, so that each has one writer."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_builder.errors import ZooError
from zoo_builder.files import write_bytes
from zoo_builder.tasks import FineTuneTask

if TYPE_CHECKING:
    import pyarrow


def row_schema() -> pyarrow.Schema:
    """A failed task has an error, and neither metrics nor file. `task`, `metrics`, `curve` and `about` are JSON."""
    pa = _pyarrow()
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    types = {
        "id": text,
        "plan": text,
        "kind": text,
        "datasets": pa.list_(text),
        "domains": pa.list_(text),
        "seed": whole,
        "gain": real,  # best accuracy over that of the solved base, in points
        "seconds": real,
        "bytes": whole,
        "sha256": text,  # of the entry's file
        "error": text,
        "task": text,
        "metrics": text,
        "curve": text,
        "about": text,
    }
    return pa.schema(list(types.items()))


def write_row(path: Path, task: FineTuneTask, **values: object) -> None:
    pa = _pyarrow()
    row = {
        "id": task.id,
        "plan": task.plan,
        "kind": task.kind,
        "datasets": task.datasets,
        "domains": task.domains,
        "seed": task.seed,
        "task": json.dumps(asdict(task)),
        **values,
    }
    schema = row_schema()
    buffer = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist([{n: row.get(n) for n in schema.names}], schema=schema), buffer)
    write_bytes(path, buffer.getvalue())


def read_rows(paths: list[Path]) -> pyarrow.Table:
    """
    Raises:
        ZooError: a damaged row, which is named.
    """
    pa, schema = _pyarrow(), row_schema()
    tables = []
    for path in paths:
        try:
            tables.append(pa.parquet.read_table(io.BytesIO(path.read_bytes()), schema=schema))
        except (OSError, pa.ArrowException) as e:
            raise ZooError(f"{path} is not a readable row ({e!r}). Remove it and build again.") from e
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ZooError("A zoo's index needs pyarrow. Install it with: pip install 'd2nwg-init[zoo]'") from e
    return pyarrow
