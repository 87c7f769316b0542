"""The configuration of every stage: frozen, typed, read from one TOML file."""

from llm4msr.config.data import AmazonOptions, KuaiSAROptions, SourceConfig, SplitConfig, TableColumns
from llm4msr.config.experiment import Config, ExplainConfig
from llm4msr.config.knowledge import ExtractConfig
from llm4msr.config.model import BACKBONES, ModelConfig, check_backbone
from llm4msr.config.section import Key, Section
from llm4msr.config.serving import ServeConfig
from llm4msr.config.toml import load
from llm4msr.config.training import MAX_SEED, EvaluateConfig, TrainConfig

__all__ = [
    "BACKBONES",
    "MAX_SEED",
    "AmazonOptions",
    "Config",
    "EvaluateConfig",
    "ExplainConfig",
    "ExtractConfig",
    "Key",
    "KuaiSAROptions",
    "ModelConfig",
    "Section",
    "ServeConfig",
    "SourceConfig",
    "SplitConfig",
    "TableColumns",
    "TrainConfig",
    "check_backbone",
    "load",
]
