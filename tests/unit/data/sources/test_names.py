"""Names of the source's columns never meet ours: each works, or is refused by name."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from llm4msr import config as configuration
from llm4msr.config import Config
from llm4msr.errors import ConfigError
from llm4msr.model.embedding import FeatureEmbedding
from llm4msr.pipeline import prepare
from llm4msr.training.feature_tables import FeatureTables
from tests.support.data import prepared_table, write_csv

OURS = [
    *("user_id", "item_id", "scenario_id", "context_id", "label", "order", "title", "category"),
    *("user", "item", "scenario", "seen", " seen", "c:x", "f:x", "c:user_id", "f:user_id", "index", "level_0", ""),
]
KEYS = {"user": "member", "item": "thing", "scenario": "shelf", "label": "clicked", "order": "at"}


def experiment(folder: Path, own: str, **table: Any) -> Config:
    """Files whose columns have names of their own, besides a column `own` with two values, in each of them."""
    rng = random.Random(3)
    rows = [
        [f"m{rng.randrange(9)}", f"t{rng.randrange(7)}", "ab"[at % 2], at % 3 % 2, at, "xy"[at % 2]] for at in range(90)
    ]
    write_csv(folder / "rows.csv", [*KEYS.values(), own], rows)
    write_csv(
        folder / "things.csv", ["thing", "name", "path", own], [[f"t{i}", f"T{i}", "P", "xy"[i % 2]] for i in range(7)]
    )
    write_csv(folder / "members.csv", ["member", own], [[f"m{i}", "xy"[i % 2]] for i in range(9)])
    files = {"interactions": "rows.csv", "items": "things.csv", "users": "members.csv", "title": "name"}
    document = {"kind": "table", "path": str(folder), "table": files | KEYS | table}
    return Config.model_validate({"name": "names", "storage": str(folder / "out"), "source": document})


def published(config: Config) -> tuple[dict[str, pa.Table], dict[str, Any], FeatureTables]:
    output = prepare(config)
    tables = {name: prepared_table(output, name) for name in ("train", "users", "items", "scenarios")}
    return tables, output.json("fields.json"), FeatureTables.open(output)


@pytest.mark.parametrize("own", OURS)
def test_a_context_field_may_have_any_name(tmp_path: Path, own: str):
    tables, fields, opened = published(experiment(tmp_path, own, context=[own]))
    assert fields["context"] == {own: ["x", "y"]}
    assert set(tables["train"][f"c:{own}"].to_pylist()) == {1, 2}
    assert tables["users"]["user_id"].to_pylist() == ["", *(f"m{i}" for i in range(9))]
    assert tables["items"]["title"].to_pylist() == ["", *(f"T{i}" for i in range(7))]
    assert tables["scenarios"]["scenario_id"].to_pylist() == ["", "a", "b"]
    assert [f.name for f in opened.fields if f.side == "context"] == [own]
    # hiding ids hides no context, and the scenario is read from its own slot
    hidden = FeatureEmbedding(opened.fields, 2).hide(torch.full((1, 4), 91), 1.0)
    assert hidden[0, 3] == 91
    assert (hidden[0, :3] != 91).all()


@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("own", OURS)
def test_a_feature_may_have_any_name_but_its_ids(tmp_path: Path, own: str, side: str):
    if own == f"{side}_id":
        pytest.skip("refused, see below")
    tables, fields, opened = published(experiment(tmp_path, own, **{f"{side}_features": [own]}))
    assert fields[side] == {f"{side}_id": fields[side][f"{side}_id"], own: ["x", "y"]}
    assert tables[f"{side}s"][f"f:{own}"].to_pylist()[1:] == [1 + i % 2 for i in range(9 if side == "user" else 7)]
    assert tables["items"]["title"].to_pylist()[1:] == [f"T{i}" for i in range(7)]
    embedding = FeatureEmbedding(opened.fields, 2)
    slots = embedding.scenarios(torch.full((1, 4), opened.scenario_start + 2))
    assert slots.tolist() == [2]


def test_columns_of_the_keys_may_be_features_too(tmp_path: Path):
    config = experiment(
        tmp_path,
        "own",
        category="path",
        item_features=["name", "path", "thing"],
        user_features=["member"],
        context=["shelf", "at", "member", "thing", "clicked"],
    )
    tables, fields, _ = published(config)
    assert list(fields["item"]) == ["item_id", "name", "path", "thing", "category"]
    assert fields["item"]["name"] == [f"T{i}" for i in range(7)]
    assert list(fields["user"]) == ["user_id", "member"]
    assert list(fields["context"]) == ["shelf", "at", "member", "thing", "clicked"]
    assert tables["items"]["f:category"].to_pylist() == [[], *([[1]] * 7)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user_features": ["user_id"]}, "user_features: the name 'user_id' is taken: the id itself"),
        ({"item_features": ["item_id"]}, "item_features: the name 'item_id' is taken: the id itself"),
        (
            {"item_features": ["category"], "category": "category"},
            "item_features: the name 'category' is taken: the path that the key `category` names",
        ),
        ({"context": ["own", "at", "own"]}, "context: 'own' stands there twice"),
        ({"user_features": ["own", "own"]}, "user_features: 'own' stands there twice"),
        ({"item_features": ["own", "own"]}, "item_features: 'own' stands there twice"),
    ],
)
def test_a_name_that_is_taken_is_refused_by_name(tmp_path: Path, table: dict[str, Any], message: str):
    lines = ['name = "t"', "[source]", 'kind = "table"', 'path = "."', "[source.table]"]
    file = tmp_path / "c.toml"
    file.write_text("\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]))
    with pytest.raises(ConfigError) as caught:
        configuration.load(str(file))
    assert f"'source.table': {message}" in str(caught.value)
    assert caught.value.exit_code == 2
