"""Sums over vectors: what mean and deviation are made of."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llm4msr.errors import StorageError
from llm4msr.knowledge import sums
from llm4msr.knowledge.rows import good_rows, read_vectors, row_groups
from llm4msr.knowledge.sums import Sums
from llm4msr.storage.vectors import to_matrix
from tests.support.data import WIDTH, flip_a_bit
from tests.support.versions import make_version
from tests.unit.conftest import World

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("rows", [0, 1, 8192, 20_001])
def test_sums_of_pieces_are_those_of_the_whole(rows: int):
    vectors = RNG.standard_normal((rows, WIDTH)).astype(np.float16)
    exact = vectors.astype(np.float64)
    whole = Sums.of(vectors)
    parts = sums.add([Sums.of(vectors[:7]), Sums.of(vectors[7:])])
    for found in (whole, parts):
        assert found.users == rows
        np.testing.assert_allclose(found.total_Z, exact.sum(0), atol=1e-9)
        if rows:
            np.testing.assert_allclose(found.mean, exact.mean(0), atol=1e-12)
            np.testing.assert_allclose(found.deviation, exact.std(0), atol=1e-9)


def test_a_versions_sums_are_of_its_good_rows(world: World, tmp_path: Path):
    version = make_version(world, tmp_path, "one", 4, failed=("u3", "u17"))
    rows = pa.concat_tables([read_vectors(group) for group in row_groups(version)])
    good = to_matrix(rows["vector"])[good_rows(rows)].astype(np.float64)
    found = sums.read(version)
    assert found.users == len(good) == 38
    np.testing.assert_allclose(found.total_Z, good.sum(0), rtol=1e-12)
    flip_a_bit(Path(str(version.folder)) / sums.FILE)
    with pytest.raises(StorageError, match=r"sums\.parquet: damaged"):
        sums.read(version)
