"""What benchmarks.quality compares: data sets, forms of the model, sources of vectors, and the grids made of them."""

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality_picture import FIRST
from llm4msr import config
from llm4msr.config import Config

DATA_SEED = 0
"""Random splits and negatives are the same for every training seed."""
CONFIGS = Path(__file__).parent / "configs"
PAPER = ("shared_bottom", "omoe", "mmoe", "ple", "aitm", "star")
OTHERS = ("epnet", "ppnet", "m3oe", "hamur", "sarnet", "adasparse")
TRIALS: list[tuple[str, ...]] = [
    (f"train.learning_rate={rate}", f"model.dropout={dropout}")
    for dropout, rate in itertools.product((0.1, 0.3), (1e-3, 3e-3))
]
Settings = tuple[str, ...]

IMPLICIT = ("split.implicit=true", "split.negatives=1")
SETS: dict[str, tuple[str, Settings]] = {
    "beauty-implicit": ("beauty", IMPLICIT),
    "beauty-popularity": ("beauty", (*IMPLICIT, "split.negatives_by=popularity")),
    "beauty-taken-with": ("beauty", (*IMPLICIT, "source.path=data/beauty-taken-with")),
    "beauty": ("beauty", ()),
    "ml-1m-implicit": ("ml-1m", IMPLICIT),
    "ml-1m": ("ml-1m", ()),
    "ml-1m-age": ("ml-1m-age", ()),
    "ml-100k-implicit": ("ml-100k", IMPLICIT),
    "ml-100k": ("ml-100k", ()),
}
"""Name of a data set -> its file in CONFIGS, and what is set in it. benchmarks.taken_with makes `beauty-taken-with`."""
LENGTHS = (3, 6, 12, 25, 50)
CURVE = ("beauty-implicit", "ml-100k-implicit")
for _name, _length in itertools.product(CURVE, LENGTHS):
    _file, _settings = SETS[_name]
    _cut = (f"split.first_events={_length}", "split.kind=leave_last_out")
    SETS[f"{_name}{FIRST}{_length}"] = (_file, (*_settings, *_cut))

_MATCH = "candidate,cosines,attention"
FORMS: dict[str, Settings] = {
    "none": ("model.knowledge=none",),
    "din": ("model.knowledge=none", "model.match=[ids]"),
    "user": ("model.knowledge=user",),
    "scenario": ("model.knowledge=scenario",),
    "both": ("model.knowledge=both",),
    "feature": ("model.knowledge=feature",),
    "match": ("model.knowledge=none", f"model.match=[{_MATCH}]"),
    "din+match": ("model.knowledge=none", f"model.match=[{_MATCH},ids]"),
    "contrast": ("model.knowledge=none", f"model.match=[{_MATCH}]", "extract.projection=contrastive"),
    "candidate+both": ("model.knowledge=both", "model.match=[candidate]"),
    "candidate+feature": ("model.knowledge=feature", "model.match=[candidate]"),
    "shuffled": ("model.knowledge=both", "model.control=shuffled"),
    "random": ("model.knowledge=both", "model.control=random"),
}
"""`contrast` is `match` with another projection of the vectors. `shuffled` and `random` are controls of the published
form, whose LLM reads users and not items."""
VECTORS: dict[str, Settings] = {
    "llm": ("extract.item_vectors=llm",),
    "words": ("extract.item_vectors=words",),
    "words128": ("extract.item_vectors=words", "extract.pool_dim=128"),
    "llm+words": ("extract.item_vectors=[llm,words]",),
    "encoder": ("extract.item_vectors=encoder", "extract.encoder=data/minilm"),
    "encoder+words": ("extract.item_vectors=[encoder,words]", "extract.encoder=data/minilm"),
    "random": ("extract.item_vectors=random",),
    "shuffled": ("extract.item_vectors=shuffled",),
    "llm128": ("extract.pool_dim=128",),
    "last": ("extract.pooling=last",),
    "goes-with": ("extract.pooling=last", f"extract.item_template={CONFIGS / 'goes-with.txt'}"),
    "layer 20": ("extract.layer=20", "extract.engine=transformers"),
}
"""The last four ask the LLM in other ways. `words128` has as many numbers as `llm+words`: what two sources gain over
one must not be their width."""
ITEMS = ("extract.reads=items", "extract.pooling=mean", "extract.point_in_time=true", "extract.answers=none")
SWITCHES: dict[str, Settings] = {
    "default": (),
    "rank 4": ("model.meta_rank=4",),
    "rank 16": ("model.meta_rank=16",),
    "full rank": ("model.meta_rank=0",),
    "two meta layers": ("model.meta_layers=2",),
    "no residual": ("model.meta_residual=false",),
    "gate": ("model.fusion=gate",),
    "concat": ("model.fusion=concat",),
    "code 8": ("model.code_dim=8",),
    "code 64": ("model.code_dim=64",),
    "no knowledge dropout": ("model.knowledge_dropout=0",),
    "knowledge dropout 0.3": ("model.knowledge_dropout=0.3",),
    "history share 0.5": ("split.history_share=0.5",),
    "items read": ("extract.reads=items", "extract.pooling=last", "extract.point_in_time=false"),
    "points in time": ("extract.reads=items", "extract.pooling=last", "extract.point_in_time=true"),
}


@dataclass(frozen=True)
class Grid:
    """What is compared with what."""

    sets: tuple[str, ...]
    backbones: tuple[str, ...]
    systems: tuple[str, ...]
    seeds: int
    overrides: Settings = ()
    switches: tuple[str, ...] = ("default",)
    validation: bool = False
    """Judge by the validation rows and leave those of the test alone: for what one chooses by."""


def systems(forms: Iterable[str], vectors: Iterable[str]) -> tuple[str, ...]:
    """Each form with each of these vectors."""
    return tuple(f"{form}@{source}" for form, source in itertools.product(forms, vectors))


_PUBLISHED = ("none", "feature", "user", "both", "shuffled", "random")
GRIDS = {
    "grid": Grid(
        ("beauty-implicit", "beauty-popularity", "beauty", "ml-1m-implicit", "ml-1m", "ml-100k"),
        (*PAPER, "single"),
        (
            *("none", "din"),
            *systems(("user", "scenario", "both", "feature", "match", "contrast", "din+match"), VECTORS),
            *systems(("candidate+both", "candidate+feature"), ("llm", "words")),
        ),
        5,
        ITEMS,
    ),
    "curve": Grid(
        tuple(f"{name}{FIRST}{length}" for name, length in itertools.product(CURVE, LENGTHS)),
        ("mmoe",),
        ("none", "din", *systems(("user", "match"), ("words", "llm"))),
        2,
        ITEMS,
    ),
    "readings": Grid(
        ("beauty-implicit", "beauty-taken-with", "ml-100k-implicit-first-12"),
        ("mmoe",),
        (
            "none",
            *systems(("user", "match", "contrast"), ("llm", *list(VECTORS)[-4:], "words", "words128", "llm+words")),
        ),
        3,
        ITEMS,
        validation=True,
    ),
    "core": Grid(("ml-100k", "ml-1m", "beauty"), (*PAPER, "single"), _PUBLISHED, 5),
    "others": Grid(("beauty",), OTHERS, ("none", "both", "shuffled"), 3),
    "plain": Grid(("ml-1m-age",), (*PAPER, "single", *OTHERS), ("none",), 1),
    "ablation": Grid(("ml-100k",), ("mmoe",), ("none", "both"), 5, switches=(*SWITCHES,)),
    "smoke": Grid(
        ("ml-100k",), ("shared_bottom", "mmoe"), ("none", "din", *systems(("match",), ("words", "random"))), 2, ITEMS
    ),
}


@dataclass(frozen=True)
class Cell:
    """One system on one data set."""

    data: str
    backbone: str
    system: str
    config: Config

    @property
    def names(self) -> dict[str, str]:
        """Its place in the table of runs."""
        return {"data": self.data, "backbone": self.backbone, "system": self.system}


def sets_of(grid: Grid, names: Collection[str]) -> tuple[str, ...]:
    """Its data sets of these names, and those that are cut from such; without names all."""
    return tuple(data for data in grid.sets if not names or {data, data.partition(FIRST)[0]} & {*names})


def cells_of(grid: Grid, root: str) -> Iterable[Cell]:
    """Sets of one file share their storage, so that their items are read once."""
    for data, backbone, switch in itertools.product(grid.sets, grid.backbones, grid.switches):
        file, settings = SETS[data]
        common = [f"storage={root}/{file}", f"model.backbone={backbone}", *settings, *grid.overrides]
        for system in grid.systems:
            if system == "none" and switch != "default":
                continue  # a switch of the meta layers has no plain form
            form, _, vectors = system.partition("@")
            own = (*FORMS[form], *VECTORS.get(vectors, ()), *SWITCHES[switch])
            loaded = config.load(str(CONFIGS / f"{file}.toml"), [*common, *own, f"seed={DATA_SEED}"])
            yield Cell(data, backbone, system if switch == "default" else f"{system}, {switch}", loaded)


def description_of(data: str) -> str:
    """The comment that its config begins with, and what is set besides."""
    file, settings = SETS[data]
    lines = itertools.takewhile(lambda line: line.startswith("#"), (CONFIGS / f"{file}.toml").read_text().splitlines())
    text = " ".join(line.lstrip("# ") for line in lines)
    return f"{text} Set besides: {', '.join(f'`{setting}`' for setting in settings)}." if settings else text
