"""One shard of prompts and the frozen LLM: an actor that answers or embeds its rows and writes the shard's file."""

import socket
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import schema, storage
from llm4msr.arrays import Array, Halves
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge import interests, work_list
from llm4msr.knowledge.engines import Engine, PromptTokenizer, Task, models, open_engine, open_tokenizer
from llm4msr.knowledge.index import NOTHING_LIKED
from llm4msr.knowledge.reader import Reader
from llm4msr.storage import FileRecord
from llm4msr.storage.vectors import to_column

PLACE: dict[Task, str] = {"answers": "work/answers", "vectors": "vectors"}
"""Where the shards of a pass lie within a version; answers are taken over by the second pass."""


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

    def __init__(self, config: Config, task: Task, folder: str, reader: Reader, scenarios: list[str]):
        self.config, self.task, self.folder, self.reader = config, task, storage.path(folder), reader
        self.scenarios = scenarios
        from llm4msr.knowledge.meters import Meters

        self.meters = Meters(task)

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """Opened with the first shard: Ray tells a failed call's error whole, a failed actor's only as text."""
        return open_tokenizer(self.config.extract)

    @cached_property
    def engine(self) -> Engine:
        """Likewise. The model's files are read after they were loaded: what changed before then is noticed."""
        engine = open_engine(self.config.extract, self.task)
        self._refuse_another_model()
        return engine

    def _refuse_another_model(self) -> None:
        model = self.config.extract.model
        here, planned = models.revision(models.resolve(model)), self.reader.revision
        if (here, self.tokenizer.frame) != (planned, self.reader.frame):
            raise StorageError(
                f"extract.model = '{model}': on {socket.gethostname()} it is revision {here}, planned was {planned}; "
                "give every machine the same files, and run `llm4msr extract` again"
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`batch` is one row, which names a shard: prompts go from storage to the LLM, past Ray's object store."""
        return self.ask(work_list.prompts_of(batch, str(self.folder)))

    def ask(self, shard: pa.Table) -> pa.Table:
        """Ask for each row, write the shard's file, and give back its name, rows and failed rows."""
        name = shard["file"][0].as_py()
        engine = self.engine  # opened here: an engine that cannot be opened is no matter of rows
        begun, cores, engine.cached_tokens = time.monotonic(), time.process_time(), 0
        answers, errors = self._answers(name, shard["error"].to_pylist())
        after = self.config.extract.pooling == "answer" and self.task == "vectors"
        tokens = self._tokens(shard["prompt"].to_pylist(), answers if after else [""] * len(shard), errors)
        columns = {field: shard[field] for field in ("id", "raw_id", "fingerprint", "prompt")}
        told = 0
        if self.task == "answers":
            held = name.startswith("users") and self.config.extract.answers == "all"
            answers = self._written(shard["prompt"].to_pylist(), tokens, errors, held)
            told = sum(bool(interests.read(text, self.scenarios)) for text in answers) if held else 0
        else:
            halves = np.zeros((len(shard), engine.width), np.float16)
            _fill(halves, errors, lambda rows: self._halves([tokens[row] for row in rows]))
            columns["vector"] = to_column(halves)
        cached = engine.cached_tokens
        columns["answer"] = pa.array(answers, pa.string())
        columns["tokens"] = pa.array(list(map(len, tokens)), pa.int64())
        columns["error"] = pa.array(errors, pa.string())
        written = self._write(name, pa.table(columns))
        counts = Counts.of(errors)
        rows = {"ok": counts.rows - counts.failed, "failed": counts.failed - counts.empty, "skipped": counts.empty}
        read, seconds = sum(map(len, tokens)), time.monotonic() - begun
        self.meters.count(rows, read, cached, seconds)
        spent = {"tokens": read, "cached": cached, "seconds": seconds, "with_interests": told}
        spent["cpu_seconds"] = time.process_time() - cores
        summary = {"file": name} | written.model_dump() | counts._asdict() | spent
        return pa.table({key: [value] for key, value in summary.items()})

    def _write(self, name: str, table: pa.Table) -> FileRecord:
        if self.task == "vectors":
            expected = schema.knowledge(self.engine.width)
            table = schema.check(table.select(expected.names), expected, "shard")
        about = {"reads": self.reader.reads, "writes": self.reader.writes[name.partition("-")[0]]}
        return storage.write_table(self.folder / PLACE[self.task] / name, table.replace_schema_metadata(about))

    def _answers(self, name: str, errors: list[str]) -> tuple[list[str], list[str]]:
        """Answer of each row as the first pass wrote it for this shard; and its error, where answers are pooled."""
        file = self.folder / PLACE["answers"] / name
        if self.task == "answers" or not file.exists():
            return [""] * len(errors), errors
        first = storage.read_table(file, ["answer", "error"])
        needed = self.config.extract.pooling == "answer"
        return first["answer"].to_pylist(), first["error"].to_pylist() if needed else errors

    def _written(self, prompts: list[str], tokens: list[list[int]], errors: list[str], held: bool) -> list[str]:
        """The LLM's answer to each good row, held to interests per scenario or free."""
        texts = np.full(len(tokens), "", object)
        limit = self.config.extract.answer_tokens

        def ask(rows: list[int]) -> list[str]:
            schemas = [interests.json_schema(prompts[row], self.scenarios) for row in rows] if held else None
            return self.engine.answers([tokens[row] for row in rows], limit, schemas)

        _fill(texts, errors, ask)
        answers: list[str] = texts.tolist()
        return answers

    def _tokens(self, prompts: list[str], answers: list[str], errors: list[str]) -> list[list[int]]:
        """Token ids of each good row; a row that cannot be read gets its error."""
        tokens: list[list[int]] = [[] for _ in prompts]
        good = [row for row, error in enumerate(errors) if not error]
        some = [prompts[row] for row in good], [answers[row] for row in good]
        try:
            together = dict(zip(good, self.tokenizer.many(*some), strict=True))
        except Exception:  # of one of them, which is found below
            together = {}
        for row in good:
            try:
                ids = together.get(row)
                tokens[row] = self.tokenizer(prompts[row], answers[row]) if ids is None else self.tokenizer.checked(ids)
            except Exception as error:  # whatever one prompt does, the others go on
                errors[row] = _text(error)
        return tokens

    def _halves(self, tokens: list[list[int]]) -> Halves:
        with np.errstate(over="ignore"):
            halves = self.engine.vectors(tokens).astype(np.float16)
        if not np.isfinite(halves).all():
            raise FloatingPointError("the hidden state is not finite in float16")
        return halves


def _fill(out: Array, errors: list[str], ask: Callable[[list[int]], Any]) -> None:
    """Fill every good row; if they fail together, each is tried alone so that only the bad ones fail."""
    good = [row for row, error in enumerate(errors) if not error]
    try:
        if good:
            out[good] = ask(good)
    except Exception:
        for row in good:
            try:
                out[row] = ask([row])[0]
            except Exception as error:
                errors[row] = _text(error)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
