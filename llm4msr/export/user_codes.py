"""Users' vectors -> users' codes: Ray Data reads the knowledge store part by part and encodes with the trained net.

A code is what serving keeps of a user's knowledge: K float16 numbers.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import torch

from llm4msr import ray_session
from llm4msr.bundle import id_table
from llm4msr.knowledge import store
from llm4msr.model.meta import KnowledgeCode
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_column, to_matrix


def encode_all(output: StageOutput, coder: KnowledgeCode) -> Iterator[pa.Table]:
    """Tables of id and code, ascending by id, of all users of an extraction who have a vector; runs on all of Ray."""
    import ray

    ray_session.connect()
    parts = store.user_parts(output)
    codes = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
        _encode_parts, fn_args=(coder,), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    yield from codes.sort("id").iter_batches(batch_size=id_table.ROWS_PER_BATCH, batch_format="pyarrow")


def _encode_parts(batch: pa.Table, coder: KnowledgeCode) -> pa.Table:
    return pa.concat_tables([encode(store.read_part(part), coder) for part in batch["part"].to_pylist()])


@torch.inference_mode()
def encode(part: pa.Table, coder: KnowledgeCode) -> pa.Table:
    """id large_string and code fixed_size_list<float16>[K] of the good rows of a table of `knowledge.read_part`."""
    good = part.filter(pc.equal(part["error"], ""))
    z_NZ = torch.from_numpy(to_matrix(good["vector"]).copy())  # torch wants memory that it may write to
    code_NK = coder(z_NZ, torch.ones(len(good), dtype=torch.bool)).half().numpy()
    return pa.table({"id": good["raw_id"].cast(pa.large_string()), "code": to_column(code_NK)})
