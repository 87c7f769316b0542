"""Files of an unfinished `prepare`."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from llm4msr import storage
from llm4msr.data.interactions import Keys
from llm4msr.data.scenarios import ScenarioSums
from llm4msr.data.work_files import read_sums, write_sums
from llm4msr.errors import StorageError

SUMS = ScenarioSums(
    np.array([3, 4]),
    np.array([1, 2]),
    np.array([2, 2]),
    Keys(np.array([1]), np.array([2])),
    Keys(np.array([5, 7]), np.array([1, 1])),
)


def test_sums_are_read_as_they_were_written(tmp_path: Path):
    file = storage.path(tmp_path / "sums" / "00000.npz")
    write_sums(file, SUMS)
    rows_S, label_S, users_S, shared, categories = read_sums(file)
    known = [*SUMS[:3], *SUMS.shared, *SUMS.categories]
    for column, wanted in zip([rows_S, label_S, users_S, *shared, *categories], known, strict=True):
        np.testing.assert_array_equal(column, wanted)


def write_objects(file: Path) -> None:
    np.savez(file, *[np.array([{}], object)] * 7)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "pickle": lambda file: file.write_bytes(pickle.dumps({"rows": 1})),
    "objects": write_objects,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_sums_is_told_and_nothing_is_unpickled(tmp_path: Path, damage: str):
    file = tmp_path / "00000.npz"
    write_sums(storage.path(file), SUMS)
    DAMAGES[damage](file)
    with pytest.raises(StorageError, match=r"00000.npz: damaged; delete it and run `llm4msr prepare` again"):
        read_sums(storage.path(file))
