"""Newer knowledge for a bundle that is being served: codes are made again, nothing is trained, nothing restarts.

<storage>/export/<bundle>/                   what endpoints serve
<storage>/codes/<bundle>/<knowledge>/        codes of newer knowledge, one folder for each refresh
<storage>/codes/<bundle>/latest.json         which of them endpoints shall use; they look from time to time
"""

import json
import re

from upath import UPath

from llm4msr import bundle, codes, id_table, session, storage
from llm4msr.config import Config
from llm4msr.errors import ConfigError, StorageError
from llm4msr.export import exported, llm_of
from llm4msr.extract import extracted
from llm4msr.local_copy import opened
from llm4msr.storage import Built, StageOutput

LATEST = "latest.json"


@session.own_errors
def refresh(config: Config) -> StageOutput:
    """Publish the codes of all users of this config's extraction for a bundle, and point its endpoints to them.

    The bundle is `serve.bundle`, else the one that this config exported.

    Raises:
        ConfigError: nothing is extracted or exported yet, or the bundle was trained on vectors of another LLM.
        StorageError: the bundle is damaged, or its model has no user level.
    """
    found = extracted(config)
    output = opened(config.serve.bundle or str(exported(config).folder))
    served = output.folder
    described = bundle.read_description(served, output.checksum(bundle.DESCRIPTION))
    if (llm := llm_of(config, found)) != described.llm:
        differ = ", ".join(
            f"{k}: {described.llm.get(k)} there, {v} here" for k, v in llm.items() if described.llm.get(k) != v
        )
        raise ConfigError(f"{served}: trained on vectors of another origin ({differ}); train and export again")
    coder = bundle.read_coder(served, described, output.checksum(bundle.CODER))
    folder = _root(served) / found.manifest.fingerprint

    def build(at: UPath) -> Built:
        rows = id_table.write(at / bundle.CODES, codes.encoded(found, coder), bundle.code_schema(served))
        return Built(files={bundle.CODES: rows}, rows=rows)

    inputs = {"extract": found.manifest.fingerprint, "export": served.name}
    out = storage.publish(folder, "refresh", config.seed, {}, inputs, build)
    storage.write_bytes(_root(served) / LATEST, json.dumps({"codes": folder.name}).encode())
    return out


def latest(served: str) -> str:
    """URI of the codes that endpoints of this bundle shall use; empty for the bundle's own.

    Raises:
        StorageError: the pointer cannot be read.
    """
    pointer = _root(storage.path(served)) / LATEST
    if not pointer.exists():
        return ""
    try:
        name = json.loads(storage.read_bytes(pointer))["codes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = None
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):  # a folder beside it, nowhere else
        raise StorageError(f"{pointer}: damaged; run `llm4msr refresh` again")
    return str(pointer.parent / name)


def _root(served: UPath) -> UPath:
    return served.parent.parent / "codes" / served.name
