"""The ranker: a backbone and how knowledge enters it."""

import difflib
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator

from llm4msr.config.section import Section

Knowledge = Literal["none", "user", "scenario", "both", "feature"]
Control = Literal["none", "shuffled", "random"]
MatchPart = Literal["candidate", "cosines", "attention", "ids"]

_CLASSES = {
    "single": "Single",
    "shared_bottom": "SharedBottom",
    "omoe": "OMoE",
    "mmoe": "MMoE",
    "ple": "PLE",
    "aitm": "AITM",
    "star": "Star",
    "epnet": "EPNet",
    "ppnet": "PPNet",
    "m3oe": "M3oE",
    "hamur": "Hamur",
    "sarnet": "SarNet",
    "adasparse": "AdaSparse",
}
BACKBONES = {name: f"llm4msr.model.backbones.{name}:{class_name}" for name, class_name in _CLASSES.items()}
"""Name of a backbone -> the import path of its class, which is loaded when a net is built: a config needs no torch."""


def check_backbone(name: str) -> str:
    """The same name, if it is that of a known backbone or an import path; nothing is imported.

    Raises:
        ValueError: it is neither; with the nearest known name.
    """
    module, colon, attribute = name.partition(":")
    if name in BACKBONES or (colon and all(part.isidentifier() for part in (*module.split("."), attribute))):
        return name
    near = difflib.get_close_matches(name, BACKBONES, n=1)
    known = ", ".join(f"'{backbone}'" for backbone in BACKBONES)
    meant = f" (did you mean '{near[0]}'?)" if near else ""
    raise ValueError(f"no such backbone{meant}; known are {known}, or your own as 'package.module:Class'")


class ModelConfig(Section):
    """The ranker: a backbone and how knowledge enters it."""

    backbone: Annotated[str, AfterValidator(check_backbone)] = "mmoe"
    """A key of `BACKBONES`, or the import path of your own class, `package.module:Class`."""
    knowledge: Knowledge = "both"
    """Where knowledge enters: nowhere (`none`, the plain backbone), as one more input (`feature`, the user's code),
    through layers that users' codes generate below the backbone (`user`), through layers that scenarios' codes
    generate beside it (`scenario`), or through the last two (`both`, the paper's)."""
    control: Control = "none"
    """Wrong vectors, to see what a gain owes to the vectors' content: other users' and other scenarios' (`shuffled`),
    or noise (`random`). Such a model is not exported. `none` = the right ones."""
    match: tuple[MatchPart, ...] = ()
    """What the model sees of how a candidate matches its user's past, each a switch: the candidate's vector
    (`candidate`); its cosines with what the user liked, in this scenario and elsewhere, and with what they did not
    (`cosines`); target attention over the vectors of what they liked (`attention`); and, without any knowledge, target
    attention over the embeddings of these items' ids, as in Deep Interest Network (`ids`). The first three need
    `extract.reads = "items"`."""
    past_events: int = Field(50, ge=1)
    """For `match`: how many of a user's latest events before a row count as their past. A bundle keeps so many of each
    user, at 8 bytes an event; in service the codes of users who are pooled from items are pooled from these too."""
    past: Literal["fresh", "stale"] = "fresh"
    """What rows of validation and test see of their user's past, by `match`, `extract.point_in_time` and
    `extract.snapshots`: all that was before the row, as in service (`fresh`), or what training rows tell alone
    (`stale`)."""
    embedding_dim: int = Field(16, ge=1)
    """Numbers in the embedding of each feature, ids included. More can hold more of each id, and make a
    larger model."""
    user_embedding: Literal["auto", "whole", "hashed", "none"] = "auto"
    """What a user's id is to the model: an embedding of its own (`whole`), one of `user_embedding_rows` embeddings
    that users share by a hash of their id (`hashed`), or nothing, so that only features and knowledge tell users apart
    (`none`). `auto` is `whole` up to `user_embedding_rows` users, and `hashed` above."""
    user_embedding_rows: int = Field(1 << 20, ge=1)
    """Embeddings that all users share where they are `hashed`. More tell users apart better; with embeddings of 16
    numbers a million takes 64 MB in serving, and several times as much in training."""
    code_dim: int = Field(32, ge=1)
    """Numbers in a code, which is what the ranker makes of an LLM vector. A bundle keeps each user's, at two bytes a
    number."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((128, 64), min_length=1)
    """Widths of the backbone's hidden layers (of each of its experts, where it has some), from its input on."""
    tower: int = Field(32, ge=1)
    """Width of the last hidden layer before the logit: of each scenario's tower in most backbones. With `fusion =
    "concat"` also the width of what the scenario level adds."""
    experts: int = Field(4, ge=1)
    """For `omoe`, `mmoe`, `m3oe` and `sarnet`: how many experts the scenarios share. For `ple`: half of them are
    shared, half each scenario's own."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the backbone's hidden units that are dropped in training; raise it against overfitting."""
    meta_rank: int = Field(8, ge=0)
    """Rank of the generated weights; 0 = full."""
    meta_layers: int = Field(1, ge=1)
    """How many layers each code generates, at the user level and at the scenario level."""
    meta_residual: bool = True
    """Whether the user level adds to the features, starting at zero, or replaces them."""
    fusion: Literal["add", "gate", "concat"] = "add"
    """How the scenario level meets the backbone: its logit is added (`add`), or added through a gate (`gate`), or its
    vector stands beside the backbone's logit (`concat`)."""
    knowledge_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of users per batch whose code is replaced by the learned default."""

    @field_validator("match")
    @classmethod
    def _put_in_order(cls, parts: tuple[MatchPart, ...]) -> tuple[MatchPart, ...]:
        return tuple(part for part in get_args(MatchPart) if part in parts)

    @property
    def matches_vectors(self) -> bool:
        """Whether items' vectors enter the model by themselves."""
        return any(part != "ids" for part in self.match)

    @property
    def reads_pasts(self) -> bool:
        """Whether what a user took before enters the model by itself."""
        return any(part != "candidate" for part in self.match)

    @property
    def reads_codes(self) -> bool:
        """Whether users' codes enter the model."""
        return self.knowledge in ("user", "both", "feature")

    @property
    def uses_knowledge(self) -> bool:
        """Whether any vector enters the model."""
        return self.knowledge != "none" or self.matches_vectors

    @property
    def variant(self) -> str:
        """A model's name in tables: `none`, `feature`, `user`, `scenario` or `both`, then `match` and `din` where the
        past is matched by vectors and by ids, and the control where there is one."""
        parts = ["match"] * self.matches_vectors + ["din"] * ("ids" in self.match)
        if self.knowledge != "none" or not parts:
            parts.insert(0, self.knowledge)
        return "-".join(parts + [self.control] * (self.control != "none"))
