"""The configuration of every stage: frozen, typed, read from one TOML file."""

from typing import TYPE_CHECKING, Any

from llm4msr.config.data import (
    AmazonOptions,
    IcebergOptions,
    KuaiSAROptions,
    SourceConfig,
    SplitConfig,
    SQLOptions,
    TableColumns,
)
from llm4msr.config.experiment import Config, ExplainConfig
from llm4msr.config.export import ExportConfig
from llm4msr.config.knowledge import ExtractConfig
from llm4msr.config.model import BACKBONES, ModelConfig, check_backbone
from llm4msr.config.score import ScoreConfig
from llm4msr.config.section import Key, Section
from llm4msr.config.serving import LogConfig, SecondConfig, ServeConfig
from llm4msr.config.training import MAX_SEED, EvaluateConfig, TrainConfig
from llm4msr.config.tuning import Range, SpaceConfig, TuneConfig

if TYPE_CHECKING:
    from llm4msr.config.toml import load

__all__ = [
    "BACKBONES",
    "MAX_SEED",
    "AmazonOptions",
    "Config",
    "EvaluateConfig",
    "ExplainConfig",
    "ExportConfig",
    "ExtractConfig",
    "IcebergOptions",
    "Key",
    "KuaiSAROptions",
    "LogConfig",
    "ModelConfig",
    "Range",
    "SQLOptions",
    "ScoreConfig",
    "SecondConfig",
    "Section",
    "ServeConfig",
    "SourceConfig",
    "SpaceConfig",
    "SplitConfig",
    "TableColumns",
    "TrainConfig",
    "TuneConfig",
    "check_backbone",
    "load",
]


def __getattr__(name: str) -> Any:
    """`load`, found late: it reads from any storage, which the nets and what else takes a section never touch."""
    if name == "load":
        from llm4msr.config.toml import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
