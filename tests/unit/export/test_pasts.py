"""A bundle of a model that matches pasts scores as the trained net does, with all that is known of a user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llm4msr import Ranker, RankRequest, storage
from llm4msr.bundle.files import CODES, PASTS, SELF_TEST, latest_codes
from llm4msr.bundle.messages import RecentEvent
from llm4msr.bundle.self_test import Case, SelfTest
from llm4msr.errors import ConfigError, StorageError
from llm4msr.export.refresh import Served, refresh
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput
from tests.support.data import write_csv
from tests.support.matching import PARTS, PAST_EVENTS, Event, prepare_events, publish_matching, trained_scores
from tests.support.partitioned import in_partitions

CANDIDATES = ["i3", "i1", "nobody's", "i9", "i2", "i14"]
NOTHING: list[Event] = [("nobody's", "home", True)]
NEWEST: list[Event] = [("i7", "home", True), ("i3", "search", False), ("i12", "elsewhere", True)]


def request(user: str, scenario: str, history: Sequence[Event] = (), mode: str = "extend") -> RankRequest:
    told = [{"item_id": item, "scenario": at, "liked": liked} for item, at, liked in history]
    fields = {"user_id": user, "scenario": scenario, "items": CANDIDATES, "history": told, "history_mode": mode}
    return RankRequest.model_validate(fields)


def served_scores(ranker: Ranker, *of_request: Any) -> list[float]:
    scores = {item.item_id: item.score for item in ranker.rank(request(*of_request)).ranked}
    return [scores[item] for item in CANDIDATES]


def read_rows(output: StageOutput, file: str) -> pa.Table:
    return pa.ipc.open_file(str(Path(str(output.folder)) / file)).read_all().replace_schema_metadata(None)


def read_self_test(output: StageOutput) -> list[Case]:
    return SelfTest.model_validate_json(storage.read_bytes(output.folder / SELF_TEST)).cases


def code_of(ranker: Ranker, of: RankRequest) -> list[float]:
    rows = ranker.items.find_all([event.item_id for event in of.history])
    code = ranker.knowledge.look_up(of, rows).code_K
    assert code is not None
    return np.asarray(code, np.float64).tolist()


@pytest.mark.parametrize(
    ("total", "model"),
    [
        *((1, {"match": (part,), "knowledge": "none"}) for part in PARTS),
        (1, {"knowledge": "none"}),
        (1, {"knowledge": "feature", "backbone": "star"}),
        (4, {"knowledge": "both"}),
        (4, {"match": ("ids",), "knowledge": "none"}),
    ],
)
def test_scores_are_those_of_the_trained_net_that_sees_all_events_of_a_user(
    tmp_path: Path, total: int, model: dict[str, Any]
):
    made = publish_matching(tmp_path, total, **model)
    ranker = Ranker.load(str(made.output.folder))
    without = 0
    for user in ["u0", "u3", "u11", "nobody"]:
        for scenario in ("home", "search", "elsewhere"):
            past = made.events.get(user, [])[-PAST_EVENTS:]
            expected = trained_scores(made, user, scenario, CANDIDATES, past)
            assert served_scores(ranker, user, scenario) == pytest.approx(expected, abs=1e-5)
            without += expected != pytest.approx(trained_scores(made, user, scenario, CANDIDATES, []), abs=1e-3)
    assert without >= (0 if model.get("match") == ("candidate",) else 6)
    requests = [request(user, "home", NEWEST[: at % 4]) for at, user in enumerate(made.events)]
    for one, together in zip(requests, ranker.rank_many(requests, [""] * len(requests)), strict=True):
        alone = {item.item_id: item.score for item in ranker.rank(one).ranked}
        assert {item.item_id: item.score for item in together.ranked} == pytest.approx(alone, abs=1e-5)


def test_of_who_is_to_be_forgotten_no_past_is_kept(tmp_path: Path):
    made = publish_matching(tmp_path, forget=["u5"])
    ranker = Ranker.load(str(made.output.folder))
    assert made.output.manifest.info["users_with_past"] == len(ranker.knowledge.pasts) == len(made.events) - 1
    assert ranker.knowledge.pasts.find("u5") is None
    assert served_scores(ranker, "u5", "home") == served_scores(ranker, "nobody", "home")


@pytest.mark.parametrize("pooled", [True, False])
def test_no_file_of_a_bundle_names_who_is_to_be_forgotten(tmp_path: Path, pooled: bool):
    everybody = publish_matching(tmp_path / "all", 4, pooled=pooled, knowledge="both")
    named = {case.request.user_id for case in read_self_test(everybody.output)} - {""}
    forget = sorted(named | {"u5"})
    made = publish_matching(tmp_path, 4, forget, pooled=pooled, knowledge="both")
    ranker = Ranker.load(str(made.output.folder))
    of_users = (ranker.users, ranker.knowledge.codes, ranker.knowledge.pasts)
    assert [len(table) for table in of_users] == [len(made.events) - len(forget)] * 3
    assert not any(table.find(user) for table in of_users for user in forget)
    assert named
    assert {case.request.user_id for case in read_self_test(made.output)} == {""}
    for file in Path(str(made.output.folder)).rglob("*"):
        assert file.is_dir() or not any(f'"{user}"'.encode() in file.read_bytes() for user in forget)
    answer = ranker.rank(request(forget[0], "home"))
    assert (answer.unknown.user, answer.knowledge) == (True, "none")


@pytest.mark.parametrize("total", [1, 4])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("match", [PARTS, ("ids",), ("candidate",), ()])
def test_a_history_in_the_request_extends_or_replaces_what_is_stored(
    tmp_path: Path, total: int, pooled: bool, match: tuple[str, ...]
):
    made = publish_matching(tmp_path, total, pooled=pooled, match=match, knowledge="both")
    ranker = Ranker.load(str(made.output.folder))
    reads = pooled or match not in (("candidate",), ())
    assert ranker.info().reads_history == reads
    assert ranker.info().users_with_past == (len(made.events) if reads else 0)
    for user in ["u1", "u11", "nobody"]:
        stored = made.events.get(user, [])[-PAST_EVENTS:]
        for mode, past in (("extend", stored + NEWEST), ("replace", NEWEST)):
            past = past[-PAST_EVENTS:]
            for scenario in ("home", "another"):
                expected = trained_scores(made, user, scenario, CANDIDATES, past, past if pooled else None)
                assert served_scores(ranker, user, scenario, NEWEST, mode) == pytest.approx(expected, abs=1e-5)
            answer = ranker.rank(request(user, "home", NEWEST, mode))
            assert (answer.knowledge == "request") == ranker.info().reads_history
            assert answer.unknown.user == (user == "nobody")


LONG_AGO, LATER = 1.0, 4e9
"""Before and after any bundle of a test was made."""


def recent(told: Sequence[Event], time: float) -> list[RecentEvent]:
    return [RecentEvent(item, scenario, liked, time, time) for item, scenario, liked in told]


def scores_after(ranker: Ranker, of: RankRequest, told: list[RecentEvent]) -> tuple[list[float], str]:
    """Scores, and where what is known came from."""
    (answer,) = ranker.rank_many([of], [""], [told])
    scores = {item.item_id: item.score for item in answer.ranked}
    return [scores[item] for item in CANDIDATES], answer.knowledge


@pytest.mark.parametrize("total", [1, 4])
@pytest.mark.parametrize("pooled", [True, False])
def test_events_that_an_endpoint_was_told_count_as_a_history_in_the_request(tmp_path: Path, total: int, pooled: bool):
    made = publish_matching(tmp_path, total, pooled=pooled, knowledge="both")
    ranker = Ranker.load(str(made.output.folder))
    for user in ["u1", "u11", "nobody"]:
        for told, history in ((NEWEST, []), (NEWEST[:2], NEWEST[2:])):
            found, source = scores_after(ranker, request(user, "home", history), recent(told, LATER))
            assert found == pytest.approx(served_scores(ranker, user, "home", NEWEST), abs=1e-6)
            assert source == ("request" if history else "events")
        replaced = request(user, "home", NEWEST, "replace")
        found, source = scores_after(ranker, replaced, recent([("i2", "home", True)], LATER))
        assert (found, source) == (served_scores(ranker, user, "home", NEWEST, "replace"), "request")
    unknown = scores_after(ranker, request("u3", "home"), recent([("nobody's", "home", True)], LATER))
    assert unknown == (served_scores(ranker, "u3", "home"), "stored")


@pytest.mark.parametrize("pooled", [True, False])
def test_an_event_that_the_bundle_has_counts_once(tmp_path: Path, pooled: bool):
    made = publish_matching(tmp_path, pooled=pooled, knowledge="both")
    ranker = Ranker.load(str(made.output.folder))
    for user in ["u1", "u11"]:
        before = recent(made.events[user], LONG_AGO)
        assert len(before) > PAST_EVENTS or user == "u1"
        assert scores_after(ranker, request(user, "home"), before) == (served_scores(ranker, user, "home"), "stored")
        missed = [one for one in NEWEST if one not in made.events[user]]
        found, source = scores_after(ranker, request(user, "home"), before + recent(missed, LONG_AGO))
        assert (found, source) == (pytest.approx(served_scores(ranker, user, "home", missed), abs=1e-6), "events")
        again = made.events[user][-1:]
        found, source = scores_after(ranker, request(user, "home"), before + recent(again, LATER))
        assert (found, source) == (pytest.approx(served_scores(ranker, user, "home", again), abs=1e-6), "events")


def test_who_was_never_seen_is_served_from_their_first_clicks(tmp_path: Path):
    made = publish_matching(tmp_path, pooled=True, knowledge="user")
    ranker = Ranker.load(str(made.output.folder))
    nothing = ranker.rank(request("nobody", "home"))
    told = ranker.rank(request("nobody", "home", [*NEWEST, ("nobody's", "home", True)]))
    assert (nothing.knowledge, told.knowledge, ranker.rank(request("u3", "home")).knowledge) == (
        "none",
        "request",
        "stored",
    )
    assert (nothing.unknown.history, told.unknown.history) == (0, 1)
    assert [item.item_id for item in nothing.ranked] != [item.item_id for item in told.ranked]


def test_a_history_without_any_known_item_changes_nothing_and_an_empty_one_in_place_of_the_stored_hides_that(
    tmp_path: Path,
):
    made = publish_matching(tmp_path, pooled=True, knowledge="user")
    ranker = Ranker.load(str(made.output.folder))
    unknown = ranker.rank(request("u3", "home", [("nobody's", "home", True)] * 3))
    assert (unknown.knowledge, unknown.unknown.history) == ("stored", 3)
    assert served_scores(ranker, "u3", "home", [("nobody's", "home", True)]) == served_scores(ranker, "u3", "home")
    hidden = ranker.rank(request("u3", "home", [], "replace"))
    assert (hidden.knowledge, hidden.unknown.user) == ("none", False)
    expected = trained_scores(made, "u3", "home", CANDIDATES, [], pooled=[("nobody's", "home", True)])
    assert served_scores(ranker, "u3", "home", [], "replace") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("total", [1, 4])
@pytest.mark.parametrize("match", [PARTS, ("candidate",), ()])
def test_a_code_is_pooled_from_the_kept_events_at_export_at_refresh_and_at_request(
    tmp_path: Path, total: int, match: tuple[str, ...]
):
    made = publish_matching(tmp_path, total, pooled=True, match=match, knowledge="both")
    config, prepared = prepare_events(tmp_path, made.events, total)
    refreshed = refresh(config, prepared, None, Served.open(made.output))
    for file in (CODES, PASTS):
        exported, again = (read_rows(output, file) for output in (made.output, refreshed))
        assert exported.num_rows == len(made.events)
        assert exported.equals(again)
    ranker = Ranker.load(str(made.output.folder))
    assert max(map(len, made.events.values())) > 2 * PAST_EVENTS
    for user, events in made.events.items():
        stored = code_of(ranker, request(user, "home"))
        kept = events[-PAST_EVENTS:]
        assert code_of(ranker, request(user, "home", kept, "replace")) == pytest.approx(stored, abs=1e-3)
        assert code_of(ranker, request("nobody", "home", kept)) == pytest.approx(stored, abs=1e-3)
        told = code_of(ranker, request(user, "home", NEWEST))
        expected = code_of(ranker, request("nobody", "home", (kept + NEWEST)[-PAST_EVENTS:]))
        assert told == pytest.approx(expected, abs=1e-3)
        assert told != pytest.approx(stored, abs=1e-2)
        expected_scores = trained_scores(made, user, "home", CANDIDATES, kept, kept)
        assert served_scores(ranker, user, "home") == pytest.approx(expected_scores, abs=1e-5)


def test_events_of_items_that_came_after_the_bundle_take_no_place_of_others(tmp_path: Path):
    made = publish_matching(tmp_path, pooled=True, knowledge="both")
    later: list[Event] = [("beyond", "home", True)] * (PAST_EVENTS - 2)
    config, prepared = prepare_events(tmp_path / "newer", {user: told + later for user, told in made.events.items()})
    output = refresh(config, prepared, None, Served.open(made.output))
    for file in (CODES, PASTS):
        assert read_rows(made.output, file).equals(read_rows(output, file))


@pytest.mark.parametrize("match", [PARTS, ()])
def test_a_refresh_tells_of_newer_events_and_users_without_an_llm(tmp_path: Path, match: tuple[str, ...]):
    made = publish_matching(tmp_path, pooled=True, match=match, knowledge="user")
    newer = {**made.events, "u3": [*made.events["u3"], ("i5", "search", True)], "new": [*NEWEST[:2]] * 2}
    newer = {"z": [("beyond", "moon", True), *[(f"i{at}", "home", True) for at in (3, 4, 5)]]} | newer
    config, prepared = prepare_events(tmp_path / "newer", newer, 4)
    (tmp_path / "forget.txt").write_text("u6\n")
    extract = config.extract.model_copy(update={"forget": str(tmp_path / "forget.txt")})
    config = config.model_copy(update={"extract": extract})
    served = Served.open(made.output)
    assert not served.needs_knowledge
    output = refresh(config, prepared, None, served)
    assert refresh(config, prepared, None, served).reused
    assert latest_codes(str(made.output.folder)) == str(output.folder)
    ranker = Ranker.load(str(made.output.folder), codes=str(output.folder))
    for user in ("u3", "new", "z", "u6"):
        events = [] if user == "u6" else [event for event in newer[user] if event[0] != "beyond"]
        events = events[-PAST_EVENTS:]
        known = "nobody" if user == "u6" else user
        expected = trained_scores(made, known, "home", CANDIDATES, events, events or NOTHING)
        assert served_scores(ranker, user, "home") == pytest.approx(expected, abs=1e-5)
        assert ranker.rank(request(user, "home")).knowledge == ("stored" if events else "none")
    other = publish_matching(tmp_path / "other", pooled=True, match=match, knowledge="feature")
    with pytest.raises(StorageError, match="codes of another model"):
        Ranker.load(str(other.output.folder), codes=str(output.folder))


@pytest.mark.parametrize("total", [1, 4])
def test_a_refresh_tells_of_newer_features_in_the_words_of_the_bundle(tmp_path: Path, total: int):
    made = publish_matching(tmp_path, pooled=True, match=(), knowledge="user")
    config, prepared = prepare_events(tmp_path / "newer", made.events | {"new": NEWEST, "other": NEWEST})
    countries = {user: "de" if int(user[1:]) % 3 else "fr" for user in made.events}
    countries |= {"new": "fr", "other": "at", "u1": "fr", "u2": "at"}
    write_csv(tmp_path / "newer" / "users.csv", ["user_id", "country"], [*countries.items()])
    source = config.source.model_copy(update={"path": str(tmp_path / "newer")})
    prepared = prepare(config.model_copy(update={"source": source}))
    if total > 1:
        config, prepared = in_partitions(config, prepared, total, tmp_path / "parts")
    output = refresh(config, prepared, None, Served.open(made.output))
    bundle = Ranker.load(str(made.output.folder))
    ranker = bundle.with_codes(str(output.folder))
    assert len(ranker.users.partitions) == total
    for user, country in countries.items():
        of = request(user, "home", NEWEST, "replace")
        told = of.model_copy(update={"user_features": {"country": country}})
        assert bundle.rank(told).ranked == ranker.rank(of).ranked, user
        assert not ranker.rank(of).unknown.user
    assert bundle.rank(request("new", "home", NEWEST, "replace")).unknown.user
    assert ranker.rank(request("u1", "home")).ranked != bundle.rank(request("u1", "home")).ranked


@pytest.mark.parametrize("match", [("candidate",), ()])
def test_a_model_that_knows_nothing_of_users_has_nothing_to_refresh(tmp_path: Path, match: tuple[str, ...]):
    made = publish_matching(tmp_path, match=match, knowledge="scenario")
    assert made.output.manifest.info["users_with_past"] == 0
    config, prepared = prepare_events(tmp_path / "newer", made.events)
    with pytest.raises(ConfigError, match="nothing to refresh"):
        refresh(config, prepared, None, Served.open(made.output))
