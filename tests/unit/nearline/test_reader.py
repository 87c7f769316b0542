"""A prompt on which the LLM fails does not hold up the others."""

from pathlib import Path

import numpy as np
import pytest

from llm4msr.errors import StorageError
from llm4msr.knowledge.engines.transformers import TransformersEngine
from llm4msr.nearline.reader import readable_vectors

NO_SUCH_TOKEN = 10_000_000


def test_a_prompt_on_which_the_llm_fails_is_passed_over_alone(llama: Path) -> None:
    engine = TransformersEngine(llama, "last", "float32")
    good = engine.vectors([[5, 6, 7], [8, 9]]).astype(np.float16)
    found = readable_vectors(engine, [[5, 6, 7], [NO_SUCH_TOKEN], [8, 9]], [5])
    assert found.dtype == np.float16
    np.testing.assert_allclose(found[[0, 2]], good, atol=2e-3)
    assert not np.isfinite(found[1]).any()


def test_an_llm_that_can_read_nothing_is_not_taken_for_a_bad_prompt(llama: Path) -> None:
    engine = TransformersEngine(llama, "last", "float32")
    with pytest.raises(StorageError):
        readable_vectors(engine, [[NO_SUCH_TOKEN], [NO_SUCH_TOKEN]], [NO_SUCH_TOKEN])
