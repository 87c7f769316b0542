"""Codes of newer knowledge for a bundle that is being served: nothing is trained, and no endpoint restarts.

<storage>/export/<bundle>/                   what endpoints serve
<storage>/codes/<bundle>/<knowledge>/        codes of newer knowledge, a folder for each refresh
<storage>/codes/<bundle>/latest.json         which of them endpoints shall use; they look now and then
"""

import json

from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.bundle import files, id_table
from llm4msr.bundle.files import LATEST, codes_root
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.export import user_codes
from llm4msr.export.export import llm_identity
from llm4msr.storage import StageOutput, StageResult


@ray_session.unwrap_errors
def refresh(config: Config, knowledge: StageOutput, bundle: StageOutput) -> StageOutput:
    """Publish the codes of all users of this config's knowledge for a bundle, and point its endpoints to them.

    Raises:
        ConfigError: the bundle was trained on vectors of another LLM.
        StorageError: the bundle is damaged, or its model has no user level.
    """
    served = bundle.folder
    description = files.read_description(served, bundle.checksum(files.DESCRIPTION))
    if (llm := llm_identity(config, knowledge)) != description.llm:
        differ = ", ".join(
            f"{k}: {description.llm.get(k)} there, {v} here" for k, v in llm.items() if description.llm.get(k) != v
        )
        raise ConfigError(f"{served}: trained on vectors of another origin ({differ}); train and export again")
    coder = files.read_coder(served, description, bundle.checksum(files.CODER))
    folder = codes_root(served) / knowledge.manifest.fingerprint

    def build(at: UPath) -> StageResult:
        rows = id_table.write(at / files.CODES, user_codes.encode_all(knowledge, coder), files.code_schema(served))
        return StageResult(files={files.CODES: rows}, rows=rows)

    inputs = {"extract": knowledge.manifest.fingerprint, "export": served.name}
    output = storage.publish(folder, "refresh", config.seed, {}, inputs, build)
    storage.write_bytes(codes_root(served) / LATEST, json.dumps({"codes": folder.name}).encode())
    return output
