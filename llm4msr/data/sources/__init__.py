"""Raw data -> three Arrow tables in the layout of `llm4msr.schema`."""

from llm4msr.config import SourceConfig
from llm4msr.data.sources import amazon, kuaisar, movielens, table
from llm4msr.data.sources.base import RawData

_READERS = {"amazon": amazon, "kuaisar": kuaisar, "movielens": movielens, "table": table}


def read(config: SourceConfig) -> RawData:
    """Read the configured source.

    Raises:
        DataError: a file, column or cell is wrong; named in the message.
        StorageError: a URI cannot be read.
    """
    return _READERS[config.kind].read(config)


def fingerprint(config: SourceConfig) -> str:
    """A hash that changes when the content of the source's files changes.

    Reads all of them, but those of an object store that gives ETags.
    """
    return _READERS[config.kind].fingerprint(config)


__all__ = ["RawData", "fingerprint", "read"]
