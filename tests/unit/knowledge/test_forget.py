"""Lists of users to forget: what is in them, who on them is known, and what is told of the others."""

from pathlib import Path

import pytest

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.knowledge import forget
from llm4msr.knowledge.versions import index_files
from tests.support.data import published
from tests.support.partitioned import in_partitions
from tests.support.versions import make_version
from tests.unit.conftest import World


def listing(config: Config, folder: Path, content: bytes) -> Config:
    (folder / "forget.txt").write_bytes(content)
    return config.model_copy(
        update={"extract": config.extract.model_copy(update={"forget": str(folder / "forget.txt")})}
    )


@pytest.mark.parametrize(
    "content",
    [b"u5\nu9\n", b"u9\r\nu5", b"\xef\xbb\xbfu5\r\nu9\r\n", b"u5\ru9\r", b"\n\nu9\n\nu5\n\nu5\n"],
    ids=["unix", "windows", "with a mark", "old mac", "twice and blank lines"],
)
def test_a_list_is_the_same_with_any_line_end(world: World, tmp_path: Path, content: bytes):
    config = listing(world.config, tmp_path, content)
    assert forget.ids_to_forget(config).to_pylist() == ["u5", "u9"]
    assert forget.check_list(config, world.data, []) == (["u5", "u9"], [])
    assert len(forget.ids_to_forget(config, "scenarios")) == 0


def test_ids_are_taken_exactly_as_given(world: World, tmp_path: Path):
    lines = [" u5", "u9\t", "Ü7", "a,b", '"u1"', "u1\u2028", "u5"]
    config = listing(world.config, tmp_path, "\n".join(lines).encode())
    assert forget.ids_to_forget(config).to_pylist() == sorted(lines)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("u5\nu9\n".encode("utf-16"), "the encoding is UTF-16; save it as UTF-8"),
        ("Jürgen\nu5\n".encode("latin-1"), r"the encoding is not UTF-8 \(byte 2 is 0xfc\)"),
        ("u5\nu9".encode("utf-16-le"), "4 of 4 ids to forget are nobody's"),
    ],
    ids=["utf-16", "latin-1", "utf-16 without a mark"],
)
def test_a_list_in_another_encoding_is_an_error(world: World, tmp_path: Path, content: bytes, told: str):
    config = listing(world.config, tmp_path, content)
    with pytest.raises(StorageError, match=rf"forget\.txt: .*{told.replace('4 of 4', '[0-9] of [0-9]')}"):
        forget.check_list(config, world.data, [])


def test_a_list_that_is_not_there_is_an_error(world: World, tmp_path: Path):
    config = listing(world.config, tmp_path, b"u5")
    (tmp_path / "forget.txt").unlink()
    with pytest.raises(StorageError, match=r"forget\.txt: cannot be read"):
        forget.check_list(config, world.data, [])


def test_who_is_nobody_is_named_and_counted(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = listing(world.config, tmp_path, b"u5\nx1\nx2\x1b[2J\nx3\nx4\n u9\n")
    found = forget.check_list(config, world.data, [])
    assert found.known == ["u5"]
    told = capsys.readouterr().err
    assert "5 of 6 ids to forget are nobody's: ' u9', 'x1', 'x2\\x1b[2J' and 2 more" in told
    assert "(1 of them are known without the blanks around them, such as 'u9')" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("content", [b"x1\nx2", b"U5\nu5 \n", b"5\n"])
def test_a_list_of_nobodies_is_an_error(world: World, tmp_path: Path, content: bytes):
    config = listing(world.config, tmp_path, content)
    with pytest.raises(
        StorageError, match=r"forget\.txt: (\d) of \1 ids to forget are nobody's: .*one a line in UTF-8"
    ):
        forget.check_list(config, world.data, [])


def test_an_empty_list_is_told(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = listing(world.config, tmp_path, b"\n\n")
    assert forget.check_list(config, world.data, []) == ([], [])
    assert "forget.txt: the list of users to forget is empty" in capsys.readouterr().err
    assert forget.check_list(world.config, world.data, []) == ([], [])


@pytest.mark.parametrize("buckets", [1, 8])
def test_who_is_gone_from_the_data_and_not_yet_from_the_store_is_known(world: World, tmp_path: Path, buckets: int):
    make_version(world, tmp_path / "store", "one", buckets)
    bases = index_files(storage.path(tmp_path / "store"), storage.files_below(storage.path(tmp_path / "store")))
    users = world.data.table("users/p=00000.parquet")
    later = users.filter([name != "u5" for name in users["user_id"].to_pylist()])
    storage.write_table(storage.path(tmp_path / "later" / "users/p=00000.parquet"), later)
    data = published(tmp_path / "later", {"users/p=00000.parquet": len(later)})
    config = listing(world.config, tmp_path, b"u5\nu9\nx1")
    assert forget.check_list(config, data, []).known == ["u9"]
    assert forget.check_list(config, data, bases.values()) == (["u5", "u9"], ["x1"])


def test_ids_are_looked_up_in_their_partitions_alone(world: World, tmp_path: Path):
    config, data = in_partitions(world.config, world.data, 4, tmp_path / "data")
    home_N = partitions.numbers_of(partitions.hash_ids(["u5", "u9", "nobody"]), 4)
    for number in set(range(4)) - set(home_N.tolist()):
        (Path(str(data.folder)) / partitions.file_name("users", number)).unlink()
    config = listing(config, tmp_path, b"u9\nu5\nnobody\n")
    assert forget.check_list(config, data, []) == (["u5", "u9"], ["nobody"])
