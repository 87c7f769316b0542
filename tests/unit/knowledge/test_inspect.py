"""What a version knows of a user is read from the user's partition alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.knowledge import inspect
from llm4msr.knowledge.rows import good_rows, partition_of
from llm4msr.storage.vectors import to_matrix
from tests.support.experiments import cosines
from tests.support.partitioned import in_partitions
from tests.support.versions import make_version, read_users
from tests.unit.conftest import World


@pytest.mark.parametrize(("total", "buckets"), [(1, 4), (2, 2), (4, 8)])
def test_a_user_is_compared_with_the_users_of_the_partition(world: World, tmp_path: Path, total: int, buckets: int):
    config, data = in_partitions(world.config, world.data, total, tmp_path / "data")
    version = make_version((config, data, world.knowledge), tmp_path, "one", buckets, failed=("u3",))
    rows = read_users(version)
    rows = rows.filter(pa.array(good_rows(rows)))
    ids = rows["raw_id"].to_pylist()
    home_N = partitions.numbers_of(partitions.hash_ids(map(str, ids)), total)
    for name in version.manifest.files:
        if name.startswith("index/") and partition_of(name, total) != home_N[5]:
            (Path(str(version.folder)) / name).unlink()
    shown = inspect.show(version, str(ids[5]), neighbours=3)
    vectors = to_matrix(rows["vector"]).astype(np.float64)
    centred = vectors - vectors.mean(0)
    beside = [i for i in np.flatnonzero(home_N == home_N[5]) if i != 5]
    cosine = cosines(centred[beside], np.broadcast_to(centred[5], (len(beside), centred.shape[1])))
    assert shown["compared"] == len(beside)
    found = [near["cosine"] for near in shown["nearest"]]
    np.testing.assert_allclose(found, np.sort(cosine)[::-1][:3], atol=1e-3)
    assert {near["raw_id"] for near in shown["nearest"]} <= {ids[i] for i in beside}


def test_who_is_unknown_is_told(world: World, tmp_path: Path):
    version = make_version(world, tmp_path, "one", 2)
    with pytest.raises(ConfigError, match="knows no user 'nobody'; ids are those of the source's files"):
        inspect.show(version, "nobody")
