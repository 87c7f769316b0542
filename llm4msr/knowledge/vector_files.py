"""A version's vectors as Parquet by raw id, for other models: plain ids and plain float32.

<to>/<version>/README.md                what it is, in the form of a data set's card
<to>/<version>/users/000017.parquet     some users: id, and vector
<to>/<version>/scenarios/000000.parquet all scenarios
<to>/<version>/items/000000.parquet     some items, where the version reads items: their vectors as models read them

A file is the unit of work, of memory and of resume, so it holds a few thousand rows.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Array, Column
from llm4msr.errors import StorageError
from llm4msr.knowledge import item_vectors
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, read_vectors, row_groups
from llm4msr.progress import track
from llm4msr.storage import FileRecord, StageOutput, StageResult
from llm4msr.storage.vectors import to_column, to_matrix

STAGE = "vectors"
ITEMS_ROWS = 1 << 13
"""Items of a file."""
FEW = 4
"""Files that this process writes by itself: to start Ray would take longer."""
_ABOUT = b"llm4msr"
"""Under which a file's schema says whose vectors they are."""

_CARD = """---
configs:
{configs}
---

# Vectors of {kinds}

Made by llm4msr. Their source is `{model}`: the name of a frozen LLM or sentence encoder, or `words` for counts of
words. Each folder is a table with two columns: `id`, the raw id (a text), and `vector`, {widths}. Rows without a
vector are left out.

```python
from datasets import load_dataset

users = load_dataset("{folder}", "users", split="train").with_format("numpy")
```

or `pyarrow.dataset.dataset("{folder}/users")`. Vectors of another fingerprint than `{fingerprint}` are of another
model, another way to ask or other data: do not mix them.
"""


class Part(NamedTuple):
    """A file to write, and the row group of the version that it is made of."""

    file: str
    uri: str
    checksum: str
    number: int | None


@ray_session.unwrap_errors
def export(output: StageOutput, data: StageOutput, to: str) -> StageOutput:
    """Publish a version's vectors below a folder or URI; what an interrupted run has written is not written again.

    Args:
        output: the version.
        data: the prepared data that it was made of.
        to: where; the version gets a folder of its own name there.

    Raises:
        StorageError: a file of the version is missing or damaged, nothing can be written there, or something else
            lies there.
    """
    parts = [*_parts(output, "users"), *_parts(output, "scenarios")]
    inputs = {"extract": output.manifest.fingerprint, "content": output.content}
    inputs |= {name: str(output.manifest.inputs.get(name, "")) for name in ("model", "revision")}
    about = inputs | {"version": str(output.manifest.info.get("version", 0))}

    def build(folder: UPath) -> StageResult:
        records = _write_items(output, data, folder, about)
        records |= _write_parts(parts, folder, about)
        card = _card(folder, records, about)
        storage.write_bytes(folder / "README.md", card.encode())
        files = dict(sorted(records.items())) | {"README.md": storage.record_file(folder / "README.md", 1)}
        return StageResult(files=files, rows=sum(record.rows for record in records.values()))

    folder = storage.path(to) / output.folder.name
    written = storage.publish(folder, STAGE, output.manifest.seed, {}, inputs, build, resumable=True)
    if written.manifest.stage != STAGE:
        raise StorageError(f"{folder}: holds the output of stage '{written.manifest.stage}'; choose another folder")
    if (then := written.manifest.inputs.get("revision", "")) != inputs["revision"]:
        raise StorageError(
            f"{folder}: vectors of revision {then}, now it is {inputs['revision']}; delete it, or choose another folder"
        )
    if written.manifest.inputs.get("content") != inputs["content"]:
        raise StorageError(
            f"{folder}: vectors as they were before some were asked anew; delete it, or choose another one"
        )
    return written


def _parts(output: StageOutput, kind: str) -> list[Part]:
    return [Part(f"{kind}/{at:06}.parquet", *group) for at, group in enumerate(row_groups(output, kind))]


def _write_parts(parts: Sequence[Part], folder: UPath, about: dict[str, str]) -> dict[str, FileRecord]:
    records, todo = dict[str, FileRecord](), [part._asdict() for part in parts]
    with track("export vectors", len(parts)) as progress:
        for written in ray_session.run_each(_write_part, todo, few=FEW, folder=str(folder), about=about):
            records[written.pop("file")] = FileRecord.model_validate(written)
            progress.advance(1)
    return records


def _write_part(batch: pa.Table, folder: str, about: dict[str, str]) -> pa.Table:
    """Write one file unless an earlier run has; gives back a row with its name and record."""
    part = Part(**batch.to_pylist()[0])
    file, about = storage.path(folder) / part.file, about | {"kind": part.file.partition("/")[0]}
    if _is_written(file, about):
        record = storage.record_file(file)
    else:
        rows = read_vectors(RowGroup(part.uri, part.checksum, part.number))
        rows = rows.filter(pa.array(good_rows(rows)))
        record = storage.write_table(file, vector_table(rows["raw_id"], to_matrix(rows["vector"]), about))
    return pa.Table.from_pylist([{"file": part.file, **record.model_dump()}])


def _is_written(file: UPath, about: dict[str, str]) -> bool:
    """Whether the file is there, and says the same of itself."""
    if not file.exists():
        return False
    with storage.open_parquet(file) as parquet:
        return (parquet.schema_arrow.metadata or {}).get(_ABOUT) == json.dumps(about).encode()


def _write_items(output: StageOutput, data: StageOutput, folder: UPath, about: dict[str, str]) -> dict[str, FileRecord]:
    if item_vectors.FILE not in output.manifest.files:
        return {}
    items = item_vectors.read(output)
    ids = data.table("items.parquet", ["item_id"])["item_id"]
    places = np.flatnonzero(items.known_I)
    records = dict[str, FileRecord]()
    for at, start in enumerate(range(0, len(places), ITEMS_ROWS)):
        some = places[start : start + ITEMS_ROWS]
        table = vector_table(ids.take(pa.array(some, pa.int64())), items.vectors_ID[some], about | {"kind": "items"})
        name = f"items/{at:06}.parquet"
        records[name] = storage.write_table(folder / name, table)
    return records


def vector_table(ids: Column, vectors_NZ: Array, about: dict[str, str]) -> pa.Table:
    """id string and vector fixed_size_list<float32>[Z], with what they are in the schema's metadata as JSON."""
    layout = pa.schema(
        {"id": pa.string(), "vector": pa.list_(pa.float32(), vectors_NZ.shape[1])}, {_ABOUT: json.dumps(about)}
    )
    columns: list[Any] = [ids.cast(pa.string()), to_column(vectors_NZ.astype(np.float32))]
    return pa.Table.from_arrays(columns, schema=layout)


def _card(folder: UPath, records: dict[str, FileRecord], about: dict[str, str]) -> str:
    """The README.md, whose head tells `datasets` which files are which table."""
    first = {name.partition("/")[0]: name for name in sorted(records, reverse=True)}
    widths = {}
    for kind, name in sorted(first.items(), reverse=True):
        with storage.open_parquet(folder / name) as parquet:
            widths[kind] = parquet.schema_arrow.field("vector").type.list_size
    return _CARD.format(
        configs="\n".join(f'- config_name: {kind}\n  data_files: "{kind}/*.parquet"' for kind in widths),
        kinds=", ".join(widths),
        widths=" and ".join(f"{width} numbers of {kind}" for kind, width in widths.items()),
        model=about["model"],
        fingerprint=about["extract"],
        folder=folder.name,
    )
