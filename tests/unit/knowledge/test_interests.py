"""Interests per scenario: what the LLM is held to, and what is read of what it wrote."""

from typing import Any

import jsonschema
import pytest

from llm4msr.knowledge import interests

SCENARIOS = ["Action", "Film: noir", "Drama"]
PROMPT = "Below is what one user liked.\n\nFilm: noir: Laura (1944)\nAction: Heat; Action: the film\n\nDrama was not."


def test_only_scenarios_with_a_line_in_the_prompt_are_asked_for():
    schema = interests.json_schema(PROMPT, SCENARIOS)
    assert schema["required"] == ["Action", "Film: noir"]
    good: dict[str, Any] = {"Action": ["car chases"], "Film: noir": ["the forties", "crime"]}
    jsonschema.validate(good, schema)
    for bad in ({"Action": ["x"]}, good | {"Drama": ["x"]}, good | {"Action": []}, good | {"Action": ["x" * 61]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_a_prompt_of_another_form_is_asked_for_all_scenarios():
    assert interests.json_schema("likes Action films", SCENARIOS)["required"] == SCENARIOS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"Action": ["cars"], "Drama": ["old\\n age"]}', {"Action": ["cars"], "Drama": ["old age"]}),
        ('{"Action": ["cars", "hei', {"Action": ["cars"]}),
        ('{"Action": ["cars"], "Dra', {"Action": ["cars"]}),
        ('{"Action": ["cars"], "Cooking": ["soup"]}', {"Action": ["cars"]}),
        ('{"Action": "cars", "Drama": [1, null, "", "  "]}', {}),
        ('{"Action": ["a", "b", "c", "d"]}', {"Action": ["a", "b", "c"]}),
        ("This user likes cars.", {}),
        ('["Action"]', {}),
        ("NaN", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_what_is_whole_and_known_is_read(answer: str, expected: dict[str, list[str]]):
    assert interests.read(answer, SCENARIOS) == expected
