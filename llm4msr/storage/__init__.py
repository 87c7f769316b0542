"""Where everything lies: files, Parquet tables and the outputs of stages, in local folders and object stores."""

from llm4msr.storage.files import (
    arrow_filesystem,
    digest,
    digest_file,
    digest_of,
    files_below,
    flush,
    read_bytes,
    read_text,
    remove,
    write_bytes,
    writing,
)
from llm4msr.storage.local_files import room
from llm4msr.storage.outputs import MANIFEST, Built, Manifest, StageOutput, open_output, publish, repair
from llm4msr.storage.parquet import (
    GROUP,
    Part,
    open_parquet,
    parquet_bytes,
    part_of,
    read_table,
    write_groups,
    write_table,
)
from llm4msr.storage.uri import path

__all__ = [
    "GROUP",
    "MANIFEST",
    "Built",
    "Manifest",
    "Part",
    "StageOutput",
    "arrow_filesystem",
    "digest",
    "digest_file",
    "digest_of",
    "files_below",
    "flush",
    "open_output",
    "open_parquet",
    "parquet_bytes",
    "part_of",
    "path",
    "publish",
    "read_bytes",
    "read_table",
    "read_text",
    "remove",
    "repair",
    "room",
    "write_bytes",
    "write_groups",
    "write_table",
    "writing",
]
