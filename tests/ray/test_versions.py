"""The knowledge store from version to version: increments, forgotten users, pruning, repair, and its commands."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import llm4msr
from llm4msr import pipeline, storage
from llm4msr.bundle import request_rows
from llm4msr.cli import main
from llm4msr.dry_run import plan
from llm4msr.knowledge.rows import good_rows, read_rows, read_texts, row_groups
from llm4msr.storage import StageOutput
from tests.support.experiments import SAD_USER, SCENARIOS, USERS, Experiment, MakeExperiment, cosines, matrix
from tests.support.fixtures import Spine
from tests.support.versions import record_again

CHANGED, NEW, GONE, FORGOTTEN = {"user-3", "user-10"}, "user-00", "user-5", {"user-20", "user-21"}


def next_day(table: Path, folder: Path) -> Path:
    """The small table with two users who met other items, one new user, who comes first, and one who left."""
    shutil.copytree(table, folder)
    with (folder / "interactions.csv").open() as stream:
        header, *rows = csv.reader(stream)
    rows += [[NEW, *row[1:]] for row in rows if row[0] == "user-7"]
    rows = [row for row in rows if row[0] != GONE]
    for row in rows:
        if row[0] in CHANGED:
            row[1] = f"item-{(int(row[1].split('-')[1]) + 1) % 40}"
    with (folder / "interactions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return folder


class Days(NamedTuple):
    """Two versions in one storage: the spine's, and that of the next day, in which two users are forgotten."""

    first: StageOutput
    second: StageOutput
    experiment: Experiment
    data: Path
    forget: Path
    planned: dict[str, Any]
    """What `--dry-run` said before the second."""


@pytest.fixture(scope="module")
def days(spine: Spine, table: Path, experiment: MakeExperiment, tmp_path_factory: pytest.TempPathFactory) -> Days:
    folder = tmp_path_factory.mktemp("days")
    forget = folder / "forget.txt"
    forget.write_text("\n".join(FORGOTTEN))
    before = experiment({}, {stage: spine.folder(stage) for stage in ("prepare", "extract")})
    data = next_day(table, folder / "table")
    after = experiment({"source.path": str(data), "storage": str(before.root), "extract.forget": str(forget)})
    pipeline.prepare(after.config)
    first, planned = pipeline.extract(before.config), plan(after.config, "extract")["extract"]
    return Days(first, pipeline.extract(after.config), after, data, forget, planned)


def users(output: StageOutput, *columns: str) -> pa.Table:
    tables = [read_rows(group, ["raw_id", *columns]) for group in row_groups(output)]
    return pa.concat_tables(tables).sort_by("raw_id")


def test_the_next_day_asks_about_new_and_changed_users_alone(days: Days) -> None:
    manifest = days.second.manifest
    new = [name for name in manifest.files if name.startswith("vectors/users-")]
    asked = [raw_id for name in new for raw_id in pq.read_table(days.second.folder / name)["raw_id"].to_pylist()]
    assert sorted(asked) == sorted({*CHANGED, NEW})
    everybody = {f"user-{u}" for u in range(USERS)} | {SAD_USER, NEW}
    left = everybody - FORGOTTEN - {GONE}
    assert users(days.second)["raw_id"].to_pylist() == sorted(left)
    assert manifest.info["users"] == len(left)
    assert manifest.rows == len(left) + len(SCENARIOS)
    assert (manifest.info["forgotten"], manifest.info["version"]) == (2, 2)
    assert days.second.summary()["forgotten"] == 2
    assert manifest.info["kept"] == manifest.rows - len(asked)


def test_scenarios_whose_statistics_moved_little_are_not_asked_again(days: Days) -> None:
    assert not [name for name in days.second.manifest.files if name.startswith("vectors/scenarios-")]
    old, new = (output.table("scenarios.parquet") for output in (days.first, days.second))
    assert new.equals(old)
    config = days.experiment.config
    assert not pipeline.prepare(config).table("scenarios.parquet").equals(old), "the statistics moved"
    (first, second) = (read_texts(output) for output in (days.first, days.second))
    assert first == second


def test_the_plan_knew_who_is_left(days: Days) -> None:
    assert days.planned["left"] == len({*CHANGED, NEW})
    assert days.planned["rate_is"] == f"as version {days.first.folder.name} measured"


def test_it_equals_a_store_made_from_nothing(days: Days, experiment: MakeExperiment) -> None:
    fresh = experiment({"source.path": str(days.data), "extract.forget": str(days.forget)})
    pipeline.prepare(fresh.config)
    columns = ["id", "prompt", "fingerprint", "error", "tokens"]
    found, made = (users(output, *columns, "vector") for output in (days.second, pipeline.extract(fresh.config)))
    assert found.select(columns).equals(made.select(columns))
    fine = [row for row, error in enumerate(found["error"].to_pylist()) if not error]
    assert len(fine) == len(found) - 1
    assert cosines(matrix(found)[fine], matrix(made)[fine]).min() > 0.999


def test_the_first_version_stays_as_it_was(days: Days, spine: Spine) -> None:
    columns = ("id", "prompt", "error", "vector")
    assert users(days.first, *columns).equals(users(spine.one("extract"), *columns))


def test_a_version_without_anything_new_asks_nobody(days: Days, tmp_path: Path) -> None:
    shutil.copytree(days.experiment.root, tmp_path / "runs")
    (tmp_path / "forget.txt").write_text("\n".join([*FORGOTTEN, "user-30"]))
    overrides = [
        f"storage={tmp_path / 'runs'}",
        f"extract.forget={tmp_path / 'forget.txt'}",
        "extract.model=" + model(days),
    ]
    output = pipeline.extract(llm4msr.load(str(days.experiment), overrides))
    assert not (output.folder / "vectors").exists()
    assert output.manifest.info["kept"] == output.manifest.rows == output.manifest.skipped
    assert users(output)["raw_id"].to_pylist() == [
        u for u in users(days.second)["raw_id"].to_pylist() if u != "user-30"
    ]


def model(days: Days) -> str:
    return days.experiment.config.extract.model


@pytest.fixture
def copied(days: Days, tmp_path: Path) -> Path:
    """The storage with both versions, to be changed."""
    return Path(shutil.copytree(days.experiment.root, tmp_path / "runs"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, str]]:
    """`call("ls", ...)`: runs `llm4msr knowledge ls ...`; gives back its last line and all that it printed."""

    def run(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["llm4msr", "knowledge", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return json.loads(out.strip().splitlines()[-1]), out

    return run


Call = Callable[..., tuple[Any, str]]


def test_versions_are_listed_newest_first(days: Days, call: Call) -> None:
    line, out = call("ls", str(days.experiment))
    assert [row["version"] for row in line["versions"]] == [2, 1]
    assert [row["name"] for row in line["versions"]] == [days.second.folder.name, days.first.folder.name]
    assert line["versions"][1]["users"] == USERS + 1
    assert [row["forgotten"] for row in line["versions"]] == [2, 0]
    assert line["versions"][0]["bytes"] < line["versions"][1]["bytes"]
    assert out.splitlines()[1].split()[:2] == ["2", days.second.folder.name]


def test_a_user_is_shown(days: Days, call: Call) -> None:
    found, out = call("show", str(days.experiment), "user-8")
    row = {user["raw_id"]: user for user in users(days.second, "prompt").to_pylist()}["user-8"]
    assert found["prompt"] == row["prompt"]
    assert row["prompt"] in out
    table = users(days.second, "error", "vector")
    table = table.filter(pa.array(good_rows(table)))
    centred = matrix(table) - matrix(table).mean(0)
    at = table["raw_id"].to_pylist().index("user-8")
    cosine = cosines(centred, np.broadcast_to(centred[at], centred.shape))
    nearest = [table["raw_id"][int(i)].as_py() for i in np.argsort(-cosine)[1:6]]
    assert [near["raw_id"] for near in found["nearest"]] == nearest
    assert found["nearest"][0]["cosine"] == pytest.approx(np.sort(cosine)[-2], abs=1e-3)


@pytest.mark.parametrize("who", ["user-20", "nobody"])
def test_an_unknown_user_is_told(days: Days, monkeypatch: pytest.MonkeyPatch, capsys: Any, who: str) -> None:
    monkeypatch.setattr(sys, "argv", ["llm4msr", "knowledge", "show", str(days.experiment), who])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert f"knows no user '{who}'" in capsys.readouterr().err


def test_verify_asks_again_and_finds_the_same(days: Days, call: Call) -> None:
    line, _ = call("verify", str(days.experiment), "--sample", "12")
    assert line["compared"] == 12
    assert line["least_cosine"] > 0.999


def test_verify_finds_wrong_vectors(days: Days, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for shard in copied.glob("extract/*/vectors/users-*.parquet"):
        table = pq.read_table(shard)
        vectors = table["vector"].combine_chunks()
        turned = pa.FixedSizeListArray.from_arrays(pa.array(-vectors.flatten().to_numpy()), 128)
        at = table.column_names.index("vector")
        pq.write_table(table.set_column(at, "vector", turned), shard)
    arguments = ["verify", str(days.experiment), "--set", f"storage={copied}"]
    for manifest in copied.glob("extract/*/manifest.json"):
        record_again(storage.path(manifest.parent))
    monkeypatch.setattr(sys, "argv", ["llm4msr", "knowledge", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert "has cosine -" in capsys.readouterr().err


def test_prune_leaves_the_newest_version_and_nothing_of_forgotten_users(days: Days, copied: Path, call: Call) -> None:
    before = users(days.second, "id", "prompt", "error", "vector")
    arguments = ["prune", str(days.experiment), "--set", f"storage={copied}", "--keep", "2"]
    log = storage.path(copied / "requests")
    served = [{"user_id": user} for user in (*FORGOTTEN, "somebody else")]
    file = log / request_rows.file_name(0, "0" * 12)
    storage.write_table(file, pa.Table.from_pylist(served, request_rows.SCHEMA))
    arguments += ["--set", f"serve.log.folder={log}"]
    planned, _ = call(*arguments, "--dry-run")
    assert (planned["removed"], planned["requests"]) == ([days.first.folder.name], len(FORGOTTEN))
    assert len(storage.read_table(file)) == len(served)
    assert len(list(copied.glob("extract/*/manifest.json"))) == 2
    report, _ = call(*arguments)
    assert (report["kept"], report["removed"]) == ([days.second.folder.name], [days.first.folder.name])
    assert (report["freed"] > 0, report["requests"]) == (True, len(FORGOTTEN))
    assert storage.read_table(file)["user_id"].to_pylist() == ["somebody else"]

    output = pipeline.extract(llm4msr.load(str(days.experiment), [f"storage={copied}"]))
    assert output.reused
    assert users(output, "id", "prompt", "error", "vector").equals(before)
    stored = [pq.read_table(file) for file in copied.glob("extract/*/vectors/users-*.parquet")]
    assert set(pa.concat_tables([t.select(["raw_id"]) for t in stored])["raw_id"].to_pylist()) == {
        *before["raw_id"].to_pylist(), ""
    }  # fmt: skip
    for table in stored:
        for row in table.filter(pa.array([not raw_id for raw_id in table["raw_id"].to_pylist()])).to_pylist():
            assert (row["prompt"], row["answer"], row["fingerprint"], row["error"]) == ("", "", "", "pruned")
            assert not any(row["vector"])
    assert call(*arguments)[0]["freed"] == 0
    assert not list(copied.glob(f"extract/{days.first.folder.name}/index/*"))


def test_a_lost_shard_and_manifest_are_mended_by_extracting_again(days: Days, copied: Path) -> None:
    config = llm4msr.load(str(days.experiment), [f"storage={copied}"])
    (file,) = copied.glob(f"extract/{days.second.folder.name}/index/users-*")
    shards = pq.read_table(file)["shard"].to_pylist()
    old = copied / "extract" / next(shard for shard in shards if shard.startswith(days.first.folder.name))
    lost = pq.read_table(old)["raw_id"].to_pylist()
    assert set(lost) - FORGOTTEN - {GONE} - CHANGED
    old.unlink()
    with pytest.raises(llm4msr.LLM4MSRError, match=rf"{old.name}: .*delete .*{old.name} and .*manifest.json, then run"):
        users(pipeline.extract(config))
    (copied / "extract" / days.second.folder.name / "manifest.json").unlink()
    with pytest.raises(llm4msr.LLM4MSRError, match=r"manifest\.json: missing; run `llm4msr extract` again"):
        pipeline.train(config)

    mended = pipeline.extract(config)
    assert mended.manifest.rows - mended.manifest.skipped == len(set(lost) - FORGOTTEN - {GONE} - CHANGED)
    columns = ("id", "prompt", "error", "vector")
    found, made = users(mended, *columns), users(days.second, *columns)
    assert found.drop_columns("vector").equals(made.drop_columns("vector"))
    np.testing.assert_allclose(matrix(found), matrix(made), atol=1e-3 * np.abs(matrix(made)).max())
