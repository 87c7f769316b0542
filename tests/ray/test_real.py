"""The real SmolLM2-135M on real MovieLens-100K histories: both engines read a prompt in the same way."""

from pathlib import Path

import numpy as np
import pytest

import llm4msr
from llm4msr import pipeline
from llm4msr.knowledge import interests
from llm4msr.knowledge.engines import open_engine, open_tokenizer
from tests.support.experiments import REAL_USERS, cosines, matrix, read_store

pytestmark = pytest.mark.real

SCENARIOS = 6


def test_vllm_and_transformers_agree_and_answer(real: llm4msr.Config) -> None:
    """MovieLens-100K's most active users and all its scenarios went through the pipeline; now their prompts again."""
    config, output = real, pipeline.extract(real)
    assert output.manifest.info["spent"]["answers"]["with_interests"] == REAL_USERS
    fast = read_store(Path(str(output.folder)))
    assert fast.num_rows == REAL_USERS + SCENARIOS
    assert not any(fast["error"].to_pylist())
    plain = config.extract.model_copy(update={"engine": "transformers"})
    tokens = map(open_tokenizer(plain), fast["prompt"].to_pylist())
    plain_NZ = open_engine(plain).vectors(list(tokens)).astype(np.float64)
    assert cosines(matrix(fast), plain_NZ).min() > 0.999

    between_users = plain_NZ[SCENARIOS:] - plain_NZ[SCENARIOS:].mean(0)
    distances = np.linalg.norm(matrix(fast) - plain_NZ, axis=1)
    assert distances.max() < 0.05 * np.linalg.norm(between_users, axis=1).min(), "engines differ less than users do"

    answers = fast["answer"].to_pylist()
    assert all(len(answer.split()) > 5 for answer in answers[:SCENARIOS])
    names = fast["raw_id"].to_pylist()[:SCENARIOS]
    for answer in answers[SCENARIOS:]:
        assert interests.read(answer, names), "a user's answer is held to JSON, even where its tokens do not suffice"
