"""`prepare` beside a plain program that is written to be read: row by row, without numbers and without NumPy."""

import math
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from llm4msr.config import Config
from llm4msr.data.catalogue import MAX_VALUES
from llm4msr.data.histories import MAX_TITLES
from llm4msr.pipeline import prepare
from tests.support import by_raw_id
from tests.support.by_raw_id import ByRawId
from tests.support.data import HEADER, config_of, write_csv

Row = dict[str, Any]
CONFIGS: list[dict[str, Any]] = [
    {},
    {"history_share": 0.5},
    {"by": "user", "valid": 0.2},
    {"by": "user", "history_share": 0.6, "latest": 700},
    {"kind": "leave_last_out"},
    {"kind": "leave_last_out", "latest": 350, "history_share": 0.4},
    {"latest": 333, "valid": 0.2, "test": 0.15},
    {"latest": 401, "history_share": 0.7},
    {"first_events": 7},
    {"first_events": 12, "by": "user", "latest": 240},
    {"first_events": 5, "kind": "leave_last_out"},
]


def world(seed: int) -> tuple[list[Row], dict[str, list[str]], dict[str, str]]:
    """Skewed interactions with equal times, blanks and repeats; items and users, of which some are not described."""
    rng = random.Random(seed)
    rows = [
        {
            "user": f"u{int(rng.paretovariate(0.6)) % 60}",
            "item": f"i{int(rng.paretovariate(0.5)) % 45}",
            "scenario": rng.choice(("home", "search", "", "late" if at > 880 else "Ü")) or "home",
            "label": rng.choice((0.0, 1.0, 0.25, 0.75)),
            "time": rng.randrange(200),
            "device": rng.choice(("tv", "phone", "")),
        }
        for at in range(900)
    ]
    items = {
        f"i{i}": [rng.choice((f"Title {i}", "", "  ")), " > ".join(f"c{rng.randrange(12)}" for _ in range(i % 11)), "b"]
        for i in range(0, 60, 2)
    }
    return rows, items, {f"u{u}": rng.choice(("de", "fr", "")) for u in range(0, 80, 3)}


def write(folder: Path, rows: list[Row], items: dict[str, list[str]], users: dict[str, str]) -> None:
    write_csv(folder / "interactions.csv", HEADER, [list(row.values()) for row in rows])
    described = [[item, *row] for item, row in items.items()]
    write_csv(folder / "items.csv", ["item_id", "title", "category_path", "brand"], described)
    write_csv(folder / "users.csv", ["user_id", "country"], [*users.items()])


def divide(rows: list[Row], config: Config) -> list[Row]:
    """The rows that are used, in their order, each with its `split` and `past`."""
    s = config.split
    in_time = sorted(rows, key=lambda row: row["time"])  # sorted() keeps the order of equal times
    if s.first_events:
        past: Counter[str] = Counter()
        in_time = [row for row in in_time if past.update([row["user"]]) or past[row["user"]] <= s.first_events]
    in_time = in_time[-s.latest :]
    of_user = defaultdict(list)
    for row in in_time:
        of_user[row["user"]].append(row)
    if s.kind == "leave_last_out":
        for own in of_user.values():
            for at, row in enumerate(reversed(own)):
                row["split"] = ("test", "valid", "train")[min(at, 2)] if len(own) > 2 else "train"
    elif s.by == "user":
        for own in of_user.values():
            for at, row in enumerate(own):
                row["split"] = name_split(at, len(own), config)
    else:
        starts = [in_time[ceil(len(in_time) * share)]["time"] for share in (1 - s.valid - s.test, 1 - s.test)]
        for row in in_time:
            row["split"] = ("train", "valid", "test")[sum(row["time"] >= start for start in starts)]
    train = [row for row in in_time if row["split"] == "train"]
    if s.kind == "leave_last_out" or s.by == "user":
        for own in of_user.values():
            trained = [row for row in own if row["split"] == "train"]
            for at, row in enumerate(trained):
                row["past"] = at < ceil(len(trained) * s.history_share)
    else:
        last = train[math.floor((len(train) - 1) * s.history_share)]["time"] if s.history_share < 1 else math.inf
        for row in train:
            row["past"] = row["time"] <= last
    return [row for row in rows if "split" in row]


def name_split(at: int, count: int, config: Config) -> str:
    s = config.split
    if at < ceil(count * (1 - s.valid - s.test)):
        return "train"
    return "valid" if at < ceil(count * (1 - s.test)) else "test"


def ceil(number: float) -> int:
    return math.ceil(round(number, 6))


def reference(rows: list[Row], items: dict[str, list[str]], users: dict[str, str], config: Config) -> ByRawId:
    used = divide(rows, config)
    train = [row for row in used if row["split"] == "train"]
    past = [row for row in train if row.get("past")]
    trained = {name: {row[name] for row in train} for name in ("user", "item", "scenario", "device")}
    countries = {users.get(user, "") for user in trained["user"]}
    steps = {item: items.get(item, ["", "", ""])[1].split(" > ") for item in items.keys() | trained["item"]}
    words = {step for item in trained["item"] for step in steps[item]} - {""}
    brands = {items[item][2] for item in trained["item"] & items.keys()}
    catalogue = [{"item_id": False, "brand": "", "category": [], "id": "", "title": ""}]
    for item in [*sorted(trained["item"]), *sorted(items.keys() - trained["item"])]:
        title, _, brand = items.get(item, ["", "", ""])
        known = [step for step in steps[item] if step in words][:MAX_VALUES]
        catalogue.append(
            {
                "item_id": item in trained["item"],
                "brand": brand if brand in brands else "",
                "category": known,
                "id": item,
                "title": title if title.strip() else item,
            }
        )
    titles = {row["id"]: row["title"] for row in catalogue}
    people = {"": {"user_id": False, "country": "", "id": ""}}
    for user in trained["user"] | users.keys():
        country = users.get(user, "")
        people[user] = {
            "user_id": user in trained["user"],
            "country": country if country in countries else "",
            "id": user,
        }
    seen: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(past, key=lambda row: row["time"]):
        row["place"] = len(seen[row["user"]])
        seen[row["user"]].append(row)
    return ByRawId(
        people,
        catalogue,
        [statistics(name, past, catalogue, trained["scenario"]) for name in ["", *sorted(trained["scenario"])]],
        {user: (len(own), history(own, titles)) for user, own in seen.items()},
        {
            user: [
                (r["item"], r["label"], sum(o["time"] < r["time"] for o in own), r["scenario"], r["time"]) for r in own
            ]
            for user, own in seen.items()
        },
        events(used, people, titles, trained),
        {name: sorted(told(row, people, titles, trained) for row in used if row["split"] == name) for name in SPLITS},
    )


SPLITS = ("train", "valid", "test")


def told(row: Row, people: dict[str, Any], titles: dict[str, str], trained: dict[str, set[str]]) -> tuple[Any, ...]:
    scenario, device = (row[name] if row[name] in trained[name] else "" for name in ("scenario", "device"))
    user, item = row["user"] if row["user"] in people else "", row["item"] if row["item"] in titles else ""
    return (user, item, scenario, row["label"], device, row.get("place", -1), row["event"])


def events(rows: list[Row], people: dict[str, Any], titles: dict[str, str], trained: dict[str, set[str]]) -> Row:
    """Each row's event as `event`, and those of each user."""
    of_user, whole = defaultdict(list), defaultdict(list)
    for row in sorted(rows, key=lambda row: row["time"]):
        of_user[row["user"]].append(row)
    for user, own in of_user.items():
        for at, row in enumerate(own):
            before = sum(other["time"] < row["time"] for other in own)
            item, scenario = row["item"] in titles, row["scenario"] in trained["scenario"]
            kind = (row["item"] * item, row["scenario"] * scenario, row["label"], SPLITS.index(row["split"]))
            row["event"] = (*kind, at, before)
            whole[user if user in people else ""].append(row["event"])
    return {user: own if user else sorted(own) for user, own in whole.items()}


def history(own: list[Row], titles: dict[str, str]) -> list[Row]:
    shelves = defaultdict(list)
    for row in own:
        if row["label"] > 0.5:
            shelves[row["scenario"]].append(titles[row["item"]])
    return [{"scenario_id": name, "titles": shelves[name][-MAX_TITLES:]} for name in sorted(shelves)]


def statistics(name: str, past: list[Row], catalogue: list[Row], names: set[str]) -> Row:
    own = [row for row in past if row["scenario"] == name]
    users = {row["user"] for row in own}
    place = {row["id"]: at for at, row in enumerate(catalogue)}
    likes = Counter(place[row["item"]] for row in own if row["label"] > 0.5)
    steps = Counter(step for row in own for step in catalogue[place[row["item"]]]["category"])
    shared = []
    for other in sorted(names - {name}) if name else ():
        theirs = {row["user"] for row in past if row["scenario"] == other}
        shared.append({"scenario_id": other, "fraction": len(users & theirs) / max(len(users), 1)})
    return {
        "scenario": ["", *sorted(names)].index(name),
        "scenario_id": name,
        "interactions": len(own),
        "users": len(users),
        "items": len({row["item"] for row in own}),
        "positive_rate": sum(row["label"] for row in own) / max(len(own), 1),
        "shared_users": shared,
        "categories": sorted(steps, key=lambda step: (-steps[step], step))[:5],
        "titles": [catalogue[at]["title"] for at in sorted(likes, key=lambda at: (-likes[at], at))[:10]],
    }


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("wanted", CONFIGS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "plain")
def test_one_partition_equals_a_plain_program(tmp_path: Path, wanted: dict[str, Any], seed: int):
    rows, items, users = world(seed)
    write(tmp_path, rows, items, users)
    config = config_of(tmp_path, split=wanted)
    found, expected = by_raw_id.read(prepare(config)), reference(rows, items, users, config)
    for name, value in expected._asdict().items():
        assert getattr(found, name) == value, name
