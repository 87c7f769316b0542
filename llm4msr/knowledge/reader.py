"""Identity of the LLM and of the settings that decide its vectors and texts."""

from pydantic import BaseModel

from llm4msr.config import Config


class Reader(BaseModel):
    """The LLM and how its hidden states become a vector, which is part of each vector's fingerprint."""

    revision: str
    """Of the model; an actor compares it with that of the model it loaded."""
    frame: str
    """Identity of what the model's chat template puts around each prompt."""
    reads: str
    """All that decides a vector besides its prompt."""
    writes: dict[str, str]
    """How the texts of `users`, `items` and `scenarios` are written beside their vectors; empty where none are."""

    @classmethod
    def of(cls, config: Config, revision: str, frame: str) -> "Reader":
        """The reader that a config names. The engine is left out on purpose: all engines give the same vectors."""
        e = config.extract
        text, everyone = f"answer={e.answer_tokens}", e.answers == "all"
        writes = {
            "users": f"{text} interests" if everyone else "",
            "items": text if everyone else "",
            "scenarios": text if e.answers != "none" else "",
        }
        answer = f" {writes['users'] or text}" if e.pooling == "answer" else ""
        weights = f"{e.dtype} {e.quantization}".strip()
        return cls(
            revision=revision, frame=frame, reads=f"{revision} {frame} {e.pooling} {weights}{answer}", writes=writes
        )
