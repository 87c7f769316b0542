"""A bundle's codes of its users as Parquet by raw id, for other models: what the ranker keeps of their knowledge.

<to>/<bundle>/README.md               what it is, in the form of a data set's card
<to>/<bundle>/codes/000017.parquet    some users: id, and code as `vector`
"""

import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.bundle import files
from llm4msr.errors import ConfigError
from llm4msr.knowledge.vector_files import vector_table
from llm4msr.progress import track
from llm4msr.storage import FileRecord, StageOutput, StageResult, arrow_files
from llm4msr.storage.local_copy import open_local
from llm4msr.storage.vectors import to_matrix

STAGE = "codes"
ROWS = 1 << 16
"""Users of a file."""
_CARD = """---
configs:
- config_name: codes
  data_files: "codes/*.parquet"
---

# Codes of users

What the model `{name}` keeps of what is known of its users, made by llm4msr: `id`, the raw id, and `vector`, {width}
numbers, between -1 and 1. They mean something for this very model: do not mix them with codes of another bundle.
"""


def export(bundle: StageOutput, to: str) -> StageOutput:
    """Publish the codes of a bundle below a folder or URI, in a folder of the bundle's name.

    Raises:
        ConfigError: its model keeps no codes.
        StorageError: a file of the bundle is damaged, or nothing can be written there.
    """
    folder, source, _hold = open_local(str(bundle.folder))
    description = files.read_description(folder)
    if not description.model.reads_codes:
        raise ConfigError(f"{bundle.folder}: the model '{description.model.variant}' keeps no codes of users")
    inputs = {"export": source.manifest.fingerprint}

    def build(at: UPath) -> StageResult:
        records = dict[str, FileRecord]()
        reader = arrow_files.open_arrow(pa.memory_map(str(folder / files.CODES)))
        with track("export codes", reader.num_record_batches) as progress:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for start in range(0, len(batch), ROWS):
                    some = batch.slice(start, ROWS)
                    name = f"codes/{len(records):06}.parquet"
                    table = vector_table(some["id"], to_matrix(some["code"]), inputs | {"kind": "codes"})
                    records[name] = storage.write_table(at / name, table)
                progress.advance(1)
        card = _CARD.format(name=description.name, width=description.model.code_dim)
        storage.write_bytes(at / "README.md", card.encode())
        rows = sum(record.rows for record in records.values())
        return StageResult(files={**records, "README.md": storage.record_file(at / "README.md", 1)}, rows=rows)

    return storage.publish(storage.path(to) / bundle.folder.name, STAGE, source.manifest.seed, {}, inputs, build)
