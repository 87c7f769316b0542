"""Where everything lies: files, Parquet tables and the outputs of stages, in local folders and object stores."""

from llm4msr.storage.files import (
    arrow_filesystem,
    create,
    digest,
    digest_file,
    digest_json,
    files_below,
    flush,
    read_bytes,
    read_text,
    remove,
    write_bytes,
)
from llm4msr.storage.local_files import full_disk_errors
from llm4msr.storage.manifest import MANIFEST, Manifest
from llm4msr.storage.outputs import StageOutput, StageResult, clear, open_output, publish, repair_advice
from llm4msr.storage.parquet import (
    GROUP_ROWS,
    FileRecord,
    open_parquet,
    parquet_bytes,
    read_table,
    record_file,
    write_groups,
    write_table,
)
from llm4msr.storage.uri import path

__all__ = [
    "GROUP_ROWS",
    "MANIFEST",
    "FileRecord",
    "Manifest",
    "StageOutput",
    "StageResult",
    "arrow_filesystem",
    "clear",
    "create",
    "digest",
    "digest_file",
    "digest_json",
    "files_below",
    "flush",
    "full_disk_errors",
    "open_output",
    "open_parquet",
    "parquet_bytes",
    "path",
    "publish",
    "read_bytes",
    "read_table",
    "read_text",
    "record_file",
    "remove",
    "repair_advice",
    "write_bytes",
    "write_groups",
    "write_table",
]
