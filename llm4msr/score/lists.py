"""The lists of some users: each candidate scored by the bundle's ranker, the best of them kept. No Ray here.

Equal scores stand in the order of the items' ids as UTF-8 bytes, whatever the order of the candidates was.

Shape suffixes: B candidates of a scenario, E events of a user, I rows of the bundle's items, U candidates of all
scenarios, R rows of lists.
"""

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr import storage
from llm4msr.arrays import Bools, Column, Ints, Singles, strings
from llm4msr.bundle.ranker import Ranker
from llm4msr.data import partitions
from llm4msr.errors import StorageError
from llm4msr.score.candidates import FILE, Candidates, take
from llm4msr.storage import StageOutput


class Piece(NamedTuple):
    """Users of a partition who are scored together, by their places in it."""

    partition: int
    number: int
    """Of the piece in the partition."""
    start: int
    end: int

    @property
    def file(self) -> str:
        """Name of its file, relative to the output."""
        return f"lists/p={self.partition:05d}-{self.number:05d}.parquet"


class Job(NamedTuple):
    """What all pieces have in common; places are URIs."""

    prepared: str
    bundle: str
    codes: str
    """Newer than the bundle's; empty for its own."""
    allow_backbones: tuple[str, ...]
    output: str
    """Has the candidates, and gets the lists."""
    top_k: int
    by_history: bool
    """Whether a user gets lists in the scenarios of the own history alone."""
    leave_out: str


class Events(NamedTuple):
    """What users of a piece have done, by the numbers of the prepared data."""

    item_E: Ints
    scenario_E: Ints
    liked_E: Bools


class ListMaker:
    """Makes the lists of any users."""

    def __init__(self, job: Job):
        """Load the bundle and the candidates.

        Raises:
            ConfigError: the backbone is code from outside of this package, and not allowed.
            StorageError: a file is missing or damaged.
        """
        self._job, self._prepared = job, _open_prepared(job.prepared)
        self._ranker = Ranker.load(job.bundle, job.codes, job.allow_backbones)
        self._candidates = Candidates.of(storage.read_table(storage.path(job.output) / FILE))
        row_U = self._ranker.items.find_all(strings(self._candidates.id_U))
        self._rows = {name: row_U[place_B] for name, place_B in self._candidates.places.items()}
        self._scenarios = strings(self._prepared.table("scenarios.parquet", ["scenario_id"])["scenario_id"])
        items = strings(self._prepared.table("items.parquet", ["item_id"])["item_id"])
        self._row_of_item = np.r_[-1, self._ranker.items.find_all(items[1:])]
        self._is_out_I = np.zeros(len(self._ranker.items) + 1, bool)  # the last stands for unknown items

    def make(self, piece: Piece, forget: Column) -> pa.Table:
        """The rows of the lists of a piece, users in their order; none of the users to forget."""
        users = partitions.read(self._prepared, "users", piece.partition, ["user_id"])["user_id"]
        users = users.slice(piece.start, piece.end - piece.start)
        keeps = pc.invert(pc.is_in(users, value_set=forget)).to_numpy()
        lists = _Lists(self._candidates, self._ranker.model_version)
        for at, (user, events) in enumerate(zip(strings(users), self._events(piece), strict=True)):
            if not (keeps[at] and user):  # the first user of all is the unknown one
                continue
            rows_out = self._rows_out(events)
            self._is_out_I[rows_out] = True
            for scenario in self._scenarios_of(events):
                row_B = self._rows[scenario]
                score_B = self._ranker.score_rows(user, scenario, row_B)
                score_B[self._is_out_I[row_B]] = -1
                best = best_places(score_B, self._job.top_k)
                lists.append(user, scenario, best, score_B[best])
            self._is_out_I[rows_out] = False
        return lists.to_table()

    def _events(self, piece: Piece) -> Iterator[Events]:
        """Of each user of the piece."""
        columns = ["user", "item", "scenario", "label"]
        theirs = (pc.field("user") >= piece.start) & (pc.field("user") < piece.end)
        with partitions.parquet(self._prepared, "events", piece.partition) as parquet:
            groups = (parquet.read_row_group(at, columns) for at in range(parquet.num_row_groups))
            empty = parquet.schema_arrow.empty_table().select(columns)
            events = pa.concat_tables([empty, *(group.filter(theirs) for group in groups)]).sort_by("user")
        user_E, item_E, scenario_E, label_E = (events[name].to_numpy() for name in columns)
        bounds = np.searchsorted(user_E, np.arange(piece.start, piece.end + 1))
        for start, end in pairwise(bounds.tolist()):
            yield Events(item_E[start:end], scenario_E[start:end], label_E[start:end] > 0.5)

    def _rows_out(self, events: Events) -> Ints:
        """Rows of the items that the user's lists lack; unknown items share one row that nobody asks for."""
        if self._job.leave_out == "nothing":
            return np.zeros(0, np.int64)
        items = events.item_E if self._job.leave_out == "seen" else events.item_E[events.liked_E]
        return self._row_of_item[items]

    def _scenarios_of(self, events: Events) -> Sequence[str]:
        if not self._job.by_history:
            return [*self._rows]
        names = {self._scenarios[number] for number in np.unique(events.scenario_E).tolist()}
        return [name for name in self._rows if name in names]


class _Lists:
    """Lists that become a table; each text stands there once."""

    def __init__(self, candidates: Candidates, version: str):
        self._candidates, self._version = candidates, version
        self._users: list[str] = []
        self._scenarios: list[str] = []
        self._items: list[Ints] = [np.zeros(0, np.int64)]
        self._scores: list[Singles] = [np.zeros(0, np.float32)]

    def append(self, user: str, scenario: str, best: Ints, scores: Singles) -> None:
        self._users.append(user)
        self._scenarios.append(scenario)
        self._items.append(self._candidates.places[scenario][best])
        self._scores.append(scores)

    def to_table(self) -> pa.Table:
        length_L = np.array([len(items) for items in self._items[1:]], np.int64)
        end_R = np.repeat(np.cumsum(length_L), length_L)
        used, item_R = np.unique(np.concatenate(self._items), return_inverse=True)
        rank_R = np.arange(len(item_R)) - end_R + np.repeat(length_L, length_L) + 1
        return pa.Table.from_pydict(
            {
                "user_id": _repeat(self._users, length_L),
                "scenario": _repeat(self._scenarios, length_L),
                "item_id": _dictionary(item_R, take(self._candidates.id_U, used)),
                "rank": pa.array(rank_R, pa.int32()),
                "score": pa.array(np.concatenate(self._scores)),
                "model_version": _repeat([self._version], np.array([len(item_R)])),
            }
        )


def _repeat(texts: Sequence[str], length_L: Ints) -> Column:
    """Each text once in the dictionary: else Parquet does without, in long pages that differ from run to run."""
    encoded = pa.array(texts, pa.string()).dictionary_encode()
    return _dictionary(np.repeat(encoded.indices.to_numpy(), length_L), encoded.dictionary)


def _dictionary(place_R: Ints, texts: Column) -> Column:
    return pa.DictionaryArray.from_arrays(pa.array(place_R, pa.int32()), texts)  # type: ignore[arg-type]


def best_places(score_B: Singles, most: int) -> Ints:
    """Places of the best scores, the best first and equal ones in their order; those below 0 never count."""
    place = np.flatnonzero(score_B >= 0)
    if len(place) > most:
        score = score_B[place]
        least = np.partition(score, -most)[-most]
        above, equal = place[score > least], place[score == least]
        place = np.concatenate([above, equal[: most - len(above)]])
        place.sort()
    return place[np.argsort(-score_B[place], kind="stable")]


@functools.lru_cache(1)
def open_maker(job: Job) -> ListMaker:
    """The maker of lists that this process keeps for one piece after the other."""
    return ListMaker(job)


def _open_prepared(uri: str) -> StageOutput:
    output = storage.open_output(storage.path(uri))
    if output is None:
        raise StorageError(f"{uri}: not there any more; run `llm4msr prepare` again")
    return output
