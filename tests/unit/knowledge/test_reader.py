"""What decides a vector besides its prompt, and what is written beside it."""

from pathlib import Path
from typing import Any

import pytest

from llm4msr.knowledge.reader import Reader
from tests.support.data import config_of


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"pooling": "mean"}, False),
        ({"pooling": "answer"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"layer": 1}, False),
        ({"engine": "vllm"}, True),
        ({"actors": 3}, True),
        ({"rows_per_shard": 3}, True),
        ({"answer_tokens": 3}, True),
        ({"answers": "all"}, True),
    ],
)
def test_reader_holds_what_decides_a_vector(tmp_path: Path, change: dict[str, Any], same: bool):
    plain = Reader.of(config_of(tmp_path), "rev", "frame").reads
    assert (Reader.of(config_of(tmp_path, extract=change), "rev", "frame").reads == plain) == same
    assert Reader.of(config_of(tmp_path), "other", "frame").reads != plain


@pytest.mark.parametrize(
    ("change", "users", "scenarios"),
    [
        ({"answers": "none"}, False, False),
        ({"answers": "scenarios"}, False, True),
        ({"answers": "all"}, True, True),
    ],
)
def test_reader_holds_what_is_written_beside_the_vectors(
    tmp_path: Path, change: dict[str, Any], users: bool, scenarios: bool
):
    writes = Reader.of(config_of(tmp_path, extract=change), "rev", "frame").writes
    assert (bool(writes["users"]), bool(writes["scenarios"])) == (users, scenarios)
    longer = Reader.of(config_of(tmp_path, extract=change | {"answer_tokens": 7}), "rev", "frame").writes
    assert (longer["users"] != writes["users"], longer["scenarios"] != writes["scenarios"]) == (users, scenarios)


def test_reader_knows_the_length_of_answers_that_are_pooled(tmp_path: Path):
    short, long = (config_of(tmp_path, extract={"pooling": "answer", "answer_tokens": n}) for n in (8, 16))
    assert Reader.of(short, "rev", "frame").reads != Reader.of(long, "rev", "frame").reads
