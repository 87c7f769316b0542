"""One version looked into: what it knows of a user, and whether the LLM still says what is stored. No Ray here."""

from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.arrays import Halves, strings, typed_rows
from llm4msr.config import Config
from llm4msr.data.partitions import hash_ids
from llm4msr.errors import ConfigError, StorageError
from llm4msr.knowledge import interests, number_format, sums
from llm4msr.knowledge.engines import open_engine, open_tokenizer
from llm4msr.knowledge.extract import check_same_model
from llm4msr.knowledge.index import read_index
from llm4msr.knowledge.prompts import templates
from llm4msr.knowledge.reader import Reader
from llm4msr.knowledge.rows import good_rows, groups_beside, read_rows, read_texts, read_vectors, row_groups
from llm4msr.knowledge.sources import Source, sources
from llm4msr.storage import StageOutput
from llm4msr.storage.vectors import to_matrix

SAME = 0.999
"""Least cosine of two vectors that count as the same."""


class Neighbour(TypedDict):
    """A user whose vector is near another's, and the cosine of the two."""

    raw_id: str
    cosine: float


class User(TypedDict):
    """What a version knows of a user."""

    raw_id: str
    prompt: str
    answer: str
    tokens: int
    error: str
    interests: dict[str, list[str]]
    """Words by scenario, as the answer has them."""
    nearest: NotRequired[list[Neighbour]]
    """Users with the nearest vectors, where this one has a vector."""
    compared: NotRequired[int]
    """Among how many users these are the nearest: those with a vector in the same partition."""


def show(output: StageOutput, raw_id: str, neighbours: int = 5) -> User:
    """What a version knows of a user, and who is nearest in the user's partition, which is all that is read.

    Nearest by the cosine of vectors less the mean of all, since hidden states have a large part in common.

    Raises:
        ConfigError: no such user.
        StorageError: a shard is missing or damaged.
    """
    table = _read_group_with(output, raw_id)
    row = strings(table["raw_id"]).index(raw_id)
    scenarios = [scenario["raw_id"] for scenario in read_texts(output)]
    columns = ["raw_id", "prompt", "answer", "tokens", "error"]
    (user,) = typed_rows(table.slice(row, 1).select(columns), User)
    user["interests"] = interests.read(user["answer"], scenarios)
    if not user["error"]:
        user["nearest"], user["compared"] = _nearest(output, raw_id, to_matrix(table["vector"])[row], neighbours)
    return user


def _read_group_with(output: StageOutput, raw_id: str) -> pa.Table:
    """The rows of the row group that holds a user."""
    hash_1 = hash_ids([raw_id])
    columns = ["id", "raw_id", "prompt", "answer", "tokens", "error", "vector"]
    for group in groups_beside(output, raw_id):
        if group.number is not None:  # of an index file
            if not (group.bucket and group.bucket.holds(hash_1).all()):
                continue
            if hash_1[0] not in read_index(group, ["hash"])["hash"].to_numpy():
                continue
        table = read_rows(group, columns)
        if raw_id in strings(table["raw_id"]):
            return table
    raise ConfigError(f"{output.folder}: knows no user '{raw_id}'; ids are those of the source's files")


def _nearest(output: StageOutput, raw_id: str, vector_Z: Halves, count: int) -> tuple[list[Neighbour], int]:
    """The nearest users, and among how many they are that."""
    mean_Z, compared = sums.read(output).mean, 0
    best = pa.table({"raw_id": pa.array([], pa.string()), "cosine": pa.array([], pa.float64())})
    centred_Z = vector_Z.astype(np.float64) - mean_Z
    for group in groups_beside(output, raw_id):
        table = read_vectors(group)
        table = table.filter(pa.array(good_rows(table)))
        others_NZ = to_matrix(table["vector"]).astype(np.float64) - mean_Z
        lengths_N = np.linalg.norm(others_NZ, axis=1) * np.linalg.norm(centred_Z)
        cosine_N = others_NZ @ centred_Z / np.maximum(lengths_N, 1e-12)
        others = table.select(["raw_id"]).append_column("cosine", pa.array(cosine_N))
        others = others.filter(pc.field("raw_id") != raw_id)
        compared += len(others)
        best = pa.concat_tables([best, others]).sort_by([("cosine", "descending")]).slice(0, count)
    return [{"raw_id": row["raw_id"], "cosine": round(row["cosine"], 4)} for row in best.to_pylist()], compared


class VerifyReport(TypedDict):
    """A version, its rows, how many of them were compared, and the least cosine of a stored and a new vector."""

    uri: str
    rows: int
    compared: int
    least_cosine: float


def verify(config: Config, output: StageOutput, sample: int = 16) -> VerifyReport:
    """Ask the LLM again about some of the rows that it read, and compare fingerprints and vectors.

    Raises:
        ConfigError: no model read users or items.
        StorageError: the model is another one now, or a row is not what its prompt gives.
    """
    check_same_model(config, output)
    config = number_format.as_made(config, output)
    source, kind = _asked(config)
    rows = _sample(output, kind, sample, config.seed)
    raw_ids, prompts = strings(rows["raw_id"]), strings(rows["prompt"])
    own_text = source.reads_own_text(kind)
    tokenizer = open_tokenizer(source.extract, own_text)
    as_read = config.model_copy(update={"extract": source.extract})
    reads = Reader.of(as_read, source.revision(), tokenizer.frame).reads
    for raw_id, prompt, fingerprint in zip(raw_ids, prompts, strings(rows["fingerprint"]), strict=True):
        if templates.fingerprint(prompt, reads) != fingerprint:
            raise StorageError(f"{output.folder}: '{raw_id}' has a fingerprint that is not its prompt's")
    engine = open_engine(source.extract, "vectors", source.name == "encoder")
    answers = strings(rows["answer"]) if config.extract.pooling == "answer" else [""] * len(rows)
    again_NZ = engine.vectors([tokenizer(*texts) for texts in zip(prompts, answers, strict=True)])
    stored_NZ = to_matrix(rows["vector"]).astype(np.float64)
    lengths_N = np.linalg.norm(stored_NZ, axis=1) * np.linalg.norm(again_NZ, axis=1)
    cosine_N = (stored_NZ * again_NZ).sum(1) / np.maximum(lengths_N, 1e-12)
    if len(rows) and not cosine_N.min() >= SAME:  # a cosine that is no number is not the same either
        raise StorageError(
            f"{output.folder}: the vector of '{raw_ids[int(cosine_N.argmin())]}' has cosine {cosine_N.min():.4f} "
            f"with what the LLM says now; delete {output.folder} and extract again"
        )
    least = round(float(cosine_N.min()), 6) if len(rows) else 1.0
    return {"uri": str(output.folder), "rows": output.manifest.rows, "compared": len(rows), "least_cosine": least}


def _asked(config: Config) -> tuple[Source, str]:
    """The first source that a model is, and which rows of it are compared.

    Raises:
        ConfigError: no model read any users or items.
    """
    for source in sources(config.extract):
        for kind in source.kinds:
            if source.name != "words" and kind != "scenarios":
                return source.pin(), kind
    raise ConfigError(
        f"extract.item_vectors = '{config.extract.item_vectors}': no model read the items, so none is asked again"
    )


def _sample(output: StageOutput, kind: str, count: int, seed: int) -> pa.Table:
    """Good rows from a few row groups, drawn with the seed."""
    groups = row_groups(output, kind)
    rng = np.random.default_rng(seed)
    columns = ["raw_id", "fingerprint", "prompt", "answer", "error", "vector"]
    tables = [read_rows(groups[i], columns) for i in rng.permutation(len(groups))[:4]]
    table = pa.concat_tables([table.filter(pa.array(good_rows(table))) for table in tables])
    return table.take(rng.permutation(len(table))[:count]).combine_chunks()
