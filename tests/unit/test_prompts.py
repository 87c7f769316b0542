import os
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import prompts, schema, storage
from llm4msr.errors import ConfigError, StorageError
from llm4msr.extract import reader
from tests.unit.helpers import config_of

SCENARIO: dict[str, Any] = {
    "scenario": 1,
    "scenario_id": "home",
    "interactions": 1234,
    "users": 56,
    "items": 78,
    "positive_rate": 0.256,
    "shared_users": [{"scenario_id": "search", "fraction": 0.5}, {"scenario_id": "feed", "fraction": 0.004}],
    "categories": ["Bags", "Shoes"],
    "titles": ["A", "B"],
}


def history(**titles: list[str]) -> list[dict[str, Any]]:
    return [{"scenario_id": name, "titles": liked} for name, liked in titles.items()]


def user_prompt(template: Template, titles: list[dict[str, Any]], titles_per_scenario: int) -> str:
    history = pa.array([titles], schema.HISTORIES.field("history").type)
    (prompt,) = prompts.user_prompts(template, history, titles_per_scenario).to_pylist()
    return str(prompt)


def own(tmp_path: Path, text: str) -> str:
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "own.txt")


def test_all_users_prompts_begin_with_the_whole_instruction():
    template = prompts.template("user")
    instruction = template.template.split("$history")[0]
    assert len(instruction) > 100
    users = [history(home=["A"]), history(home=["A", "B"], search=["C"]), history(search=["$x"]), history(a=["Z"])]
    made = [user_prompt(template, user, 4) for user in users]
    assert len(set(made)) == len(made)
    for one, two in combinations(made, 2):
        assert os.path.commonprefix([one, two]).startswith(instruction)


def test_all_scenarios_prompts_begin_with_the_instruction_and_end_with_their_own_facts():
    template = prompts.template("scenario")
    names = ["home", "search"]
    made = [prompts.scenario_prompt(template, SCENARIO | {"scenario_id": name}, names) for name in names]
    shared = os.path.commonprefix(made)
    assert "home, search" in shared
    assert shared.endswith("Scenario: ")


def test_user_prompt_shows_the_latest_titles_of_each_scenario():
    template = prompts.template("user")
    prompt = user_prompt(template, history(home=["a", "b", "c"], empty=[], search=["d"]), 2)
    assert prompt.endswith("home: b; c\nsearch: d")


@pytest.mark.parametrize("nothing", [[], history(home=[]), history(home=[], search=[])])
def test_user_without_liked_titles_has_no_prompt(nothing: list[Any]):
    assert user_prompt(prompts.template("user"), nothing, 3) == ""


def test_titles_are_clipped_and_their_blanks_joined(tmp_path: Path):
    template = prompts.template("user", own(tmp_path, "$history"))
    prompt = user_prompt(template, history(s=["x" * 500, " many \n\t blanks ", "y" * prompts.MAX_TITLE]), 3)
    assert prompt == f"s: {'x' * prompts.MAX_TITLE}; many blanks; {'y' * prompts.MAX_TITLE}"


def test_prompts_of_many_users_are_those_of_each_alone():
    template = prompts.template("user")
    users = [
        history(home=["A", "B\u2003 C"], search=[]),
        [],
        history(x=["é" * 100]),
        history(home=[], search=["D"] * 9),
    ]
    column = pa.array([[], *users, []], schema.HISTORIES.field("history").type).slice(1, 4)
    together = prompts.user_prompts(template, column, 3).to_pylist()
    assert together == [user_prompt(template, user, 3) for user in users]
    assert together[0].endswith("\n\nhome: A; B C")
    assert together[1] == ""


def test_a_dollar_in_a_title_is_a_dollar(tmp_path: Path):
    template = prompts.template("user", own(tmp_path, "$history"))
    assert user_prompt(template, history(s=["$history for $5"]), 1) == "s: $history for $5"


def test_scenario_prompt_shows_its_statistics():
    prompt = prompts.scenario_prompt(prompts.template("scenario"), SCENARIO, ["home", "search", "feed"])
    for shown in (
        "home, search, feed",
        "1234 by 56 users with 78 items",
        "26%",
        "Bags, Shoes",
        "A; B",
        "search 50%, feed 0%",
    ):
        assert shown in prompt


def test_scenario_prompt_says_what_is_not_known():
    bare = SCENARIO | {"categories": [], "titles": [], "shared_users": []}
    lines = prompts.scenario_prompt(prompts.template("scenario"), bare, ["home"]).splitlines()
    assert lines[-3:] == ["Typical categories: not known", "Most liked: not known", "Users shared with: none"]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("user", "$history of $user", r"own\.txt: unknown place '\$user'; known: \$history"),
        ("scenario", "$scenario $price", r"unknown place '\$price'; known: \$categories, \$interactions, .*\$users"),
        ("user", "$history costs 5$", r"own\.txt: a lone '\$'; write '\$\$'"),
        ("scenario", "$ 5", r"a lone '\$'"),
        ("user", "no place", r"own\.txt: '\$history' is missing, so all users would get one prompt"),
    ],
)
def test_wrong_template_is_refused(tmp_path: Path, kind: str, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        prompts.template(kind, own(tmp_path, text))


def test_template_that_is_not_utf8_is_refused(tmp_path: Path):
    (tmp_path / "own.txt").write_bytes("Café $history".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"own\.txt"):
        prompts.template("user", str(tmp_path / "own.txt"))


def test_template_from_a_uri():
    storage.write_bytes(storage.path("memory://templates/mine.txt"), "Über $$5: ${history}!\n\n".encode())
    template = prompts.template("user", "memory://templates/mine.txt")
    assert user_prompt(template, history(s=["A"]), 1) == "Über $5: s: A!"


def test_absent_template_is_named():
    with pytest.raises(StorageError, match=r"absent\.txt"):
        prompts.template("user", "memory://templates/absent.txt")


def test_fingerprint_changes_with_the_prompt_and_with_its_reader():
    first = prompts.fingerprint("p", "r")
    assert first == prompts.fingerprint("p", "r")
    assert (
        len({first, prompts.fingerprint("q", "r"), prompts.fingerprint("p", "s"), prompts.fingerprint("pr", "")}) == 4
    )


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"pooling": "mean"}, False),
        ({"pooling": "answer"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"engine": "vllm"}, True),
        ({"actors": 3}, True),
        ({"rows_per_shard": 3}, True),
        ({"answer_tokens": 3}, True),
        ({"answers": "all"}, True),
    ],
)
def test_reader_holds_what_decides_a_vector(tmp_path: Path, change: dict[str, Any], same: bool):
    plain = reader(config_of(tmp_path), "rev").reads
    assert (reader(config_of(tmp_path, extract=change), "rev").reads == plain) == same
    assert reader(config_of(tmp_path), "other").reads != plain


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
    writes = reader(config_of(tmp_path, extract=change), "rev").writes
    assert (bool(writes["users"]), bool(writes["scenarios"])) == (users, scenarios)
    longer = reader(config_of(tmp_path, extract=change | {"answer_tokens": 7}), "rev").writes
    assert (longer["users"] != writes["users"], longer["scenarios"] != writes["scenarios"]) == (users, scenarios)


def test_reader_knows_the_length_of_answers_that_are_pooled(tmp_path: Path):
    short, long = (config_of(tmp_path, extract={"pooling": "answer", "answer_tokens": n}) for n in (8, 16))
    assert reader(short, "rev").reads != reader(long, "rev").reads
