"""Users' vectors -> users' codes: Ray Data reads the knowledge row group by row group and encodes with the trained net.

A code is what serving keeps of a user's knowledge: K float16 numbers.
"""

from collections.abc import Iterator

import pyarrow as pa
import torch

from llm4msr import ray_session
from llm4msr.bundle import id_table
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, read_vectors, row_groups
from llm4msr.model.meta import KnowledgeCode
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_column, to_matrix


def encode_all(output: StageOutput, coder: KnowledgeCode) -> Iterator[pa.Table]:
    """Tables as of `encode`, ids ascending from one to the next, of all users who have a vector; uses all of Ray."""
    import ray

    ray_session.connect()
    groups = [group._asdict() for group in row_groups(output)]
    codes = ray.data.from_items(groups, override_num_blocks=len(groups)).map_batches(
        _encode_groups, fn_args=(coder,), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    yield from codes.sort("id").iter_batches(batch_size=id_table.ROWS_PER_BATCH, batch_format="pyarrow")


def _encode_groups(batch: pa.Table, coder: KnowledgeCode) -> pa.Table:
    return pa.concat_tables([encode(read_vectors(RowGroup(**row)), coder) for row in batch.to_pylist()])


@torch.inference_mode()
def encode(part: pa.Table, coder: KnowledgeCode) -> pa.Table:
    """Codes of the good rows of a table of `read_vectors`: id large_string, code fixed_size_list<float16>[K]."""
    good = part.filter(pa.array(good_rows(part)))
    z_NZ = torch.from_numpy(to_matrix(good["vector"]).copy())  # torch wants memory that it may write to
    code_NK = coder(z_NZ, torch.ones(len(good), dtype=torch.bool)).half().numpy()
    return pa.table([good["raw_id"].cast(pa.large_string()), to_column(code_NK)], ["id", "code"])
