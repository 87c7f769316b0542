"""The real SmolLM2-135M on real MovieLens-100K histories: both engines read a prompt in the same way."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import llm4msr
from tests.helpers import ROOT, cosines, matrix, read_store

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_session")]

USERS, SCENARIOS = 8, 6


def quickstart(storage: Path, engine: str, answers: str) -> pa.Table:
    """The knowledge of the quickstart's most active users and all its scenarios."""
    changes = {
        "storage": storage,
        "extract.engine": engine,
        "extract.answers": answers,
        "extract.answer_tokens": 24,
        "extract.max_users": USERS,
    }
    overrides = [f"{key}={value}" for key, value in changes.items()]
    config = llm4msr.load(str(ROOT / "jobs" / "configs" / "quickstart.toml"), overrides)
    llm4msr.prepare(config)
    return read_store(Path(str(llm4msr.extract(config).folder)))


def test_vllm_and_transformers_agree_and_answer(tmp_path: Path) -> None:
    fast, plain = quickstart(tmp_path, "vllm", "scenarios"), quickstart(tmp_path, "transformers", "none")
    assert fast.num_rows == USERS + SCENARIOS
    assert not any(fast["error"].to_pylist() + plain["error"].to_pylist())
    assert fast["fingerprint"].equals(plain["fingerprint"])
    assert cosines(matrix(fast), matrix(plain)).min() > 0.999

    between_users = matrix(plain)[SCENARIOS:] - matrix(plain)[SCENARIOS:].mean(0)
    distances = np.linalg.norm(matrix(fast) - matrix(plain), axis=1)
    assert distances.max() < 0.05 * np.linalg.norm(between_users, axis=1).min(), "engines differ less than users do"

    answers = fast["answer"].to_pylist()
    assert all(len(answer.split()) > 5 for answer in answers[:SCENARIOS])
    assert not any(answers[SCENARIOS:])
