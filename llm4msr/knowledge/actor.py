"""One shard of prompts and the frozen LLM: an actor that answers or embeds its rows and writes the shard's file."""

import socket
import time
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from llm4msr import storage
from llm4msr.arrays import Array, Column, Halves, strings
from llm4msr.errors import StorageError
from llm4msr.knowledge import interests
from llm4msr.knowledge.buckets import OF_USERS
from llm4msr.knowledge.engines import Engine, PromptTokenizer, models, open_engine, open_tokenizer
from llm4msr.knowledge.shards import Counts, Pass, Spent
from llm4msr.knowledge.work_list import read_prompts
from llm4msr.storage.vectors import to_column


class AskLLM:
    """An actor of the pool: loads the LLM once, then answers or embeds shard after shard."""

    def __init__(self, pass_: Pass):
        from llm4msr.knowledge.meters import Meters

        self.pass_, self.task, self.config = pass_, pass_.task, pass_.config
        self.meters = Meters(pass_.task)
        self._tokenizers: dict[bool, PromptTokenizer] = {}

    @cached_property
    def engine(self) -> Engine:
        """Opened with the first shard: Ray passes on a failed call's error whole, a failed actor's only as text."""
        return open_engine(self.config.extract, self.task, self.pass_.source == "encoder")

    @cached_property
    def revision(self) -> str:
        """The model's files are hashed after they were loaded, so a change before then is noticed."""
        return models.revision(models.resolve(self.config.extract.model))

    def _open(self, name: str) -> tuple[Engine, PromptTokenizer]:
        """The engine and the tokenizer for a shard, if they are those that were planned."""
        engine, planned = self.engine, self.pass_.reader(name)
        if planned.own_text not in self._tokenizers:
            self._tokenizers[planned.own_text] = open_tokenizer(self.config.extract, planned.own_text)
        tokenizer = self._tokenizers[planned.own_text]
        if (self.revision, tokenizer.frame) != (planned.revision, planned.frame):
            raise StorageError(
                f"extract.model = '{self.config.extract.model}': on {socket.gethostname()} it is revision "
                f"{self.revision}, planned was {planned.revision}; give every machine the same files, and run "
                "`llm4msr extract` again"
            )
        return engine, tokenizer

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`batch` is one row, which names a shard: prompts go from storage to the LLM, past Ray's object store."""
        return self.ask(read_prompts(batch, self.pass_.folder_uri))

    def ask(self, shard: pa.Table) -> pa.Table:
        """Ask about each row and write the shard's file.

        Args:
            shard: id, raw_id, fingerprint, prompt and error of each row, and `file`, the name of the shard's file.

        Returns:
            One row: the file's name, its `FileRecord`, the `Counts` of its rows and what was `Spent` on it.

        Raises:
            StorageError: the model cannot be loaded, or is not the one that was planned.
        """
        name = shard["file"][0].as_py()
        engine, tokenizer = self._open(name)  # before any row is tried: that they cannot be opened is no row's fault
        begun, cores, engine.cached_tokens = time.monotonic(), time.process_time(), 0
        prompts = strings(shard["prompt"])
        answers, errors = self._first_pass(name, strings(shard["error"]))
        reads_answers = self.config.extract.pooling == "answer" and self.task == "vectors"
        tokens = _tokenize(tokenizer, prompts, answers if reads_answers else [""] * len(shard), errors)
        columns: dict[str, Column] = {field: shard[field] for field in ("id", "raw_id", "fingerprint", "prompt")}
        with_interests = 0
        if self.task == "answers":
            structured = name.startswith(OF_USERS) and self.config.extract.answers == "all"
            answers = self._generate(prompts, tokens, errors, structured)
            if structured:
                with_interests = sum(bool(interests.read(text, self.pass_.scenarios)) for text in answers)
        else:
            columns["vector"] = to_column(self._embed(tokens, errors))
        cached = engine.cached_tokens
        columns["answer"] = pa.array(answers, pa.string())
        columns["tokens"] = pa.array(list(map(len, tokens)), pa.int64())
        columns["error"] = pa.array(errors, pa.string())
        part = self.pass_.write(name, pa.Table.from_pydict(columns))
        counts, seconds = Counts.of(errors), time.monotonic() - begun
        spent = Spent(sum(map(len, _distinct(tokens))), cached, seconds, time.process_time() - cores, with_interests)
        rows = {"ok": counts.rows - counts.failed, "failed": counts.failed - counts.empty, "skipped": counts.empty}
        self.meters.count(rows, spent.tokens, cached, seconds)
        summary = {"file": name} | part.model_dump() | counts._asdict() | spent._asdict()
        return pa.table({key: [value] for key, value in summary.items()})

    def _first_pass(self, name: str, errors: list[str]) -> tuple[list[str], list[str]]:
        """Answers of the shard's rows as the first pass wrote them; and its errors, where answers are pooled."""
        file = self.pass_.shard_folder("answers") / name
        if self.task == "answers" or not file.exists():
            return [""] * len(errors), errors
        first = storage.read_table(file, ["answer", "error"])
        pooled = self.config.extract.pooling == "answer"
        return strings(first["answer"]), strings(first["error"]) if pooled else errors

    def _generate(self, prompts: list[str], tokens: list[list[int]], errors: list[str], structured: bool) -> list[str]:
        """The LLM's answer to each good row: interests per scenario where `structured`, else free text."""
        texts = np.full(len(tokens), "", object)
        limit = self.config.extract.answer_tokens

        def answer(rows: list[int]) -> list[str]:
            scenarios = self.pass_.scenarios
            schemas = [interests.json_schema(prompts[row], scenarios) for row in rows] if structured else None
            return self.engine.answers([tokens[row] for row in rows], limit, schemas)

        _fill(texts, errors, answer)
        answers: list[str] = texts.tolist()
        return answers

    def _embed(self, tokens: list[list[int]], errors: list[str]) -> Halves:
        """The vector of each good row, zeros for the others: float16 [N, D]. Rows of the same tokens are read once."""
        vectors_ND = np.zeros((len(tokens), self.engine.width), np.float16)

        def embed(rows: list[int]) -> Halves:
            with np.errstate(over="ignore"):
                distinct = _distinct([tokens[row] for row in rows])
                halves = self.engine.vectors([*map(list, distinct)]).astype(np.float16)
            if not np.isfinite(halves).all():
                raise FloatingPointError("the hidden state is not finite in float16")
            return halves[[distinct[tuple(tokens[row])] for row in rows]]

        _fill(vectors_ND, errors, embed)
        return vectors_ND


def _tokenize(tokenizer: PromptTokenizer, prompts: list[str], answers: list[str], errors: list[str]) -> list[list[int]]:
    """Token ids of each good row; a row that cannot be tokenised gets its error."""
    tokens: list[list[int]] = [[] for _ in prompts]
    good = _good_rows(errors)
    try:
        batch = tokenizer.encode_batch([prompts[row] for row in good], [answers[row] for row in good])
        together = dict(zip(good, batch, strict=True))
    except Exception:  # of one row, which shows itself below
        together = {}
    for row in good:
        try:
            ids = together.get(row)
            tokens[row] = tokenizer(prompts[row], answers[row]) if ids is None else tokenizer.check_length(ids)
        except Exception as error:  # whatever one prompt does, the others go on
            errors[row] = _message(error)
    return tokens


def _distinct(tokens: Sequence[list[int]]) -> dict[tuple[int, ...], int]:
    """Each different list of tokens, and which in their order it is."""
    return {ids: at for at, ids in enumerate(dict.fromkeys(map(tuple, tokens)))}


def _good_rows(errors: Sequence[str]) -> list[int]:
    return [row for row, error in enumerate(errors) if not error]


def _fill(out: Array, errors: list[str], ask: Callable[[list[int]], list[str] | Halves]) -> None:
    """Fill every good row; if they fail together, each is tried alone so that only the bad ones fail."""
    good = _good_rows(errors)
    try:
        if good:
            out[good] = ask(good)
    except Exception:
        for row in good:
            try:
                out[row] = ask([row])[0]
            except Exception as error:
                errors[row] = _message(error)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]
