"""The command line as a user meets it: help, plans, one JSON line last, one-line errors and exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm4msr import storage
from llm4msr.cli import main
from tests.support.experiments import (
    ITEMS,
    USERS,
    VERBS,
    MakeExperiment,
    command_line,
    free_port,
    wait_until,
    write_csv,
)
from tests.support.fixtures import Spine

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`call("prepare", "config.toml")` in this process -> exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llm4msr", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *capsys.readouterr()

    return run


def last_json(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def test_help_lists_every_verb_in_order() -> None:
    script = Path(sys.executable).with_name("llm4msr")
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True)
    commands = done.stdout.split("Commands:")[1].splitlines()
    named = [line.split()[0] for line in commands if line.strip()]
    assert named == ["init", "check", *VERBS, "skew", "config", "knowledge"]
    shown = " ".join(done.stdout.split())
    assert "Exit codes: 0 fine, 2 wrong config or input, 3 more failed rows than allowed (or skew), 130" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(call: Call, verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0
    usage = out.splitlines()[0]
    assert f" {verb} [OPTIONS] " in usage
    assert "CONFIG" in usage
    assert "--set KEY=VALUE" in out
    assert "--dry-run" in out


def test_each_stage_ends_with_one_json_line(call: Call, spine: Spine) -> None:
    for stage in ("prepare", "extract", "train", "evaluate", "export"):
        code, out, _ = call(stage, str(spine.experiment))
        line, manifest = last_json(out), spine.one(stage).manifest
        assert code == 0
        assert (line["stage"], line["uri"]) == (stage, str(spine.folder(stage)))
        assert (line["rows"], line["failed"]) == (manifest.rows, manifest.failed)
        assert (line["skipped"], line["seconds"]) == (manifest.rows, 0.0), "it was finished before"
        if stage in ("train", "evaluate"):
            assert [one["scenario_id"] for one in line["metrics"]["scenarios"]] == ["books", "films", "music"]
            for place in (line["metrics"]["overall"], *line["metrics"]["scenarios"]):
                assert {"auc", "gauc", "logloss"} <= set(place)
            assert line["metrics"]["overall"]["auc"] > line["baselines"]["popularity"]["auc"]
            assert line["baselines"]["constant"]["auc"] == 0.5
            assert line["warnings"] == manifest.info["warnings"]
        else:
            assert "metrics" not in line


def test_run_prints_the_table_and_one_json_line(call: Call, spine: Spine) -> None:
    code, out, err = call("run", str(spine.experiment))
    assert code == 0
    assert (spine.folder("evaluate") / "table.md").read_text() in out
    line = last_json(out)
    assert (line["stage"], line["failed"], line["skipped"]) == ("run", 1, 6)
    assert line["outputs"]["export"] == str(spine.folder("export"))
    assert line["metrics"]["overall"]["auc"] > line["baselines"]["popularity"]["auc"]
    (warning,) = line["warnings"]
    assert "training rows see vectors of their users that know these rows' labels" in warning
    assert "[1/5] prepare" in err
    assert "found finished" in err


def test_explain_ends_with_the_path_of_the_report_and_one_json_line(call: Call, spine: Spine) -> None:
    code, out, err = call("explain", str(spine.experiment))
    line = last_json(out)
    report = Path(line["uri"], "report.html")
    assert code == 0
    assert (line["stage"], line["failed"]) == ("explain", 0)
    assert "single users" in err
    assert err.endswith(f"open it in a browser: {report}\n")
    page = report.read_text()
    assert all(f">{scenario}<" in page for scenario in ("books", "films", "music"))


def test_prepare_for_the_first_time(call: Call, experiment: MakeExperiment) -> None:
    fresh = experiment()
    code, out, _ = call("prepare", str(fresh))
    line = last_json(out)
    assert code == 0
    assert (line["rows"], line["failed"], line["skipped"]) == (26 * USERS + ITEMS, 0, 0)
    assert Path(line["uri"], "manifest.json").exists()
    assert out.strip().count("\n") == 0


def test_set_overrides_the_file(call: Call, experiment: MakeExperiment, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    code, out, _ = call("prepare", str(experiment()), "--set", f"storage={elsewhere}", "--set", "split.test=0.2")
    assert code == 0
    assert last_json(out)["uri"].startswith(str(elsewhere))


def test_dry_run_tells_the_plan_and_writes_nothing(call: Call, experiment: MakeExperiment) -> None:
    fresh = experiment()
    code, out, _ = call("run", str(fresh), "--dry-run")
    assert code == 0
    assert not fresh.root.exists()
    *shown, last = out.strip().splitlines()
    plan, line = json.loads("\n".join(shown)), json.loads(last)
    assert (line["stage"], line["dry_run"]) == ("run", True)
    assert list(plan) == ["prepare", "extract", "train", "evaluate", "export"]
    counts = {"source": fresh.config.source.path, "users": USERS + 1, "scenarios": 3}
    assert plan["prepare"] == counts | {"warnings": line["warnings"]}
    assert (plan["extract"]["prompts"], plan["extract"]["shards"]) == (USERS + 4, 17)
    assert (plan["extract"]["left"], line["left"]) == (USERS + 1, USERS + 1)
    assert plan["extract"]["tokens_are"] == "counted"
    assert line["tokens"] == plan["extract"]["tokens"] > USERS * 100
    assert plan["train"]["models"] == ["mmoe none, seed 3", "mmoe both, seed 3"]
    assert line["training"] == plan["train"]["estimate"]

    job = [sys.executable, "-m", "jobs.run", str(fresh), "--dry-run"]
    done = subprocess.run(job, capture_output=True, text=True, check=True)
    *job_shown, job_last = done.stdout.strip().splitlines()
    assert without_time(json.loads("\n".join(job_shown))) == without_time(plan)
    assert json.loads(job_last) | {"estimate": ""} == line | {"estimate": ""}
    assert not fresh.root.exists()


def without_time(plan: dict[str, Any]) -> dict[str, Any]:
    measured = {"estimate", "hours", "tokens_per_second", "at_scale"}
    return plan | {"extract": {name: value for name, value in plan["extract"].items() if name not in measured}}


def test_dry_run_knows_what_is_finished(call: Call, spine: Spine) -> None:
    _, out, _ = call("extract", str(spine.experiment), "--dry-run")
    assert last_json(out)["estimate"] == "finished already: nothing to do"


def test_a_wrong_input_is_one_line_and_exit_code_2(experiment: MakeExperiment, tmp_path: Path) -> None:
    wrong = experiment({"source.path": str(tmp_path / "nowhere")})
    done = subprocess.run(command_line("run", str(wrong)), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/nowhere/interactions.csv: cannot be read")
    assert done.stderr.count("\n") == 1
    assert not wrong.root.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epocs=3", "unknown key 'train.epocs'; did you mean 'epochs'?"),
        ("train.epochs=none", "'train.epochs': Input should be a valid integer"),
        ("model.backbone=mmo", "'model.backbone': no such backbone (did you mean 'mmoe'?); known are 'single', "),
        ("train.epochs", "write it as section.key=value"),
        ("split.valid=0.95", "valid + test = 1.05 leaves no training rows"),
        ("source.table.item=sku", "interactions.csv: column 'sku' is missing; it has user_id, item_id, scenario"),
        ("extract.model=no/such-model", "extract.model = 'no/such-model': neither a folder nor found"),
    ],
)
def test_wrong_settings(
    call: Call, experiment: MakeExperiment, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fresh = experiment()
    verb = "prepare"
    if override.startswith("extract"):
        verb = "extract"
        assert call("prepare", str(fresh))[0] == 0
    before = files(fresh.root)
    code, out, err = call(verb, str(fresh), "--set", override)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert files(fresh.root) == before


@pytest.mark.parametrize("verb", ["run", "train"])
def test_a_backbone_that_cannot_be_imported_is_told_before_anything_is_done(
    call: Call, experiment: MakeExperiment, verb: str
) -> None:
    fresh = experiment()
    code, out, err = call(verb, str(fresh), "--set", "model.backbone=no_such.module:Net")
    assert (code, out) == (2, "")
    assert err.startswith("error: model.backbone = 'no_such.module:Net': cannot import 'no_such.module' (")
    assert not files(fresh.root)


def test_a_missing_config_file(call: Call, tmp_path: Path) -> None:
    code, out, err = call("run", str(tmp_path / "no.toml"))
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path}/no.toml: cannot be read (FileNotFoundError); check the path and access\n"


HEADER = ["user_id", "item_id", "scenario", "label", "time", "device"]
ROW = ["user-1", "item-1", "books", "1", "5", "phone"]


def empty(folder: Path) -> None:
    (folder / "interactions.csv").write_bytes(b"")


def only_a_header(folder: Path) -> None:
    write_csv(folder / "interactions.csv", HEADER, [])


def a_label_that_is_no_number(folder: Path) -> None:
    write_csv(folder / "interactions.csv", HEADER, [ROW, [*ROW[:3], "nan", *ROW[4:]]])


def a_label_beyond_one(folder: Path) -> None:
    write_csv(folder / "interactions.csv", HEADER, [ROW, [*ROW[:3], "4", *ROW[4:]]])


def an_empty_id(folder: Path) -> None:
    write_csv(folder / "interactions.csv", HEADER, [ROW, ["", *ROW[1:]]])


def an_item_twice(folder: Path) -> None:
    (folder / "items.csv").write_text("item_id,title,category_path\na,A,x\nb,B,x\na,A again,x\n")


def too_few_rows(folder: Path) -> None:
    write_csv(folder / "interactions.csv", HEADER, [ROW])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, "interactions.csv: the file is empty"),
        (only_a_header, "interactions.csv: no rows below the header"),
        (a_label_that_is_no_number, "interactions.csv: column 'label': 'nan' in row 2; expected a number"),
        (a_label_beyond_one, "interactions.csv: column 'label': 4.0 in row 2; a label lies between 0 and 1"),
        (an_empty_id, "in row 2; an id cannot be empty"),
        (an_item_twice, "column 'item_id': 'a' stands again in row 3; ids must be unique"),
        (too_few_rows, "in 1 rows; of each user's rows 0.1 test, so users need 10: set split.kind = 'leave_last_out'"),
    ],
)
def test_wrong_data(
    call: Call, experiment: MakeExperiment, table: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(table, data)
    damage(data)
    fresh = experiment({"source.path": str(data)})
    code, out, err = call("prepare", str(fresh))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not files(fresh.root)


def files(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


def test_a_stage_before_its_turn_says_which_to_run(call: Call, experiment: MakeExperiment) -> None:
    fresh = str(experiment())
    for verb in ("extract", "train", "evaluate", "export", "explain", "serve"):
        code, _, err = call(verb, fresh)
        assert code == 2
        assert "nothing prepared for this config; run `llm4msr prepare` first" in err


def test_serve_a_bundle_on_s3_until_terminated(spine: Spine, s3: str, tmp_path: Path) -> None:
    """The first process is killed, and its endpoint goes on; the second takes it over and ends as by `docker stop`."""
    import ray

    there = storage.path(f"{s3}/serving/export/one")
    for file in spine.folder("export").iterdir():
        storage.write_bytes(there / file.name, file.read_bytes())
    port = free_port()
    own = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    words = command_line(
        "serve", str(spine.experiment), "--set", f"serve.port={port}", "--set", f"serve.bundle={there}"
    )
    for sent in (signal.SIGKILL, signal.SIGTERM):
        log = tmp_path / sent.name
        with log.open("w") as stderr:
            process = subprocess.Popen(words, env=os.environ | own, stdout=subprocess.PIPE, stderr=stderr, text=True)
            try:
                wait_until(lambda log=log: "end with Ctrl-C" in log.read_text(), process)
                ready = httpx.get(f"http://127.0.0.1:{port}/readyz").raise_for_status().json()
                assert ready["status"] == "ready"
                process.send_signal(sent)
                out, _ = process.communicate(timeout=120)
            finally:
                process.kill()
    assert process.returncode == 143, log.read_text()
    assert "taking over the endpoint" in log.read_text()
    assert last_json(out)["uri"] == str(there)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/readyz")
