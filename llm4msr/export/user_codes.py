"""Users' vectors -> users' codes: Ray Data reads the knowledge row group by row group and encodes with the trained net.

A code is what serving keeps of a user's knowledge: K float16 numbers.
"""

from collections.abc import Iterator

import pyarrow as pa
import torch

from llm4msr import ray_session
from llm4msr.arrays import strings
from llm4msr.export.partition_tables import split
from llm4msr.hashes import hash_ids, numbers_of
from llm4msr.knowledge.index import RowGroup
from llm4msr.knowledge.rows import good_rows, read_vectors, row_groups
from llm4msr.model.meta import KnowledgeCode
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_column, to_matrix

PARTITION_ROWS = 1 << 18
"""Users of a partition, about: what the process that writes the codes holds at once."""


def encode_all(output: StageOutput, coder: KnowledgeCode) -> Iterator[pa.Table]:
    """Tables as of `encode`, one for each partition of all users who have a vector; uses all of Ray."""
    import ray

    ray_session.connect()
    groups = [group._asdict() for group in row_groups(output)]
    total = 1 << (output.manifest.rows // PARTITION_ROWS).bit_length()
    codes = ray.data.from_items(groups, override_num_blocks=len(groups)).map_batches(
        _encode_groups, fn_args=(coder, total), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    in_order = codes.sort("partition").iter_batches(batch_size=PARTITION_ROWS, batch_format="pyarrow")
    return split(in_order, total)


def _encode_groups(batch: pa.Table, coder: KnowledgeCode, total: int) -> pa.Table:
    codes = pa.concat_tables([encode(read_vectors(RowGroup(**row)), coder) for row in batch.to_pylist()])
    numbers = numbers_of(hash_ids(strings(codes["id"])), total)
    return codes.append_column("partition", pa.array(numbers))


@torch.inference_mode()
def encode(part: pa.Table, coder: KnowledgeCode) -> pa.Table:
    """Codes of the good rows of a table of `read_vectors`: id large_string, code fixed_size_list<float16>[K]."""
    good = part.filter(pa.array(good_rows(part)))
    z_NZ = torch.from_numpy(to_matrix(good["vector"]).copy())  # torch wants memory that it may write to
    code_NK = coder(z_NZ, torch.ones(len(good), dtype=torch.bool)).half().numpy()
    return pa.table([good["raw_id"].cast(pa.large_string()), to_column(code_NK)], ["id", "code"])
