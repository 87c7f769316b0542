"""Raw rows in files by partition, kept in segments: a run shuffles only what no earlier run has shuffled.

A segment holds the rows of some pieces of the source, whose hashes its manifest names. So a day that is added becomes a
segment of its own, and a run that was killed goes on with the segment that it was at. Large data is shuffled in several
segments, which keeps each shuffle small: up to some 270 million new rows all are of one size, beyond that they grow.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import shuffle, sources
from llm4msr.data.raw_rows import Segment
from llm4msr.data.reading.file_rows import FileRows
from llm4msr.data.reading.raw_data import RawTable
from llm4msr.storage import StageOutput, StageResult, lock

VERSION = 2
SEGMENT_ROWS = 1 << 23
"""Rows that are shuffled at once, about, unless a run would make too many segments of them."""
MOST_SEGMENTS = 64
"""Of a table, of which fewer are taken over; a run makes half as many at most. Each holds a file of each partition."""


class Piece(NamedTuple):
    """A piece of the source: its hash, and the place of its file among the source's files."""

    digest: str
    place: int


class _Job(NamedTuple):
    raw: RawTable
    pieces: list[Piece]


def root(config: Config) -> UPath:
    """Where all segments lie, of whatever source."""
    return storage.path(config.root) / "shuffle"


def shuffle_rows(table: str, raw: RawTable, config: Config, total: int) -> list[Segment]:
    """The segments that hold a table's rows in `total` partitions: found, or written.

    Args:
        table: `interactions` or `users`.
        raw: the table.
        config: the run's.
        total: number of partitions.

    Raises:
        DataError: the source is wrong.
    """
    pieces, reading, counted = [Piece(sources.fingerprint(config.source), 0)], "", False
    if isinstance(raw, FileRows):
        places = (piece.place for piece in raw.pieces)
        pieces = [Piece(*pair) for pair in zip(raw.digests(), places, strict=True)]
        reading, counted = raw.reading, raw.orders_are_numbers
    family = storage.digest_json([VERSION, table, total, reading])[:8]
    if isinstance(raw, FileRows) and table == "interactions":
        held, missing = _find(_finished(config, family), pieces)
        jobs = [_Job(raw.only(group), [pieces[at] for at in group]) for group in _group(missing, raw)]
    else:  # ids that stand twice are only seen where all rows are brought together
        held, jobs = [], [_Job(raw, pieces)]
    place_of = dict(pieces)
    written = [_write(config, family, table, job, total, (at, len(jobs))) for at, job in enumerate(jobs)]
    return [
        Segment(str(output.folder), output.manifest.created, _moved(output, place_of), counted)
        for output in held + written
    ]


def _finished(config: Config, family: str) -> Iterator[StageOutput]:
    if root(config).exists():
        for folder in sorted(root(config).iterdir(), key=str):
            if folder.name.startswith(f"{family}-") and (output := storage.open_output(folder)):
                yield output


def _pieces_of(output: StageOutput) -> list[Piece]:
    return [Piece(*piece) for piece in output.manifest.info["pieces"]]


def _find(finished: Iterable[StageOutput], pieces: Sequence[Piece]) -> tuple[list[StageOutput], list[int]]:
    """Segments that hold nothing but pieces of today, none twice, and the places of pieces that none holds.

    If there are too many of them, the smaller ones are left out, whose pieces then make larger segments.
    """
    missing, found = {piece.digest: at for at, piece in enumerate(pieces)}, []
    for output in sorted(finished, key=lambda one: (-one.manifest.rows, one.folder.name)):
        digests = {piece.digest for piece in _pieces_of(output)}
        if digests <= missing.keys():
            found.append((output, {digest: missing.pop(digest) for digest in digests}))
    if len(found) >= MOST_SEGMENTS:
        for _, small in found[MOST_SEGMENTS // 2 :]:
            missing |= small
        del found[MOST_SEGMENTS // 2 :]
    return [output for output, _ in found], sorted(missing.values())


def _group(missing: list[int], raw: FileRows) -> Iterator[list[int]]:
    """Neighbouring pieces with about as many rows as a segment should have."""
    if not missing:
        return
    rows_N = np.array([raw.rows * raw.pieces[at].size / max(raw.size, 1) for at in missing])
    count = int(min(max(np.ceil(rows_N.sum() / SEGMENT_ROWS), 1), MOST_SEGMENTS // 2, len(missing)))
    middle_N = np.cumsum(rows_N) - rows_N / 2
    ends = np.searchsorted(middle_N, np.linspace(0, rows_N.sum(), count + 1)[1:-1])
    for start, end in pairwise([0, *ends.tolist(), len(missing)]):
        if end > start:
            yield missing[start:end]


def _write(config: Config, family: str, table: str, job: _Job, total: int, step: tuple[int, int]) -> StageOutput:
    def build(folder: UPath) -> StageResult:
        label = table if step[1] == 1 else f"{table}, {step[0] + 1} of {step[1]}"
        files = shuffle.write_partitions(job.raw, table, label, total, folder)
        return StageResult(
            files=files, rows=sum(file.rows for file in files.values()), info={"table": table, "pieces": job.pieces}
        )

    folder = root(config) / f"{family}-{storage.digest_json(sorted(piece.digest for piece in job.pieces))[:12]}"
    section = config.model_dump(include={"source"})
    return storage.publish(folder, "shuffle", 0, section, {"source": sources.fingerprint(config.source)}, build)


def _moved(output: StageOutput, place_of: dict[str, int]) -> dict[int, int]:
    return {place: place_of[digest] for digest, place in _pieces_of(output) if place != place_of[digest]}


def name(segment: Segment) -> str:
    """Name of its folder."""
    return storage.path(segment.uri).name


def prune(config: Config, used: Collection[str], dry_run: bool) -> list[str]:
    """Delete all segments but those with the names that are in use, and those at which a run is at work.

    Returns:
        The names of the others.
    """
    if not root(config).exists():
        return []
    unused = [
        folder
        for folder in sorted(root(config).iterdir(), key=str)
        if folder.name not in used and not lock.is_held(folder)
    ]
    for folder in [] if dry_run else unused:
        storage.remove(folder)
    return [folder.name for folder in unused]
