"""The stage that publishes the best items for each user and scenario, as rows of Parquet.

<score.output>/<fingerprint>/candidates.parquet         the items that were scored in each scenario
<score.output>/<fingerprint>/lists/p=00017-00003.parquet the lists of some users of a partition

A file of lists is the unit of work, of memory and of resume: what an interrupted run has written is not scored again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from threadpoolctl import threadpool_limits
from upath import UPath

from llm4msr import ray_session, storage
from llm4msr.arrays import Column, strings
from llm4msr.bundle import files
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.errors import ConfigError
from llm4msr.knowledge.forget import ids_to_forget
from llm4msr.progress import say, track
from llm4msr.score import candidates
from llm4msr.score.candidates import Candidates
from llm4msr.score.lists import Job, Piece, open_maker
from llm4msr.storage import FileRecord, StageOutput, StageResult
from llm4msr.storage.local_copy import open_local

VERSION = 1
PIECE_USERS, PIECE_ROWS = 1 << 11, 1 << 21
"""Users of a piece, or fewer so that their lists are about so many rows at most: some 50 MB."""


@ray_session.unwrap_errors
def score(config: Config, prepared: StageOutput, bundle: StageOutput, codes: str) -> StageOutput:
    """Publish the lists of all users of the prepared data, but for those to forget.

    Args:
        config: says what lists; see `ScoreConfig`.
        prepared: whose users they are, and what these have taken.
        bundle: the model.
        codes: URI of users' newer codes for it; empty for its own.

    Raises:
        ConfigError: the model does not know a scenario of `score.scenarios`, or its backbone is not allowed.
        DataError: there are no candidates.
        StorageError: a file is damaged, or the lists cannot be written.
    """
    forget = ids_to_forget(config)
    inputs = {"prepare": prepared.manifest.fingerprint, "export": bundle.manifest.fingerprint}
    inputs |= {"refresh": codes.rpartition("/")[2]} if codes else {}
    made_of = [VERSION, config.score.identity(), candidates.digest(config), inputs, strings(forget)]
    root = storage.path(config.score.output) if config.score.output else storage.path(config.root) / "score"

    def build(folder: UPath) -> StageResult:
        found, unknown = _find_candidates(config, prepared, bundle)
        record = storage.write_table(folder / candidates.FILE, found.to_table())
        job = _job(config, prepared, bundle, codes, folder)
        lists = _write_lists(job, forget, pieces(prepared, config.score.top_k, len(found.places)), folder)
        counts = {name: len(places) for name, places in found.places.items()}
        info = {"top_k": config.score.top_k, "candidates": counts, "unknown_candidates": unknown}
        rows = sum(one.rows for one in lists.values())
        return StageResult(files={candidates.FILE: record, **lists}, rows=rows, info=info)

    folder = root / storage.digest_json(made_of)[:12]
    settings = config.model_dump(include={"score"})
    return storage.publish(folder, "score", config.seed, settings, inputs, build, resumable=True)


def _find_candidates(config: Config, prepared: StageOutput, bundle: StageOutput) -> tuple[Candidates, int]:
    """Those that the bundle knows, and how many it does not: all of these would have one score."""
    local = open_local(str(bundle.folder))  # held as long as the items are mapped
    description = files.read_description(local.folder)
    found = candidates.find(config, prepared, description.scenarios[1:])
    is_known_U = files.read_items(local.folder).find_all(strings(found.id_U)) >= 0
    if unknown := int((~is_known_U).sum()):
        say(f"  score: {unknown} of {len(is_known_U)} candidates are unknown to the model and are left out")
    places = {name: place_B[is_known_U[place_B]] for name, place_B in found.places.items()}
    if not any(len(place_B) for place_B in places.values()):
        raise ConfigError(f"{bundle.folder}: its model knows none of the candidates; check score.candidates")
    return Candidates(found.id_U, {name: place_B for name, place_B in places.items() if len(place_B)}), unknown


def _job(config: Config, prepared: StageOutput, bundle: StageOutput, codes: str, folder: UPath) -> Job:
    wanted = config.score
    return Job(
        prepared=str(prepared.folder),
        bundle=str(bundle.folder),
        codes=codes,
        allow_backbones=(*config.serve.allow_backbones, config.model.backbone),
        output=str(folder),
        top_k=wanted.top_k,
        by_history=wanted.scenarios == "history",
        leave_out=wanted.leave_out,
    )


def pieces(prepared: StageOutput, top_k: int, scenarios: int) -> list[Piece]:
    """All users of the prepared data, piece by piece."""
    users = max(1, min(PIECE_USERS, PIECE_ROWS // (top_k * scenarios)))
    plan = []
    for partition in range(partitions.count(prepared)):
        rows = prepared.manifest.files[partitions.file_name("users", partition)].rows
        starts = range(0, rows, users)
        plan += [Piece(partition, at, start, min(start + users, rows)) for at, start in enumerate(starts)]
    return plan


def _write_lists(job: Job, forget: Column, plan: Sequence[Piece], folder: UPath) -> dict[str, FileRecord]:
    """Write the lists of all pieces but those that are there; the records of all files by name."""
    there = storage.files_below(folder)
    todo = [piece for piece in plan if piece.file not in there]
    done = [piece for piece in plan if piece.file in there]
    records = dict[str, FileRecord]()
    for one in _each(_record, done, folder=job.output):
        records[one["file"]] = FileRecord.model_validate(one)
    total, before = (sum(piece.end - piece.start for piece in some) for some in (plan, done))
    with track("score users", total, before) as progress:
        for one in _each(_score, todo, job=job, forget=forget):
            records[one["file"]] = FileRecord.model_validate(one)
            progress.advance(one["users"])
    return {piece.file: records[piece.file] for piece in plan}


def _each(work: Callable[..., dict[str, Any]], some: Sequence[Piece], **shared: Any) -> Iterator[dict[str, Any]]:
    """What the work returns of each piece, as it comes."""
    return ray_session.run_each(_task, [piece._asdict() for piece in some], work=work, shared=shared)


def _task(batch: pa.Table, work: Callable[..., dict[str, Any]], shared: dict[str, Any]) -> pa.Table:
    (row,) = batch.to_pylist()
    return pa.Table.from_pylist([work(Piece(**row), **shared)])


def _score(piece: Piece, job: Job, forget: Column) -> dict[str, Any]:
    with threadpool_limits(1):  # as many processes as cores do more
        table = open_maker(job).make(piece, forget)
    record = storage.write_table(storage.path(job.output) / piece.file, table)
    return {"file": piece.file, "users": piece.end - piece.start, **record.model_dump()}


def _record(piece: Piece, folder: str) -> dict[str, Any]:
    return {"file": piece.file, **storage.record_file(storage.path(folder) / piece.file).model_dump()}
