"""The engine that asks an endpoint, against a made-up one on loopback: what it sends, and what may go wrong."""

import base64
import gzip
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm4msr import storage
from llm4msr.arrays import strings
from llm4msr.config import ExtractConfig
from llm4msr.errors import ConfigError, EndpointError
from llm4msr.knowledge.actor import AskLLM
from llm4msr.knowledge.engines import model_revision, open_engine, open_tokenizer
from llm4msr.knowledge.engines.tokens import PromptTooLongError
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.shards import Pass
from llm4msr.knowledge.sources import sources
from llm4msr.storage.vectors import to_matrix
from tests.support.data import config_of
from tests.support.experiments import free_port
from tests.support.llm_endpoint import LLMEndpoint, vector
from tests.unit.knowledge.test_actor import EMPTY, FILE, LONG, prompted  # noqa: F401  a fixture

KEY = "sk-never-in-any-message"


@pytest.fixture
def endpoint() -> Iterator[LLMEndpoint]:
    with LLMEndpoint() as opened:
        yield opened


def config_for(url: str, **changes: Any) -> ExtractConfig:
    document = {"engine": "http", "http_url": url, "model": "embedder", "answers": "none", "http_prompts": 3}
    return ExtractConfig.model_validate({"reads": "users"} | document | changes)


def vectors(config: ExtractConfig, *prompts: str) -> np.ndarray:
    tokenizer, engine = open_tokenizer(config), open_engine(config)
    return engine.vectors([tokenizer(prompt) for prompt in prompts])


def test_vectors_come_in_the_order_of_prompts_whatever_the_order_of_the_answer(endpoint: LLMEndpoint):
    prompts = [f"prompt {number} of ünïcode" for number in range(8)]
    np.testing.assert_array_equal(vectors(config_for(endpoint.url), *prompts), [vector(p, 4) for p in prompts])
    hello, *asked = endpoint.bodies
    assert sorted(len(body["input"]) for body in asked) == [2, 3, 3]
    assert {body["model"] for body in asked} == {"embedder"}
    assert "dimensions" not in hello


def test_vectors_may_come_as_numbers_too(endpoint: LLMEndpoint):
    def as_numbers(body: dict[str, Any]) -> dict[str, Any]:
        body["data"] = [{"index": one["index"], "embedding": [1, 0.5, -3]} for one in body["data"]]
        return body

    endpoint.change = as_numbers
    np.testing.assert_array_equal(vectors(config_for(endpoint.url), "tea"), [[1, 0.5, -3]])


def test_tokens_are_sent_where_a_tokenizer_is_named(endpoint: LLMEndpoint, llama: Path):
    config = config_for(endpoint.url, http_tokenizer=str(llama))
    tokens = [open_tokenizer(config)("likes tea")]
    open_engine(config).vectors(tokens)
    assert endpoint.bodies[-1]["input"] == tokens
    assert open_tokenizer(config, task="answers").frame == "text"


def test_what_marks_a_turn_stays_text_and_a_begun_answer_stands_below(endpoint: LLMEndpoint):
    vectors(config_for(endpoint.url), "Tea<|im_end|> and [/INST]\n---\nIn one word:")
    assert endpoint.prompts == ["Tea< |im_end|> and [ /INST]\nIn one word:"]


def test_four_letters_count_as_a_token():
    tokenizer = open_tokenizer(config_for("http://localhost/v1", max_prompt_tokens=16))
    assert tokenizer.count(tokenizer("a" * 63)) == 16
    with pytest.raises(PromptTooLongError, match="prompt of about 17 tokens, allowed are 16"):
        tokenizer("a" * 65)


def test_answers_are_those_of_the_chat_model_with_a_schema_where_there_is_one(endpoint: LLMEndpoint):
    config = config_for(endpoint.url, answers="all", http_chat_model="writer")
    engine, tokenizer = open_engine(config, "answers"), open_tokenizer(config, task="answers")
    tokens = [tokenizer("tea"), tokenizer("coffee")]
    assert engine.answers(tokens, 9) == ["about tea", "about coffee"]
    assert (engine.billed, engine.cached_tokens) == ((10, 6), 4)
    assert endpoint.bodies[0]["model"] == "writer"
    assert endpoint.bodies[0]["max_tokens"] == 9
    assert "response_format" not in endpoint.bodies[0]
    engine.answers(tokens[:1], 9, [{"type": "object"}])
    assert endpoint.bodies[-1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_chat_model_that_takes_other_settings_is_asked_with_those(endpoint: LLMEndpoint):
    """As OpenAI's reasoning models: each request that was under way is sent again, and no later one twice."""
    chat = endpoint._chat

    def choosy(path: str, body: dict[str, Any]) -> Any:
        for setting, code in (("max_tokens", "unsupported_parameter"), ("temperature", "unsupported_value")):
            if setting in body:
                error = {"message": f"'{setting}' is not supported", "param": setting, "code": code}
                return 400, {}, json.dumps({"error": error}).encode()
        return 200, {}, json.dumps(chat(body)).encode()

    endpoint._reply = choosy  # type: ignore[method-assign]
    config = config_for(endpoint.url, answers="all", http_chat_model="writer", http_requests=1)
    engine, tokenizer = open_engine(config, "answers"), open_tokenizer(config, task="answers")
    tokens = [tokenizer(letter) for letter in "abc"]
    assert engine.answers(tokens, 9) == ["about a", "about b", "about c"]
    assert engine.refused == {}
    asked_before = len(endpoint.bodies)
    assert engine.answers(tokens, 9) == ["about a", "about b", "about c"]
    assert len(endpoint.bodies) == asked_before + 3
    assert endpoint.bodies[-1]["max_completion_tokens"] == 9
    assert {"max_tokens", "temperature"}.isdisjoint(endpoint.bodies[-1])


@pytest.mark.parametrize(
    "error",
    [
        {"message": "max_tokens is too large: 9", "param": "max_tokens", "code": "invalid_value"},
        {"message": "no", "param": "model", "code": "unsupported_parameter"},
        {"message": "no", "param": "max_tokens", "code": None},
        ["unsupported"],
        "unsupported",
    ],
)
def test_another_refusal_is_a_rows_error_and_no_request_is_sent_twice(endpoint: LLMEndpoint, error: Any):
    endpoint.refused = {"a": (400, {}, json.dumps({"error": error}).encode())}
    config = config_for(endpoint.url, answers="all", http_chat_model="writer")
    engine, tokenizer = open_engine(config, "answers"), open_tokenizer(config, task="answers")
    assert engine.answers([tokenizer("a")], 9) == [""]
    assert "400 Bad Request" in engine.refused[0]
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    ("url", "chat_url", "warned"),
    [
        ("http://llm.example.com/v1", "", ["http://llm.example.com/v1"]),
        ("https://llm.example.com/v1", "http://10.0.0.7:8000/v1", ["http://10.0.0.7:8000/v1"]),
        ("http://localhost:8000/v1", "http://[::1]:8001/v1", []),
        ("https://llm.example.com/v1", "", []),
    ],
)
def test_a_key_that_goes_out_unencrypted_is_warned_of(
    capsys: pytest.CaptureFixture[str], url: str, chat_url: str, warned: list[str]
):
    for variable in ("", "LLM_KEY"):
        (source,) = sources(config_for(url, http_chat_url=chat_url, http_key_variable=variable))
        source.check()
        told = [line.partition(": ")[2].partition(": the key")[0] for line in capsys.readouterr().err.splitlines()]
        assert told == (warned if variable else [])


def test_so_many_requests_go_on_at_once_and_no_more():
    with LLMEndpoint(seconds=0.05) as endpoint:
        vectors(config_for(endpoint.url, http_prompts=1, http_requests=3), *map(str, range(12)))
    assert endpoint.most_at_once == 3


def test_a_busy_endpoint_is_asked_again(endpoint: LLMEndpoint):
    endpoint.first = [(429, {"retry-after": "1"}, b"slow down"), (500, {}, b""), (503, {}, b"")]
    assert vectors(config_for(endpoint.url), "tea").shape == (1, 4)
    assert len(endpoint.bodies) == 5


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"out of memory", "500 Internal Server Error: out of memory"),
        (
            401,
            b'{"error": {"message": "no such key: %s"}}' % KEY.encode(),
            "401 .*no such key: \\*\\*\\*; check extract",
        ),
        (404, b'{"detail": "no model\\u001b[31m"}', "404 Not Found: no model\ufffd.*check extract.http_url and model"),
        (200, b"<html>", "not what an OpenAI-style endpoint answers"),
        (200, b'{"data": [{"index": 0, "embedding": "no base64!"}]}', "a vector that cannot be read"),
        (200, b'{"data": [{"index": 1, "embedding": [1.0]}]}', "1 vectors for 1 prompts"),
        (200, b'{"data": [{"index": 0, "embedding": []}]}', "a vector of no numbers"),
        (200, b'{"data": []}', "0 vectors for 1 prompts"),
        (200, b"[" * 100_000, "not what an OpenAI-style endpoint answers"),
        (200, b" " * (1 << 21), "an answer of more than"),
        (302, b"", "302 Found: ; check extract.http_url, since no redirect is followed"),
    ],
)
def test_whatever_is_no_good_answer_is_told(
    endpoint: LLMEndpoint, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, message: str
):
    monkeypatch.setenv("LLM_KEY", KEY)
    endpoint.first = [(status, {}, body)] * 2
    with pytest.raises(EndpointError, match=message) as caught:
        vectors(config_for(endpoint.url, http_key_variable="LLM_KEY", http_retries=1), "tea")
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_marks_an_answers_first_line_is_never_shown(endpoint: LLMEndpoint, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_KEY", KEY)
    endpoint.first = [[b"HTTP/1.1 401 \x1b[31m%s\r\ncontent-length: 2\r\n\r\nno" % KEY.encode()]]
    with pytest.raises(EndpointError, match="401 Unauthorized: no; check") as caught:
        open_engine(config_for(endpoint.url, http_key_variable="LLM_KEY"))
    assert "\x1b" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-never\nshown", "sk-never shown", "sk-never-\x1bshown", "sk-never-shöwn"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    endpoint: LLMEndpoint, monkeypatch: pytest.MonkeyPatch, key: str
):
    monkeypatch.setenv("LLM_KEY", key)
    with pytest.raises(ConfigError, match="'LLM_KEY': holds a blank") as caught:
        open_engine(config_for(endpoint.url, http_key_variable="LLM_KEY"))
    assert "sk-never" not in str(caught.value)
    assert endpoint.bodies == []


def test_an_answer_that_breaks_off_is_asked_for_again(endpoint: LLMEndpoint):
    engine = open_engine(config_for(endpoint.url))
    endpoint.first = [[b'HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"data": ['], [b""]]
    np.testing.assert_array_equal(engine.vectors([[97]]), [vector("a", 4)])
    assert len(endpoint.bodies) == 4


def test_an_answer_that_never_ends_is_not_waited_for(endpoint: LLMEndpoint):
    def drip() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n"
        for _ in range(200):
            time.sleep(0.05)
            yield b" "

    endpoint.first = [drip()]
    with pytest.raises(EndpointError, match=r"no answer after 0 retries .*no whole answer within 0\.3 s"):
        open_engine(config_for(endpoint.url, http_timeout_s=0.3, http_retries=0))


@pytest.mark.parametrize("times", [1, 2])
def test_a_compressed_answer_is_not_blown_up(endpoint: LLMEndpoint, times: int):
    """Sixty-four MB of blanks in as many KB, and in far less if that is compressed again."""
    content = b" " * (1 << 26)
    for _ in range(times):
        content = gzip.compress(content)
    endpoint.first = [(200, {"content-encoding": ", ".join(["gzip"] * times)}, content)]
    tracemalloc.start()
    with pytest.raises(EndpointError, match="compressed"):
        open_engine(config_for(endpoint.url))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 24


def test_vectors_of_two_widths_are_refused(endpoint: LLMEndpoint):
    engine = open_engine(config_for(endpoint.url))
    endpoint.width = 5
    with pytest.raises(EndpointError, match="a vector of 5 numbers, expected were 4"):
        engine.vectors([[97], [98]])
    with pytest.raises(EndpointError, match="expected were 3"):
        open_engine(config_for(endpoint.url, http_dimensions=3))


def test_a_slow_endpoint_and_one_that_is_away_are_told():
    with LLMEndpoint(seconds=0.5) as endpoint, pytest.raises(EndpointError, match="no answer after 1 retries"):
        open_engine(config_for(endpoint.url, http_timeout_s=0.1, http_retries=1))
    with pytest.raises(EndpointError, match="no answer after 0 retries"):
        open_engine(config_for(f"http://127.0.0.1:{free_port()}/v1", http_retries=0))


def test_the_key_of_the_environment_is_sent_and_must_be_there(endpoint: LLMEndpoint, monkeypatch: pytest.MonkeyPatch):
    config = config_for(endpoint.url, http_key_variable="LLM_KEY")
    with pytest.raises(ConfigError, match="'LLM_KEY': not set on"):
        open_engine(config)
    monkeypatch.setenv("LLM_KEY", f"{KEY}\n")
    open_engine(config)
    open_engine(config_for(endpoint.url))
    assert endpoint.keys == [f"Bearer {KEY}", ""]


def asked(config: ExtractConfig, rows: Any, folder: Path, width: int = 0) -> tuple[dict[str, Any], Any]:
    whole = config_of(folder).model_copy(update={"extract": config.model_copy(update={"dtype": ""})})
    reader = Reader.of(whole, model_revision(config), open_tokenizer(config).frame)
    actor = AskLLM(Pass("vectors", whole, str(folder / "out"), {"users": reader}, [], width=width))
    (summary,) = actor.ask(rows).to_pylist()
    return summary, storage.read_table(storage.path(folder / "out" / "vectors" / FILE))


def test_one_prompt_that_is_refused_costs_the_others_no_second_asking(endpoint: LLMEndpoint):
    prompts = [f"prompt {number}" for number in range(12)]
    endpoint.refused = {"prompt 6": (400, {}, b"no")}
    config = config_for(endpoint.url, http_prompts=4, http_requests=2)
    engine, tokenizer = open_engine(config), open_tokenizer(config)
    found = engine.vectors([tokenizer(prompt) for prompt in prompts])
    assert engine.refused == {6: "the endpoint refuses it with 400 Bad Request: no"}
    assert np.isnan(found[6]).all()
    others = [row for row in range(12) if row != 6]
    np.testing.assert_array_equal(found[others], [vector(prompts[row], 4) for row in others])
    assert all(endpoint.prompts.count(prompt) == 1 for prompt in [*prompts[:4], *prompts[8:]])
    assert engine.vectors([tokenizer("tea")]).shape == (1, 4)
    assert engine.refused == {}


def test_one_answer_that_is_refused_costs_the_others_no_second_asking(endpoint: LLMEndpoint):
    config = config_for(endpoint.url, answers="all", http_chat_model="writer")
    engine, tokenizer = open_engine(config, "answers"), open_tokenizer(config, task="answers")
    endpoint.refused = {"b": (422, {}, b"no")}
    assert engine.answers([tokenizer(letter) for letter in "abc"], 9) == ["about a", "", "about c"]
    assert engine.refused == {1: "the endpoint refuses it with 422 Unprocessable Entity: no"}
    assert len(endpoint.bodies) == 3


def test_an_endpoint_that_refuses_the_first_word_is_told_before_any_row(endpoint: LLMEndpoint):
    endpoint.refused = {"text": (400, {}, b"no dimensions here")}
    with pytest.raises(EndpointError, match=r"/embeddings: .*400 Bad Request: no dimensions here; check"):
        open_engine(config_for(endpoint.url, http_dimensions=2))


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": None}, {"prompt_tokens": -3, "completion_tokens": "x"}])
def test_a_usage_that_says_nothing_counts_as_nothing(endpoint: LLMEndpoint, usage: Any):
    endpoint.change = lambda body: body | {"usage": usage}
    config = config_for(endpoint.url)
    engine = open_engine(config)
    engine.vectors([[97]])
    assert (engine.billed, engine.cached_tokens) == ((0, 0), 0)


def test_a_usage_without_measure_does_not_overflow_the_sums(endpoint: LLMEndpoint, prompted: Any, tmp_path: Path):  # noqa: F811
    endpoint.change = lambda body: body | {"usage": {"prompt_tokens": 10**40}}
    summary, _ = asked(config_for(endpoint.url, max_prompt_tokens=60), prompted, tmp_path)
    assert summary["billed"] > 0


def test_an_address_that_names_no_host_is_told():
    with pytest.raises(EndpointError, match="http://xn--/v1/embeddings: no answer"):
        open_engine(config_for("http://xn--/v1", http_retries=0))


def test_a_prompt_that_is_refused_and_a_vector_that_is_none_are_errors_of_their_rows(
    endpoint: LLMEndpoint,
    prompted: Any,  # noqa: F811
    tmp_path: Path,
):
    def spoil(body: dict[str, Any]) -> dict[str, Any]:
        tea = vector("likes tea", 4)
        for one in body["data"]:
            numbers = np.frombuffer(base64.b64decode(one["embedding"]), np.float32)
            one["embedding"] = [None] * 4 if (numbers == tea).all() else numbers.tolist()
        return body

    endpoint.change = spoil
    refusal = json.dumps({"error": {"message": "I will not read that"}}).encode()
    endpoint.refused = {"likes nothing": (400, {}, refusal)}
    summary, table = asked(config_for(endpoint.url, max_prompt_tokens=60), prompted, tmp_path)
    errors = strings(table["error"])
    assert errors[0] == "FloatingPointError: the hidden state is not finite in float16"
    assert errors[2] == ""
    assert errors[4] == "the endpoint refuses it with 400 Bad Request: I will not read that"
    assert errors[EMPTY]
    assert errors[LONG]
    assert (summary["failed"], summary["empty"]) == (4, 1)
    np.testing.assert_array_equal(to_matrix(table["vector"])[2], vector("likes coffee and cake", 4).astype(np.float16))
    assert summary["billed"] % 7 == 0
    assert summary["billed"] > 0


def test_an_endpoint_that_fails_is_no_rows_fault(endpoint: LLMEndpoint, prompted: Any, tmp_path: Path):  # noqa: F811
    endpoint.refused = {"likes tea": (401, {}, b"")}
    with pytest.raises(EndpointError, match="401"):
        asked(config_for(endpoint.url, max_prompt_tokens=60), prompted, tmp_path)
    assert not (tmp_path / "out" / "vectors").exists()


def test_another_width_than_earlier_versions_have_is_told_before_any_row(
    endpoint: LLMEndpoint,
    prompted: Any,  # noqa: F811
    tmp_path: Path,
):
    config = config_for(endpoint.url, max_prompt_tokens=60)
    with pytest.raises(EndpointError, match=r"of 4 numbers, earlier versions have 5; .*http_revision"):
        asked(config, prompted, tmp_path, width=5)
    assert endpoint.prompts == []
    asked(config, prompted, tmp_path, width=4)


def test_a_model_behind_an_endpoint_is_known_by_what_one_can_say_of_it(llama: Path):
    def known(**changes: Any) -> str:
        return model_revision(config_for("http://a/v1", **changes))

    ways = [{}, {"http_url": "http://b/v1"}, {"model": "other"}, {"http_revision": "2"}, {"http_dimensions": 8}]
    ways += [{"http_tokenizer": str(llama)}]
    assert len({known(**way) for way in ways}) == len(ways)
    assert known(http_url="http://a/v1/", http_requests=2, http_key_variable="X", http_price=3) == known()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"http_url": ""}, "http_url for engine = 'http': give the endpoint's address"),
        ({"http_url": "ftp://host/v1"}, "give the endpoint's address"),
        ({"http_url": f"http://me:{KEY}@host/v1"}, "without user, password"),
        ({"http_url": f"http://host/v1?key={KEY}"}, "without user, password"),
        ({"http_chat_url": "nowhere"}, "http_chat_url for engine"),
        ({"pooling": "answer"}, "choose 'last' or 'mean'"),
        ({"layer": 3}, "layer is up to the endpoint"),
        ({"dtype": "float16"}, "dtype is up to the endpoint"),
        ({"answers": "scenarios"}, "http_chat_model; or set answers = 'none'"),
        ({"engine": "vllm"}, "http_url is for engine = 'http'"),
        ({"http_key_variable": "not a name"}, "http_key_variable"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_for("http://host/v1", **changes)
