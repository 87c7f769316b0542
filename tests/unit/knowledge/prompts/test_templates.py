import os
import re
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any

import pyarrow as pa
import pytest

from llm4msr import schema, storage
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge.prompts import templates

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
    (prompt,) = templates.user_prompts(template, history, titles_per_scenario).to_pylist()
    return str(prompt)


def own(tmp_path: Path, text: str) -> str:
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "own.txt")


def test_all_users_prompts_begin_with_the_whole_instruction():
    template = templates.read("user")
    instruction = template.template.split("$history")[0]
    assert len(instruction) > 100
    users = [history(home=["A"]), history(home=["A", "B"], search=["C"]), history(search=["$x"]), history(a=["Z"])]
    prompts = [user_prompt(template, user, 4) for user in users]
    assert len(set(prompts)) == len(prompts)
    for one, two in combinations(prompts, 2):
        assert os.path.commonprefix([one, two]).startswith(instruction)


def test_all_scenarios_prompts_begin_with_the_instruction_and_end_with_their_own_facts():
    template = templates.read("scenario")
    names = ["home", "search"]
    prompts = [templates.scenario_prompt(template, SCENARIO | {"scenario_id": name}, names) for name in names]
    shared = os.path.commonprefix(prompts)
    assert "home, search" in shared
    assert shared.endswith("Scenario: ")


def test_user_prompt_shows_the_latest_titles_of_each_scenario():
    template = templates.read("user")
    prompt = user_prompt(template, history(home=["a", "b", "c"], empty=[], search=["d"]), 2)
    assert prompt.endswith("home: b; c\nsearch: d")


@pytest.mark.parametrize("nothing", [[], history(home=[]), history(home=[], search=[])])
def test_user_without_liked_titles_has_no_prompt(nothing: list[Any]):
    assert user_prompt(templates.read("user"), nothing, 3) == ""


def test_titles_are_clipped_and_their_blanks_joined(tmp_path: Path):
    template = templates.read("user", own(tmp_path, "$history"))
    prompt = user_prompt(template, history(s=["x" * 500, " many \n\t blanks ", "y" * templates.MAX_TITLE]), 3)
    assert prompt == f"s: {'x' * templates.MAX_TITLE}; many blanks; {'y' * templates.MAX_TITLE}"


def test_prompts_of_many_users_are_those_of_each_alone():
    template = templates.read("user")
    users = [
        history(home=["A", "B\u2003 C"], search=[]),
        [],
        history(x=["é" * 100]),
        history(home=[], search=["D"] * 9),
    ]
    column = pa.array([[], *users, []], schema.HISTORIES.field("history").type).slice(1, 4)
    together = templates.user_prompts(template, column, 3).to_pylist()
    assert together == [user_prompt(template, user, 3) for user in users]
    assert together[0].endswith("\n\nhome: A; B C")
    assert together[1] == ""


def test_a_dollar_in_a_title_is_a_dollar(tmp_path: Path):
    template = templates.read("user", own(tmp_path, "$history"))
    assert user_prompt(template, history(s=["$history for $5"]), 1) == "s: $history for $5"


def test_scenario_prompt_shows_its_statistics():
    prompt = templates.scenario_prompt(templates.read("scenario"), SCENARIO, ["home", "search", "feed"])
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
    lines = templates.scenario_prompt(templates.read("scenario"), bare, ["home"]).splitlines()
    assert lines[-3:] == ["Typical categories: not known", "Most liked: not known", "Users shared with: none"]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("user", "$history of $user", r"own\.txt: unknown place '\$user'; known: \$history"),
        ("scenario", "$scenario $price", r"unknown place '\$price'; known: \$categories, \$interactions, .*\$users"),
        ("user", "$history costs 5$", r"own\.txt: a lone '\$'; write '\$\$'"),
        ("scenario", "$ 5", r"a lone '\$'"),
        ("user", "$history\0", r"own\.txt: holds a NUL character"),
        ("user", "no place", r"own\.txt: '\$history' is missing, so all users would get one prompt"),
        ("scenario", "", r"own\.txt: '\$scenario' is missing, so all scenarios would get one prompt"),
        ("scenario", "One of $scenarios.", r"so all scenarios would get one prompt"),
    ],
)
def test_wrong_template_is_refused(tmp_path: Path, kind: str, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        templates.read(kind, own(tmp_path, text))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_template_that_is_not_utf8_is_refused(tmp_path: Path, encoding: str):
    (tmp_path / "own.txt").write_bytes("Café $history".encode(encoding))
    with pytest.raises(StorageError, match=r"own\.txt: the encoding is .*; save it as UTF-8"):
        templates.read("user", str(tmp_path / "own.txt"))


@pytest.mark.parametrize("text", ["a\r\n$history\r\n", "\ufeffa\n$history", "a  \n$history \t\n \n", "a\r$history"])
def test_line_ends_marks_and_trailing_blanks_make_no_other_template(tmp_path: Path, text: str):
    (tmp_path / "own.txt").write_bytes(text.encode())
    assert templates.read("user", str(tmp_path / "own.txt")).template == "a\n$history"


def test_the_beginning_of_an_answer_holds_no_data(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"own\.txt: '\$title' stands after the line '---'"):
        templates.read("item", own(tmp_path, "$title?\n---\nOf $title I say"))


def test_no_value_begins_the_answer(tmp_path: Path):
    template = templates.read("item", own(tmp_path, "$title\n$categories\n---\nSo:"))
    for title, words in (("---", ["a"]), ("a", ["---"]), ("a\n---\nb", ["c"]), ("x", ["a\r---\u2028b"])):
        prompt = templates.item_prompt(template, title, words)
        assert prompt.partition(templates.ANSWER_BEGINS)[2] == "So:", prompt
        assert len(prompt.splitlines()) == 4
    bare = templates.read("item", own(tmp_path, "Of\n$title\nand\n$categories\n?"))
    assert templates.ANSWER_BEGINS not in templates.item_prompt(bare, "---", ["---"])


HOSTILE = ["a\0b\x1b[2Jc", "x\u202ey\u2028z", "\ufeff q\r\nr\x85s ", "$history {0} {{x}} %s", "👩\u200d🚀"]


def test_control_characters_and_breaks_of_data_are_blanks_in_every_prompt(tmp_path: Path):
    clean = ["a b [2Jc", "x y z", "q r s", "$history {0} {{x}} %s", "👩\u200d🚀"]
    assert templates.clean(HOSTILE) == clean
    template = templates.read("user", own(tmp_path, "$history"))
    column = [{"scenario_id": name, "titles": [name]} for name in HOSTILE]
    assert user_prompt(template, column, 1).split("\n") == [f"{name}: {name}" for name in clean]
    scenario = SCENARIO | {"scenario_id": HOSTILE[0], "titles": HOSTILE, "categories": HOSTILE}
    prompt = templates.scenario_prompt(templates.read("scenario"), scenario, HOSTILE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ufeff]", prompt)
    assert f"Scenario: {clean[0]}\n" in prompt
    assert len(prompt.split("\n")) == len(
        (Path(templates.__file__).parent / "scenario.txt").read_text().strip().split("\n")
    )


@pytest.mark.parametrize("count", [21, 60, 3000])
def test_a_scenario_prompt_is_bounded_for_any_number_of_scenarios(count: int):
    names = [f"shelf {at} {'of long names ' * 20}" for at in range(count)]
    shared = [{"scenario_id": name, "fraction": at / count} for at, name in enumerate(names) if at]
    row = SCENARIO | {"scenario_id": names[0], "shared_users": shared, "titles": ["t" * 500] * 40}
    prompt = templates.scenario_prompt(templates.read("scenario"), row, names)
    assert len(prompt) <= 3 * 1024
    nearest = [f"shelf {at} " for at in range(count - 8, count)]
    assert sum(name in prompt for name in nearest) >= 4
    assert "shelf 1 " not in prompt
    assert re.search(r", \d+ more\. Below", prompt)
    assert re.search(r"\d+ more, each at most \d+%$", prompt)
    small = templates.scenario_prompt(templates.read("scenario"), row, names, 300)
    assert len(small) < len(prompt)


def test_text_that_tokenizers_cut_small_is_bounded_too():
    names = [f"{at}\u8033\u673a\u84dd\u7259\u97f3\u7bb1" for at in range(15)]
    shared = [{"scenario_id": name, "fraction": 0.5} for name in names[1:]]
    row = SCENARIO | {"scenario_id": names[0], "shared_users": shared, "titles": ["\u667a\u80fd\u624b\u673a" * 9] * 10}
    prompt = templates.scenario_prompt(templates.read("scenario"), row, names)
    plain = sum(map(str.isascii, prompt))
    assert names[0] in prompt
    assert plain / 3 + len(prompt.encode()) - plain <= 1024


def test_few_scenarios_are_all_named_in_their_order():
    names = [f"s{at}" for at in range(9)]
    many = [f"m{at}" for at in range(20)]
    assert ", ".join(many) in templates.scenario_prompt(templates.read("scenario"), SCENARIO, many)
    shared = [{"scenario_id": name, "fraction": (at * 7 % 9) / 9} for at, name in enumerate(names) if at != 4]
    row = SCENARIO | {"scenario_id": "s4", "shared_users": shared}
    prompt = templates.scenario_prompt(templates.read("scenario"), row, names)
    assert "in these scenarios: s0, s1, s2, s3, s4, s5, s6, s7, s8. Below" in prompt
    assert prompt.endswith("Users shared with: s0 0%, s1 78%, s2 56%, s3 33%, s5 89%, s6 67%, s7 44%, s8 22%")


def test_template_from_a_uri():
    storage.write_bytes(storage.path("memory://templates/mine.txt"), "Über $$5: ${history}!\n\n".encode())
    template = templates.read("user", "memory://templates/mine.txt")
    assert user_prompt(template, history(s=["A"]), 1) == "Über $5: s: A!"


def test_absent_template_is_named():
    with pytest.raises(StorageError, match=r"absent\.txt"):
        templates.read("user", "memory://templates/absent.txt")


def test_fingerprint_changes_with_the_prompt_and_with_its_reader():
    first = templates.fingerprint("p", "r")
    assert first == templates.fingerprint("p", "r")
    assert (
        len({first, templates.fingerprint("q", "r"), templates.fingerprint("p", "s"), templates.fingerprint("pr", "")})
        == 4
    )
