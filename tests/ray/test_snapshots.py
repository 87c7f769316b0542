"""Snapshots of users' histories through all stages: what the LLM is asked, what it writes, and what is served."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from llm4msr import pipeline
from llm4msr.bundle import files
from llm4msr.bundle.id_table import IdTable
from llm4msr.dry_run import plan
from llm4msr.knowledge.rows import read_rows, row_groups
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_matrix
from tests.support.experiments import MakeExperiment
from tests.support.versions import with_extract

MOST, PARTITIONS = 3, 2


def rows_of(output: StageOutput, kind: str) -> pa.Table:
    columns = ["raw_id", "fingerprint", "prompt", "answer", "error", "vector"]
    return pa.concat_tables([read_rows(group, columns) for group in row_groups(output, kind)]).sort_by("raw_id")


def test_turning_snapshots_on_asks_about_them_alone(experiment: MakeExperiment, ray_session: None) -> None:
    """The rows of users stay those of one history each, and more snapshots leave the others as they are."""
    once = experiment({"extract.answers": "none", "split.partitions": PARTITIONS}).config
    pipeline.prepare(once)
    first = pipeline.extract(once)
    config = with_extract(once, snapshots=MOST)
    planned, output = plan(config, "extract")["extract"], pipeline.extract(config)
    asked = output.manifest.info["by_kind"]["snapshots"]["rows"]
    assert output.manifest.info["kept"] == first.manifest.rows
    assert output.manifest.rows == first.manifest.rows + asked
    assert abs(planned["prompts"] - output.manifest.rows) < 5, "of several partitions the plan looks into the first"
    assert output.manifest.info["users"] == first.manifest.info["users"]
    assert rows_of(output, "users").equals(rows_of(first, "users"))
    more = pipeline.extract(with_extract(config, snapshots=MOST + 1)).manifest
    assert output.manifest.rows <= more.info["kept"] < more.rows, "some earlier snapshots tell what later ones do"
    assert not any(name.startswith("vectors/users") for name in more.files)


def test_users_are_served_with_what_was_known_at_the_cut_and_asked_for_texts_of_it_alone(
    experiment: MakeExperiment, ray_session: None
) -> None:
    settings = {"extract.snapshots": MOST, "extract.answers": "all", "extract.max_users": 9, "train.epochs": 1}
    config = experiment(settings).config
    pipeline.prepare(config)
    output = pipeline.extract(config)
    users = rows_of(output, "users")
    fine = [row for row, error in enumerate(users["error"].to_pylist()) if not error]
    assert all(users["answer"].take(fine).to_pylist())
    assert not any(rows_of(output, "snapshots")["answer"].to_pylist())
    assert any(rows_of(output, "snapshots")["error"].to_pylist()), "one user liked nothing"
    assert output.manifest.failed == output.manifest.info["users_without_likes"], "which is no failure"
    pipeline.train(config)
    bundle = pipeline.export(config)
    net, _ = pipeline.trained(config).load()
    codes = IdTable(Path(str(bundle.folder)) / files.CODES)
    z_NZ = torch.from_numpy(to_matrix(users["vector"].combine_chunks()).copy())[fine]
    code_NK = net.user_codes(z_NZ, torch.ones(len(fine), dtype=torch.bool)).detach()
    for row, code_K in zip(fine, code_NK.numpy(), strict=True):
        np.testing.assert_allclose(codes.numbers("code", codes.find(users["raw_id"][row].as_py())), code_K, atol=1e-3)
    assert bundle.manifest.info["users_with_knowledge"] == len(fine)
