"""Extraction on real Ray Data: engines that agree, poolings, failed rows, and what a killed run leaves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm4msr
from llm4msr import pipeline
from llm4msr.cli import main
from llm4msr.data import partitions
from llm4msr.knowledge import item_vectors, pooling
from llm4msr.knowledge.rows import read_texts, read_vectors, row_groups
from llm4msr.pipeline import extracted as open_extracted
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_matrix
from llm4msr.training.dataset import Dataset
from tests.support.experiments import (
    SAD_USER,
    SCENARIOS,
    Experiment,
    MakeExperiment,
    command_line,
    cosines,
    kill_all,
    matrix,
    own_ray,
    read_store,
    stamps,
    wait_until,
)
from tests.support.fixtures import Spine
from tests.support.partitioned import in_partitions

FEW_USERS = {"extract.max_users": 6}


def extracted(experiment: Experiment) -> Path:
    """Prepare and extract; gives back the folder of the extraction."""
    pipeline.prepare(experiment.config)
    return Path(str(pipeline.extract(experiment.config).folder))


def by_hand(llama: Path, texts: Sequence[str], pooling: str) -> np.ndarray:
    """Last hidden states after the final norm, one text at a time, straight from transformers."""
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(llama)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            states_TD = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0]
            vectors.append((states_TD.mean(0) if pooling == "mean" else states_TD[-1]).numpy())
    return np.stack(vectors).astype(np.float64)


def good_rows(store: pa.Table) -> list[int]:
    return [i for i, error in enumerate(store["error"].to_pylist()) if not error]


def test_vectors_are_the_last_hidden_states(spine: Spine, llama: Path) -> None:
    store = read_store(spine.folder("extract"))
    some = good_rows(store)[:12]
    expected = by_hand(llama, store["prompt"].take(some).to_pylist(), "last")
    assert cosines(matrix(store)[some], expected).min() > 0.999
    assert cosines(expected[3:-1], expected[4:]).max() < 0.99, "a test model that tells no prompts apart shows nothing"


def test_vllm_gives_the_same_vectors_as_transformers(spine: Spine, experiment: MakeExperiment) -> None:
    other = experiment({"extract.engine": "vllm", "extract.answers": "none"})
    ours, theirs = read_store(extracted(other)), read_store(spine.folder("extract"))
    for column in ("id", "raw_id", "prompt", "fingerprint", "tokens", "error"):
        assert ours[column].equals(theirs[column])
    fine = good_rows(ours)
    assert len(fine) == ours.num_rows - 1
    assert cosines(matrix(ours)[fine], matrix(theirs)[fine]).min() > 0.999


def test_vllm_mean_pooling_is_the_mean_over_tokens(experiment: MakeExperiment, llama: Path, ray_session: None) -> None:
    changes = {"extract.engine": "vllm", "extract.pooling": "mean", "extract.answers": "none"}
    store = read_store(extracted(experiment(changes | FEW_USERS)))
    assert store.num_rows == len(SCENARIOS) + 6
    fine = good_rows(store)
    texts = store["prompt"].take(fine).to_pylist()
    assert cosines(matrix(store)[fine], by_hand(llama, texts, "mean")).min() > 0.999


def test_answers_of_all_and_pooling_after_them(experiment: MakeExperiment, llama: Path, ray_session: None) -> None:
    changes = {"extract.pooling": "answer", "extract.answers": "all"}
    store = read_store(extracted(experiment(changes | FEW_USERS)))
    fine = good_rows(store)
    (sad,) = [row for row in store.to_pylist() if row["error"]]
    assert (sad["raw_id"], sad["answer"]) == (SAD_USER, "")
    prompts, answers = (store[column].take(fine).to_pylist() for column in ("prompt", "answer"))
    assert all(answers)
    expected = by_hand(llama, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], "last")
    assert cosines(matrix(store)[fine], expected).min() > 0.999
    assert cosines(by_hand(llama, prompts, "last"), expected).max() < 0.99, "the answer must move the vector"


def test_too_many_failed_rows_then_only_those_are_redone(
    spine: Spine, experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_store(spine.folder("extract"))
    limit = int(np.sort(whole["tokens"].to_numpy())[-3])
    too_long = [row["raw_id"] for row in whole.to_pylist() if row["tokens"] > limit]
    changes = {"extract.max_prompt_tokens": limit, "extract.max_failed_fraction": 0.0, "extract.answers": "none"}
    strict = experiment(changes, {"prepare": spine.folder("prepare")})

    monkeypatch.setattr(sys, "argv", ["llm4msr", "extract", str(strict)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    scenarios = set(SCENARIOS) & set(too_long)
    for kind, bad_ids, total in (("scenarios", scenarios, 3), ("users", set(too_long) - scenarios, 61)):
        told = f"{len(bad_ids)} of {total} {kind} failed; first: '"
        assert (told in last) == bool(bad_ids)
        assert not bad_ids or any(f"{told}{raw_id}' in " in last for raw_id in bad_ids)
    assert f"tokens, allowed are {limit}" in last

    (folder,) = strict.root.glob("extract/*")
    assert not (folder / "manifest.json").exists()
    before = stamps(folder / "vectors")
    bad = {name for name in before if set(shard(folder, name)["raw_id"].to_pylist()) & set(too_long)}
    gone = next(name for name in before if name not in bad)
    (folder / "vectors" / gone).unlink()

    lenient = ["extract.max_failed_fraction=1", "extract.actors=2"]
    manifest = pipeline.extract(llm4msr.load(str(strict), lenient)).manifest
    after = stamps(folder / "vectors")
    assert {name for name in after if before[name][0] != after[name][0]} == bad | {gone}
    redone = sum(shard(folder, name).num_rows for name in bad | {gone})
    assert (manifest.rows, manifest.failed, manifest.skipped) == (64, len(too_long) + 1, 64 - redone)
    fine = [not (row["error"] or row["raw_id"] in too_long) for row in whole.to_pylist()]
    assert_same_rows(read_store(folder).filter(fine), whole.filter(fine))


def test_a_run_killed_with_sigkill_continues(
    spine: Spine, experiment: MakeExperiment, tmp_path: Path, ray_session: None
) -> None:
    killed = experiment({"extract.answers": "none"}, {"prepare": spine.folder("prepare")})
    vectors = killed.root / "extract"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command_line("extract", str(killed)), env=own_ray(), stderr=log, stdout=log, start_new_session=True
        )
        wait_until(lambda: len(list(vectors.glob("*/vectors/*.parquet"))) >= 2, process)
        kill_all(process)
    (folder,) = vectors.iterdir()
    finished = stamps(folder / "vectors")
    total = len(list(spine.folder("extract").glob("vectors/*")))
    assert 2 <= len(finished) < total, "it was killed too late to test anything"
    assert not (folder / "manifest.json").exists()

    output = pipeline.extract(killed.config)
    after = stamps(folder / "vectors")
    assert len(after) == total
    assert {name: after[name] for name in finished} == finished
    assert output.manifest.skipped == sum(shard(folder, name).num_rows for name in finished)
    assert not (folder / "work").exists()
    assert_same_rows(read_store(folder), read_store(spine.folder("extract")))


def shard(folder: Path, name: str) -> pa.Table:
    return pq.read_table(folder / "vectors" / name)


def assert_same_rows(ours: pa.Table, theirs: pa.Table) -> None:
    """Same ids, prompts and fingerprints; vectors that differ by less than a float16 step of the largest."""
    assert ours.drop_columns(["vector", "answer"]).equals(theirs.drop_columns(["vector", "answer"]))
    np.testing.assert_allclose(matrix(ours), matrix(theirs), atol=1e-3 * np.abs(matrix(theirs)).max())


def test_users_pooled_from_items_that_the_llm_read_once(experiment: MakeExperiment, ray_session: None) -> None:
    made = experiment({"extract.reads": "items", "extract.pool_dim": 5, "extract.answers": "none"})
    folder = extracted(made)
    items = pa.concat_tables([pq.read_table(file) for file in (folder / "vectors").glob("items-*")]).sort_by("id")
    users = pa.concat_tables([pq.read_table(file) for file in sorted((folder / "pooled").glob("users-*"))])
    prepared = pipeline.prepare(made.config)
    assert len(users) == prepared.manifest.info["histories"]
    assert items["id"].to_pylist() == list(range(1, len(items) + 1))
    seen = pq.read_table(Path(str(prepared.folder)) / "seen/p=00000.parquet")
    white = pooling.whiten(matrix(items), 5)[np.asarray(seen["item"]) - 1]
    last = np.cumsum(pq.read_table(Path(str(prepared.folder)) / "histories/p=00000.parquet")["interactions"].to_numpy())
    liked, every = seen["label"].to_numpy() > 0.5, np.ones(len(seen), bool)
    expected = pooling.pool(white, liked, every, np.r_[0, last[:-1]], last)
    np.testing.assert_allclose(matrix(users), expected, atol=2e-2)
    kept = item_vectors.read(open_extracted(made.config))
    np.testing.assert_array_equal(kept.vectors_ID[kept.known_I], pooling.whiten(matrix(items), 5).astype(np.float16))
    before = stamps(folder)
    pipeline.extract(made.config)
    assert stamps(folder) == before
    data = Dataset.open(made.config, prepared, open_extracted(made.config))
    assert data.knowledge is not None
    assert data.knowledge.known(np.arange(len(data.knowledge.users.known))).sum() == len(users)
    assert data.new_net(made.config).user_code.project.in_features == matrix(users).shape[1]


def test_pools_of_random_vectors_ask_the_llm_about_scenarios_only(
    experiment: MakeExperiment, ray_session: None
) -> None:
    made = experiment(
        {"extract.reads": "items", "extract.item_vectors": "random", "extract.pool_dim": 5, "extract.answers": "none"}
    )
    folder = extracted(made)
    assert {file.name.split("-")[0] for file in (folder / "vectors").iterdir()} == {"scenarios"}
    assert {file.name.split("-")[0] for file in (folder / "pooled").iterdir()} == {"users"}


@pytest.mark.parametrize("projection", ["principal", "contrastive"])
def test_vectors_by_words_need_no_llm_and_are_taken_over_by_the_next_version(
    experiment: MakeExperiment, ray_session: None, projection: str
) -> None:
    """Of all items, and of scenarios; a model trains with them."""
    settings = {"extract.reads": "items", "extract.item_vectors": "words", "extract.model": "/no/such/model"}
    settings |= {"extract.projection": projection}
    made = experiment(settings | {"extract.pool_dim": 5, "train.epochs": 1})
    pipeline.prepare(made.config)
    output = pipeline.extract(made.config)
    assert output.manifest.inputs["model"] == "words"
    by_kind = output.manifest.info["by_kind"]
    assert {kind: rows["rows"] for kind, rows in by_kind.items()} == {"items_by_words": 40, "scenarios": 3}
    texts = [row["prompt"] for row in read_texts(output, "items_by_words")]
    assert min(texts) == "Title number 0. Things, Red, Size 0"
    kept = item_vectors.read(output)
    assert kept.known_I.sum() == 40
    assert kept.vectors_ID.shape == (41, 5)
    assert pipeline.train(made.config).manifest.rows
    limited = made.config.extract.model_copy(update={"max_users": 9})
    again = pipeline.extract(made.config.model_copy(update={"extract": limited}))
    assert again.manifest.info["kept"] == 43
    np.testing.assert_array_equal(item_vectors.read(again).vectors_ID, kept.vectors_ID)


def test_each_row_sees_what_was_known_of_its_user_before_it(experiment: MakeExperiment, ray_session: None) -> None:
    """And a forgotten user's past is gone like the user."""
    settings = {"extract.reads": "items", "extract.item_vectors": "random", "extract.pool_dim": 5}
    made = experiment(settings | {"extract.point_in_time": True, "extract.answers": "none"})
    prepared = pipeline.prepare(made.config)
    forgotten = pq.read_table(Path(str(prepared.folder)) / "histories/p=00000.parquet")["user_id"][1].as_py()
    (made.root / "forget.txt").write_text(forgotten)
    extract = made.config.extract.model_copy(update={"forget": str(made.root / "forget.txt")})
    config = made.config.model_copy(update={"extract": extract})
    output = pipeline.extract(config)
    events = pq.read_table(Path(str(prepared.folder)) / "events/p=00000.parquet").to_pandas()
    users = pq.read_table(Path(str(prepared.folder)) / "histories/p=00000.parquet")["user"].to_pylist()
    events = events[events["user"].isin(users)]
    past = pa.concat_tables([pq.read_table(file) for file in sorted(Path(str(output.folder)).glob("pooled/past-*"))])
    assert past["user"].to_pylist() == events["user"].tolist()
    assert len(pa.concat_tables([read_vectors(group) for group in row_groups(output)])) < len(past)
    data = Dataset.open(config, prepared, output)
    assert data.knowledge is not None
    gone = events["user"].unique()[1]
    assert not data.knowledge.known(np.array([gone])).any()
    known = (events["before"].to_numpy() > 0) & (events["user"].to_numpy() != gone)
    for split in ("train", "valid", "test"):
        rows = next(data.rows(split).in_file_order(1 << 20))
        batch = data.batch(rows, data.new_net(config))
        assert rows.event_B is not None
        place = rows.event_B.numpy()
        np.testing.assert_array_equal(batch.known_N[batch.owner_B].numpy(), known[place])
        np.testing.assert_array_equal(batch.z_NZ[batch.owner_B].numpy(), matrix(past)[place].astype(np.float16))
    stale = Dataset.open(
        config.model_copy(update={"model": config.model.model_copy(update={"past": "stale"})}), prepared, output
    )
    assert stale.knowledge is not None
    np.testing.assert_array_equal(stale.knowledge.vector_numbers(rows.user_B, rows.seen_B, rows.event_B), rows.user_B)
    pipeline.train(config)


def by_raw_id(output: StageOutput) -> pa.Table:
    rows = pa.concat_tables([read_vectors(group) for group in row_groups(output)])
    return rows.sort_by("raw_id").select(["raw_id", "error", "vector"]).combine_chunks()


@pytest.mark.parametrize(("reads", "total"), [("users", 4), ("items", 2)])
def test_users_in_partitions_get_the_vectors_that_they_get_in_one(
    experiment: MakeExperiment, ray_session: None, reads: str, total: int
) -> None:
    """Of the most active users of all partitions; the most active one rated every item."""
    settings = {"extract.reads": reads, "extract.answers": "none", "extract.max_users": 0 if reads == "users" else 9}
    settings |= (
        {"extract.item_vectors": "random", "extract.pool_dim": 5, "extract.point_in_time": True}
        if (reads == "items")
        else {}
    )
    made = experiment(settings)
    prepared = pipeline.prepare(made.config)
    one = pipeline.extract(made.config)
    config, parts = in_partitions(made.config, prepared, total, made.root.parent / "parts")
    many = pipeline.extract(config)
    assert partitions.count(parts) == total
    active = by_raw_id(many)["raw_id"].to_pylist()
    if reads == "users":
        theirs, ours = by_raw_id(one), by_raw_id(many)
        assert ours.select(["raw_id", "error"]).equals(theirs.select(["raw_id", "error"]))
        np.testing.assert_allclose(matrix(ours), matrix(theirs), atol=1e-3 * np.abs(matrix(theirs)).max())
    else:  # all users but one are equally active: which eight of them have knowledge is the partitions' matter
        assert len(active) == 9
        assert SAD_USER in active, "who has the most interactions"
        every = made.config.model_copy(update={"extract": made.config.extract.model_copy(update={"max_users": 0})})
        rows = by_raw_id(pipeline.extract(every))
        assert rows.filter(pc.is_in(rows["raw_id"], pa.array(active))).equals(by_raw_id(many))


WITH_A_GPU = """
import sys, ray, llm4msr
from llm4msr import pipeline
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
pipeline.extract(llm4msr.load(sys.argv[1]))
"""


def test_an_engine_gets_a_gpu_where_ray_has_one(experiment: MakeExperiment) -> None:
    """Ray is told of a GPU that is not there: it places the engine as on a machine with one, where CPUs compute."""
    made = experiment(FEW_USERS | {"extract.device": "gpu"})
    pipeline.prepare(made.config)
    command = [sys.executable, "-c", WITH_A_GPU, str(made)]
    done = subprocess.run(command, env=own_ray(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    store = read_store(Path(str(open_extracted(made.config).folder)))
    assert len(store) == len(SCENARIOS) + FEW_USERS["extract.max_users"]
    assert len(good_rows(store)) == len(store) - 1, "all but the user who likes nothing"


def test_weights_changed_in_place_are_asked_again(
    experiment: MakeExperiment, spine: Spine, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(llama, tmp_path / "llm")
    made = experiment({"extract.model": str(model), "extract.answers": "none"}, {"prepare": spine.folder("prepare")})
    first = pipeline.extract(made.config)
    before = matrix(read_store(made.root / "extract" / first.folder.name))
    (weights,) = model.glob("*.safetensors")
    then = weights.stat()
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({name: -values for name, values in tensors.items()}, weights, {"format": "pt"})
    os.utime(weights, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert weights.stat().st_size == then.st_size

    again = pipeline.extract(made.config)
    assert "is another one than when" in capsys.readouterr().err
    assert not again.reused
    assert again.manifest.info["kept"] == 0
    assert again.manifest.inputs["revision"] != first.manifest.inputs["revision"]
    groups = row_groups(again) + row_groups(again, "scenarios")
    now = pa.concat_tables([read_vectors(group) for group in groups])
    assert len(now) == len(before)
    assert not np.allclose(np.sort(before, axis=0), np.sort(to_matrix(now["vector"]).astype(float), axis=0))
