"""Who reads the rows of a kind: identity of the model and of the settings that decide its vectors and texts."""

from typing import Literal

from pydantic import BaseModel

from llm4msr.config import Config

SourceName = Literal["llm", "encoder", "words"]
"""Where vectors come from: the frozen LLM, a sentence encoder, or counts of words."""


class Reader(BaseModel):
    """A model and how its hidden states become a vector, which is part of each vector's fingerprint."""

    revision: str
    """Of the model; an actor compares it with that of the model it loaded."""
    frame: str
    """Identity of what the model's chat template puts around each prompt."""
    reads: str
    """All that decides a vector besides its prompt."""
    writes: dict[str, str]
    """How the texts of each kind of rows are written beside their vectors; empty where none are."""
    dtype: str = ""
    """Number format of the model's weights and arithmetic."""
    source: SourceName = "llm"
    own_text: bool = False
    """Whether it reads what data says of a row and nothing else: no instruction, no chat template."""

    @classmethod
    def of(
        cls, config: Config, revision: str, frame: str, source: SourceName = "llm", own_text: bool = False
    ) -> "Reader":
        """The reader that a config names. The engine is left out on purpose: all engines give the same vectors."""
        e = config.extract
        writer = f" {e.http_chat_url or e.http_url} {e.http_chat_model}" if e.engine == "http" else ""
        text, everyone = f"answer={e.answer_tokens}{writer}", e.answers == "all"
        writes = {
            "users": f"{text} interests" if everyone else "",
            "snapshots": "",
            "items": text if everyone else "",
            "scenarios": text if e.answers != "none" else "",
        }
        writes |= {"items_by_encoder": "", "scenarios": ""} if source == "encoder" else {}
        answer = f" {writes['users'] or text}" if e.pooling == "answer" else ""
        layer = f" layer={e.layer}" if e.layer else ""
        weights = f"{e.dtype} {e.quantization}".strip()
        reads = f"{revision} {frame} {e.pooling} {weights}{layer}{answer}"
        model = {"revision": revision, "frame": frame, "dtype": e.dtype}
        return cls(**model, reads=reads, writes=writes, source=source, own_text=own_text)
