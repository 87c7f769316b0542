"""The sources of a version's vectors: who reads which kinds of rows, and as what each is known.

Scenarios are read by the LLM, or by the first source where no LLM is among them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa

from llm4msr.config import Config, ExtractConfig
from llm4msr.data.catalogue import item_fields
from llm4msr.knowledge import snapshots, words
from llm4msr.knowledge.engines import model_revision, models, open_tokenizer, soundness
from llm4msr.knowledge.prompts.own_text import item_texts
from llm4msr.knowledge.prompts.render import trained_items
from llm4msr.knowledge.reader import Reader, SourceName
from llm4msr.progress import warn
from llm4msr.storage import StageOutput
from llm4msr.text import is_loopback

ITEM_KINDS: dict[str, str] = {
    "llm": "items",
    "shuffled": "items",
    "encoder": "items_by_encoder",
    "words": "items_by_words",
}
"""The kind of rows that holds the vectors of items by where they come from (`extract.item_vectors`)."""
PADDING_POSITIONS = 2
"""Some encoders count the places of a text from here on."""
TextsOfItems = Callable[[], Sequence[str]]
"""Gives what data says of each item in training rows."""


class Source(NamedTuple):
    """A source as it reads."""

    name: SourceName
    extract: ExtractConfig
    kinds: tuple[str, ...]
    """Of the rows that it reads."""

    @property
    def model(self) -> str:
        """Its name."""
        return "words" if self.name == "words" else self.extract.model

    def revision(self) -> str:
        """Identity of what it reads with.

        Raises:
            StorageError: the model cannot be found or read.
        """
        return words.revision() if self.name == "words" else model_revision(self.extract)

    @property
    def is_local(self) -> bool:
        """Whether our own machines run a model: neither are words counted, nor is an endpoint asked."""
        return self.name != "words" and self.extract.engine != "http"

    def check(self) -> None:
        """Look at the model's files before any engine starts; warn where an endpoint's key goes out unencrypted.

        Raises:
            ConfigError: prompts may be longer than the model can read.
            StorageError: a file is missing or damaged.
        """
        if self.is_local:
            model = models.resolve(self.extract.model)
            soundness.check_model(model)
            soundness.check_fit(self.extract, model)
        elif self.name != "words" and self.extract.http_key_variable:
            warn_of_open_key(self.extract)

    def pin(self) -> "Source":
        """The same for all machines: a hub's model is named with its commit; an encoder gets texts that it can read."""
        if not self.is_local:
            return self
        folder = models.resolve(self.extract.model)
        exact: dict[str, object] = {"model": models.pin(self.extract.model, folder)}
        if self.name == "encoder" and (most := soundness.positions(folder)):
            exact["max_prompt_tokens"] = min(self.extract.max_prompt_tokens, most - PADDING_POSITIONS)
        return self._replace(extract=self.extract.model_copy(update=exact))

    def in_format(self, dtype: str) -> "Source":
        """The same in this number format; an endpoint has its own."""
        return self if not self.is_local else self._replace(extract=self.extract.model_copy(update={"dtype": dtype}))

    def reads_own_text(self, kind: str) -> bool:
        """Whether it reads what data says of a row and nothing else, which a mean over all tokens allows."""
        return self.name != "llm" or (kind == "items" and self.extract.pooling == "mean")

    def readers(self, config: Config, revision: str, texts: TextsOfItems) -> dict[str, Reader]:
        """Who reads each of its kinds.

        Raises:
            StorageError: the model has no tokenizer that can be used.
        """
        if self.name == "words":
            reads = f"{revision} {words.identity(texts(), config.extract.width_before)}"
            writes = dict.fromkeys(self.kinds, "")
            one = Reader(revision=revision, frame="", reads=reads, writes=writes, source="words", own_text=True)
            return dict.fromkeys(self.kinds, one)
        as_read = config.model_copy(update={"extract": self.extract})
        owns = {kind: self.reads_own_text(kind) for kind in self.kinds}
        frames = {own: open_tokenizer(self.extract, own).frame for own in {*owns.values()}}
        return {kind: Reader.of(as_read, revision, frames[own], self.name, own) for kind, own in owns.items()}


def sources(e: ExtractConfig) -> list[Source]:
    """The sources that a config names, the LLM first where it is among them."""
    local_engine = e.engine
    if e.engine == "http":  # whose number format nobody knows; an encoder is read here all the same
        e, local_engine = e.model_copy(update={"dtype": ""}), "auto"
    if e.reads == "users":
        return [Source("llm", e, ("users", *[snapshots.KIND] * (e.snapshots > 1), "scenarios"))]
    kinds = {ITEM_KINDS[name]: name for name in e.sources if name in ITEM_KINDS}
    found = []
    if "items" in kinds or not kinds:  # random numbers alone: the LLM reads the scenarios
        found.append(Source("llm", e, tuple(kind for kind in kinds if kind == "items")))
    if "encoder" in kinds.values():
        change = {"model": e.encoder, "pooling": "mean", "answers": "none", "quantization": "", "tensor_parallel": 1}
        change |= {"layer": 0, "engine": local_engine}
        found.append(Source("encoder", e.model_copy(update=change), (ITEM_KINDS["encoder"],)))
    if "words" in kinds.values():
        found.append(Source("words", e, (ITEM_KINDS["words"],)))
    return [found[0]._replace(kinds=(*found[0].kinds, "scenarios")), *found[1:]]


def warn_of_open_key(e: ExtractConfig) -> None:
    """Say so if the endpoint's key crosses a network that may be read on the way."""
    for url in dict.fromkeys(filter(None, (e.http_url, e.http_chat_url))):
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            warn(f"{url}: the key of extract.http_key_variable goes there unencrypted; use https, or a loopback tunnel")


def items_by_kind(readers: Iterable[str], items: int) -> dict[str, int]:
    """How many items each kind of rows has that is read: the first `items`, whoever reads them."""
    return {kind: items for kind in readers if kind in ITEM_KINDS.values()}


def texts_of_items(data: StageOutput) -> TextsOfItems:
    """What the prepared data says of items in training rows."""
    return lambda: trained_texts(data.table("items.parquet"), item_fields(data))


def trained_texts(items: pa.Table, fields: dict[str, list[str]]) -> list[str]:
    """The same from the table of all items and the vocabularies of their features."""
    return item_texts(items.slice(1, trained_items(items)), fields)
