"""What was served as it was trained shows no skew, and what was not is named; requests are served by a replica."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import storage
from llm4msr.bundle import request_rows
from llm4msr.bundle.messages import RankRequest
from llm4msr.cli import main
from llm4msr.config import Config
from llm4msr.config.toml import dump
from llm4msr.errors import ConfigError, DataError
from llm4msr.export.calibration import calibrate
from llm4msr.export.export import as_trained
from llm4msr.export.write import Sources, write_bundle
from llm4msr.pipeline import exported, skew, trained
from llm4msr.serve.replica import Replica
from llm4msr.storage import StageResult
from tests.support.bundles import encode_all
from tests.support.data import config_of, prepare_and_make_knowledge, publish_trained, write_data

USERS = [*(f"u{number}" for number in range(40)), "nobody"]
ITEMS = [*(f"i{number}" for number in range(20)), "unknown item"]
HISTORY = [{"item_id": "i3", "scenario": "home"}, {"item_id": "odd", "scenario": "home"}]


pytestmark = pytest.mark.usefixtures("replica_process")


def make(folder: Path, **sections: Any) -> Config:
    """A config whose model is exported, and whose log is full of what a replica has answered."""
    log = {"log": {"folder": str(folder / "requests"), "share": 1}}
    config = config_of(write_data(folder), split={"by": "user"}, serve=log | {"follow_s": 0}, **sections)
    prepare_and_make_knowledge(config)
    publish_trained(config)
    return config.model_copy(update={"serve": config.serve.model_copy(update={"bundle": publish(config, folder)})})


def publish(config: Config, folder: Path) -> str:
    """The URI of what `export` makes, without Ray."""
    model = trained(config)
    calibrated = calibrate(model) if config.export.calibration == "platt" else None
    made = as_trained(model, calibrated)
    has_codes = model.extracted is not None and made.net.uses_users and made.vectors is None
    codes = [encode_all(model.extracted, made.net)] if model.extracted is not None and has_codes else []
    sources = Sources(config, made.net, made.data, codes, made.vectors, calibrated=calibrated)

    def build(at: Any) -> StageResult:
        return write_bundle(sources, at, {}, "# card")

    inputs = {"train": model.output.folder.name}
    return str(storage.publish(storage.path(folder / f"bundle-{config.seed}"), "export", 1, {}, inputs, build).folder)


def serve(config: Config, requests: Sequence[RankRequest]) -> None:
    async def steps() -> None:
        replica = Replica(config.serve, False)
        await replica.reconfigure({"bundle": str(exported(config).folder)})
        assert replica.log is not None
        for number, request in enumerate(requests):
            await replica.respond([request], f"r{number}")
        await replica.log.flush()

    asyncio.run(steps())


def requests(**changes: Any) -> list[RankRequest]:
    contexts = [{"device": "tv"}, {}, {"device": "fax"}]
    return [
        RankRequest.model_validate(
            {"user_id": user, "scenario": scenario, "items": ITEMS, "context": contexts[at % 3], "top_k": 2} | changes
        )
        for at, user in enumerate(USERS)
        for scenario in ("home", "nowhere")
    ]


def change(config: Config, **columns: Any) -> None:
    """Other values in one file of the log: a function of the old one for each column."""
    folder = storage.path(config.serve.log.folder)
    file = folder / request_rows.files(folder)[0].name
    table = storage.read_table(file)
    for name, of in columns.items():
        values = [of(value) for value in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    storage.write_table(file, table)


MODELS: list[dict[str, Any]] = [
    {"model": {}},
    {"model": {"knowledge": "none", "backbone": "star"}},
    {"model": {"knowledge": "feature"}, "export": {"calibration": "platt"}},
    {"model": {"knowledge": "scenario", "match": ["ids"], "past_events": 5}},
    {
        "model": {"knowledge": "both", "match": ["candidate", "cosines"], "past_events": 6},
        "extract": {"reads": "items"},
    },
]


@pytest.mark.parametrize("sections", MODELS, ids=lambda sections: "-".join(map(str, sections["model"].values())))
def test_what_is_served_as_it_was_trained_shows_no_skew(tmp_path: Path, sections: dict[str, Any]) -> None:
    config = make(tmp_path, **sections)
    changes: list[dict[str, Any]] = [{"history": HISTORY}, {"history": [], "history_mode": "replace"}]
    changes += [{"user_features": {"country": "fr"}}]
    serve(config, [*requests(), *(request for one in changes for request in requests(**one)[:8])])
    found = skew(config, 1000)
    assert (found.rows, found.others) == (106, 0)
    assert found.of("user.country").rows == 98
    assert {name: one.differ for name, one in found.found.items() if one.differ} == {}
    assert found.of("scores").rows == 106
    assert found.of("scores").largest is not None
    model = config.model
    assert ("code" in found.found) == model.reads_codes
    assert ("events" in found.found) == (bool(model.match) or sections.get("extract") == {"reads": "items"})
    assert {"user.user_id", "user.country"} <= found.found.keys()


def test_what_was_served_otherwise_is_named_with_its_share_and_size(tmp_path: Path) -> None:
    config = make(tmp_path, **MODELS[-1])
    serve(config, requests())
    before = served(config)
    change(
        config,
        user_slots=lambda slots: [slots[0], slots[1] + 1],
        code=lambda code: code and [code[0] + 0.5, *code[1:]],
        events=lambda events: events[:-1],
    )
    found = skew(config, 1000)
    differ = {name: one.differ for name, one in found.found.items() if one.differ}
    without = sum(row["code"] is None for row in served(config))
    assert differ["user.country"] == 82
    assert differ["code"] == 82 - without
    assert differ["events"] == sum(bool(row["events"]) for row in before)
    assert found.of("code").largest == pytest.approx(0.5, abs=1e-3)
    assert found.of("scores").largest > 1e-3
    assert found.of("user.country").example.startswith("r")
    assert "user.user_id" not in differ


def served(config: Config) -> list[dict[str, Any]]:
    return pa.concat_tables(request_rows.read_each(storage.path(config.serve.log.folder))).to_pylist()


def test_the_newest_rows_of_the_bundle_are_compared(tmp_path: Path) -> None:
    config = make(tmp_path, **MODELS[0])
    serve(config, requests())
    serve(config, requests()[:3])
    change(config, model_version=lambda _: "other")  # of the older file
    found = skew(config, 2)
    assert (found.rows, found.others, found.of("scores").rows) == (2, 0, 2)
    found = skew(config, 1000)
    assert (found.rows, found.others) == (3, 82)


def test_codes_of_a_refresh_are_taken_as_they_were_served(tmp_path: Path) -> None:
    config = make(tmp_path, **MODELS[0])
    serve(config, requests())
    change(config, knowledge_version=lambda _: "newer", code=lambda code: code and [-number for number in code])
    found = skew(config, 1000)
    assert "code" not in found.found
    assert found.of("scores").differ > 40  # the scores are not those of these codes


def test_without_a_log_or_rows_of_the_bundle_there_is_nothing_to_compare(tmp_path: Path) -> None:
    config = make(tmp_path, **MODELS[1])
    with pytest.raises(DataError, match="no request that bundle"):
        skew(config, 10)
    off = config.serve.model_copy(update={"log": config.serve.log.model_copy(update={"folder": ""})})
    with pytest.raises(ConfigError, match=r"serve\.log\.folder is empty"):
        skew(config.model_copy(update={"serve": off}), 10)
    other = config_of(tmp_path, split={"by": "user"}, seed=7, model={"knowledge": "none", "backbone": "star"})
    publish_trained(other)
    foreign = config.serve.model_copy(update={"bundle": publish(other, tmp_path)})
    with pytest.raises(ConfigError, match="made of another training"):
        skew(config.model_copy(update={"serve": foreign}), 10)


def test_the_command_says_it_to_people_and_programs_and_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(tmp_path, **MODELS[0])
    serve(config, requests())
    (tmp_path / "config.toml").write_text(dump(config))

    def call() -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["llm4msr", "skew", str(tmp_path / "config.toml"), "--rows", "50"])
        code: Any = 0
        try:
            main.main()
        except SystemExit as ended:
            code = ended.code or 0
        printed = capsys.readouterr()
        return int(code), printed.out.splitlines(), printed.err

    code, lines, _ = call()
    assert code == 0
    assert lines[0].startswith("50 requests that bundle ")
    told = json.loads(lines[-1])
    assert told["compared"]["scores"]["differ"] == 0
    assert told["compared"]["scores"]["largest"] < 1e-5
    change(config, scores=lambda scores: [score + 0.01 for score in scores])
    code, lines, error = call()
    assert code == 3
    assert "error: not served as it was trained: scores; the table says where" in error
    assert json.loads(lines[-1])["compared"]["scores"]["largest"] == pytest.approx(0.01, abs=1e-5)
    assert np.isclose(json.loads(lines[-1])["compared"]["scores"]["differ"], 50)
