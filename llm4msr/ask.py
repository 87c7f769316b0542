"""One shard of prompts and the frozen LLM: an actor that answers or embeds its rows and writes the shard's file."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm4msr import schema, storage
from llm4msr.config import Config
from llm4msr.engines import Engine, Task, open_engine, open_tokenizer

NOTHING_LIKED = "nothing liked before the cut"
"""The error of a row without a prompt. It is counted, but no retry can mend it, so it is no reason to stop."""


class Counts(NamedTuple):
    """Rows of a shard, how many of them failed, and how many of those have nothing to ask about."""

    rows: int
    failed: int
    empty: int

    @classmethod
    def of(cls, errors: list[str]) -> "Counts":
        """From the rows' error column."""
        return cls(len(errors), sum(map(bool, errors)), errors.count(NOTHING_LIKED))


class AskLLM:
    """An actor of the pool: loads the LLM once, then answers or embeds shard after shard."""

    def __init__(self, config: Config, task: Task, folder: str, reads: str):
        self.config, self.task, self.folder, self.reads = config, task, storage.path(folder), reads
        self.tokenizer = open_tokenizer(config.extract)

    @cached_property
    def engine(self) -> Engine:
        """Opened with the first shard: Ray tells a failed call's error whole, a failed actor's only as text."""
        return open_engine(self.config.extract, self.task)

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Ask for each row, write the shard's file, and give back its name, rows and failed rows."""
        name = shard["file"][0].as_py()
        rows = shard.drop_columns("file").to_pylist()
        engine = self.engine  # opened here: an engine that cannot be opened is no matter of rows
        self._tokenize(rows, self._answers(name))
        if self.task == "answers":
            _per_row(rows, "answer", lambda tokens: engine.answers(tokens, self.config.extract.answer_tokens))
        else:
            _per_row(rows, "vector", self._halves)
        table = self._table(rows)
        storage.write_table(self.folder / self.task / name, table.replace_schema_metadata({"reader": self.reads}))
        counts = Counts.of([row["error"] for row in rows])
        return pa.table({"file": [name]} | {key: [value] for key, value in counts._asdict().items()})

    def _answers(self, name: str) -> dict[int, dict[str, str]]:
        """Answer and error of each row as the first pass wrote them for this shard."""
        file = self.folder / "answers" / name
        if self.task == "answers" or not file.exists():
            return {}
        return {row["id"]: row for row in storage.read_table(file, ["id", "answer", "error"]).to_pylist()}

    def _tokenize(self, rows: list[dict[str, Any]], answers: dict[int, dict[str, str]]) -> None:
        after = self.config.extract.pooling == "answer" and self.task == "vectors"
        for row in rows:
            answered = answers.get(row["id"], {"answer": "", "error": ""})
            row["answer"] = answered["answer"]
            row["error"] = row["error"] or (answered["error"] if after else "")
            row["token_ids"] = []
            if not row["error"]:
                try:
                    row["token_ids"] = self.tokenizer(row["prompt"], row["answer"] if after else "")
                except Exception as error:  # whatever one prompt does, the others go on
                    row["error"] = _text(error)

    def _halves(self, tokens: list[list[int]]) -> list[npt.NDArray[np.float16]]:
        with np.errstate(over="ignore"):
            halves = self.engine.vectors(tokens).astype(np.float16)
        if not np.isfinite(halves).all():
            raise FloatingPointError("the hidden state is not finite in float16")
        return list(halves)

    def _table(self, rows: list[dict[str, Any]]) -> pa.Table:
        """In the store's layout; in the first pass without vectors."""
        width = self.engine.width if self.task == "vectors" else 0
        zero = np.zeros(width, np.float16)
        flat = np.concatenate([row.get("vector", zero) for row in rows]) if width else zero
        fields = [f for f in schema.knowledge(width) if f.name not in ("vector", "tokens")]
        columns = {f.name: pa.array([row[f.name] for row in rows], f.type) for f in fields}
        columns["tokens"] = pa.array([len(row["token_ids"]) for row in rows], pa.int64())
        if width:
            columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), width)
            return schema.check(
                pa.table(columns).select(schema.knowledge(width).names), schema.knowledge(width), "shard"
            )
        return pa.table(columns)


def _per_row(rows: list[dict[str, Any]], key: str, ask: Callable[[list[list[int]]], Sequence[Any]]) -> None:
    """Fill `key` of every good row; if the batch fails, each row is tried alone so that only the bad ones fail."""
    good = [row for row in rows if not row["error"]]
    try:
        for row, value in zip(good, ask([row["token_ids"] for row in good]) if good else [], strict=True):
            row[key] = value
    except Exception:
        for row in good:
            try:
                (row[key],) = ask([row["token_ids"]])
            except Exception as error:
                row["error"] = _text(error)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
