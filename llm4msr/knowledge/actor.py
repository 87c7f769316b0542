"""One shard of prompts and the frozen LLM: an actor that answers or embeds its rows and writes the shard's file.

Several shards are in an actor at a time, each in a thread of Ray's: while the LLM reads one, the next is tokenised and
the last one written. The LLM has one shard at a time and a thread of its own, and so has the tokenizer, since neither
is made for several; so vectors do not depend on what else is going on.
"""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llm4msr import storage
from llm4msr.arrays import Column, Halves, strings
from llm4msr.errors import EndpointError, StorageError
from llm4msr.knowledge import interests
from llm4msr.knowledge.buckets import OF_USERS
from llm4msr.knowledge.engines import (
    Billed,
    Engine,
    Letters,
    Tokenizer,
    model_revision,
    open_engine,
    open_tokenizer,
)
from llm4msr.knowledge.row_errors import fill, tokenize
from llm4msr.knowledge.shards import Counts, Pass
from llm4msr.knowledge.spending import Spent
from llm4msr.knowledge.work_list import read_prompts
from llm4msr.storage.vectors import to_column

NOT_FINITE = "FloatingPointError: the hidden state is not finite in float16"
"""The error of a row whose vector holds an infinite number, or none."""


class _Rows(NamedTuple):
    """Rows of a shard as they are read, each by its place."""

    tokenizer: Tokenizer
    prompts: list[str]
    answers: list[str]
    """Of the first pass."""
    errors: list[str]
    """Empty for a good row."""
    tokens: list[list[int]]
    same: list[int]
    """The first row that has the same tokens."""
    seconds: float
    """That this took."""


class AskLLM:
    """An actor of the pool: loads the LLM once, then answers or embeds shard after shard."""

    def __init__(self, pass_: Pass):
        from llm4msr.knowledge.meters import Meters

        self.pass_, self.task, self.config = pass_, pass_.task, pass_.config
        self.meters = Meters(pass_.task)
        self._tokenizers: dict[bool, Tokenizer] = {}
        self._reading, self._thinking = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._idle_since: float | None = None
        """When the LLM's thread had no more to do; None before it has done anything."""

    @cached_property
    def engine(self) -> Engine:
        """Opened with the first shard: Ray passes on a failed call's error whole, a failed actor's only as text."""
        return open_engine(self.config.extract, self.task, self.pass_.source == "encoder")

    @cached_property
    def revision(self) -> str:
        """The model's files are hashed after they were loaded, so a change before then is noticed."""
        return model_revision(self.config.extract)

    def _tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer for a shard."""
        own_text = self.pass_.reader(name).own_text
        if own_text not in self._tokenizers:
            self._tokenizers[own_text] = open_tokenizer(self.config.extract, own_text, self.task)
        return self._tokenizers[own_text]

    def _open(self, name: str, tokenizer: Tokenizer) -> Engine:
        """The engine for a shard, if model and tokenizer are those that were planned."""
        engine, planned = self.engine, self.pass_.reader(name)
        if self.revision != planned.revision or tokenizer.frame not in (planned.frame, Letters.frame):
            raise StorageError(
                f"extract.model = '{self.config.extract.model}': on {socket.gethostname()} it is revision "
                f"{self.revision}, planned was {planned.revision}; give every machine the same files, and run "
                "`llm4msr extract` again"
            )
        if self.task == "vectors" and self.pass_.width not in (0, engine.width):
            raise EndpointError(
                f"extract.model = '{self.config.extract.model}': gives vectors of {engine.width} numbers, earlier "
                f"versions have {self.pass_.width}; if another model answers there now, raise extract.http_revision"
            )
        return engine

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`batch` is one row, which names a shard: prompts go from storage to the LLM, past Ray's object store."""
        begun = time.monotonic()
        shard = read_prompts(batch, self.pass_.folder_uri)
        return self.ask(shard, time.monotonic() - begun)

    def ask(self, shard: pa.Table, fetched: float = 0.0) -> pa.Table:
        """Ask about each row and write the shard's file.

        Args:
            shard: id, raw_id, fingerprint, prompt and error of each row, and `file`, the name of the shard's file.
            fetched: seconds that it took to read them.

        Returns:
            One row: the file's name, its `FileRecord`, the `Counts` of its rows and what was `Spent` on it.

        Raises:
            StorageError: the model cannot be loaded, or is not the one that was planned.
            EndpointError: the endpoint fails, or has another model than before.
        """
        name = shard["file"][0].as_py()
        rows = self._reading.submit(self._read, name, shard).result()
        done, spent = self._thinking.submit(self._think, name, rows).result()
        begun = time.monotonic()
        columns: dict[str, Column] = {field: shard[field] for field in ("id", "raw_id", "fingerprint", "prompt")}
        answers = rows.answers
        if isinstance(done, list):
            answers = done
            told = answers if self._structured(name) else []
            spent = spent._replace(with_interests=sum(bool(interests.read(it, self.pass_.scenarios)) for it in told))
        else:
            columns["vector"] = to_column(done)
        spent = spent._replace(tokens=sum(rows.tokenizer.count(rows.tokens[row]) for row in set(rows.same)))
        columns["answer"] = pa.array(answers, pa.string())
        columns["tokens"] = pa.array(list(map(rows.tokenizer.count, rows.tokens)), pa.int64())
        columns["error"] = pa.array(rows.errors, pa.string())
        part = self.pass_.write(name, pa.Table.from_pydict(columns))
        spent = spent._replace(read_seconds=fetched + rows.seconds, write_seconds=time.monotonic() - begun)
        counts = Counts.of(rows.errors)
        outcomes = {"ok": counts.rows - counts.failed, "failed": counts.failed - counts.empty, "skipped": counts.empty}
        self.meters.count(outcomes, spent.tokens, spent.cached, spent.seconds)
        summary = {"file": name} | part.model_dump() | counts._asdict() | spent._asdict()
        return pa.table({key: [value] for key, value in summary.items()})

    def _read(self, name: str, shard: pa.Table) -> _Rows:
        """All that can be done before the LLM."""
        begun = time.monotonic()
        tokenizer, prompts = self._tokenizer(name), strings(shard["prompt"])
        answers, errors = self._first_pass(name, strings(shard["error"]))
        reads_answers = self.config.extract.pooling == "answer" and self.task == "vectors"
        tokens = tokenize(tokenizer, prompts, answers if reads_answers else [""] * len(shard), errors)
        firsts: dict[tuple[int, ...], int] = {}
        same = [firsts.setdefault(tuple(ids), row) for row, ids in enumerate(tokens)]
        return _Rows(tokenizer, prompts, answers, errors, tokens, same, time.monotonic() - begun)

    def _think(self, name: str, rows: _Rows) -> tuple[list[str] | Halves, Spent]:
        """The LLM's answers or vectors, and what those took. It waits for this alone, so nothing else is done here."""
        engine = self._open(name, rows.tokenizer)  # before any row is tried: that it cannot be opened is no row's fault
        begun, cores = time.monotonic(), time.process_time()
        waited = begun - (self._idle_since or begun)
        engine.cached_tokens, engine.billed = 0, Billed()
        if self.task == "answers":
            done: list[str] | Halves = self._generate(rows, self._structured(name))
        else:
            done = self._embed(rows)
        self._idle_since, cpu = time.monotonic(), time.process_time() - cores
        read, written = engine.billed
        spent = Spent(cached=engine.cached_tokens, billed=read, billed_answers=written, cpu_seconds=cpu)
        return done, spent._replace(seconds=self._idle_since - begun, wait_seconds=waited)

    def _structured(self, name: str) -> bool:
        """Whether the answers of a shard are interests per scenario."""
        return self.task == "answers" and name.startswith(OF_USERS) and self.config.extract.answers == "all"

    def _first_pass(self, name: str, errors: list[str]) -> tuple[list[str], list[str]]:
        """Answers of the shard's rows as the first pass wrote them; and its errors, where answers are pooled."""
        file = self.pass_.shard_folder("answers") / name
        if self.task == "answers" or not file.exists():
            return [""] * len(errors), errors
        first = storage.read_table(file, ["answer", "error"])
        pooled = self.config.extract.pooling == "answer"
        return strings(first["answer"]), strings(first["error"]) if pooled else errors

    def _generate(self, shard: _Rows, structured: bool) -> list[str]:
        """The LLM's answer to each good row: interests per scenario where `structured`, else free text."""
        texts = np.full(len(shard.tokens), "", object)
        limit = self.config.extract.answer_tokens

        def answer(rows: list[int]) -> list[str]:
            scenarios = self.pass_.scenarios
            schemas = [interests.json_schema(shard.prompts[row], scenarios) for row in rows] if structured else None
            answers = self.engine.answers([shard.tokens[row] for row in rows], limit, schemas)
            for place, why in self.engine.refused.items():
                shard.errors[rows[place]] = why
            return answers

        fill(texts, shard.errors, answer)
        answers: list[str] = texts.tolist()
        return answers

    def _embed(self, shard: _Rows) -> Halves:
        """The vector of each good row, zeros for the others: float16 [N, D]. Rows of the same tokens are read once."""
        vectors_ND = np.zeros((len(shard.tokens), self.engine.width), np.float16)

        def embed(rows: list[int]) -> Halves:
            each = [shard.same[row] for row in rows]
            distinct = {first: at for at, first in enumerate(dict.fromkeys(each))}
            with np.errstate(over="ignore"):
                halves = self.engine.vectors([shard.tokens[first] for first in distinct]).astype(np.float16)
            finite = np.asarray(np.isfinite(halves).all(axis=1))
            places = [distinct[first] for first in each]
            for row, place in zip(rows, places, strict=True):
                if not finite[place]:
                    shard.errors[row] = self.engine.refused.get(place, NOT_FINITE)
            halves[~finite] = 0
            return halves[places] if len(distinct) < len(rows) else halves

        fill(vectors_ND, shard.errors, embed)
        return vectors_ND
