"""Rows of a test as `prepare` splits them."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from llm4msr import schema
from llm4msr.config import SplitConfig
from llm4msr.data import split
from llm4msr.data.interactions import Interactions


def encode(frame: pd.DataFrame) -> Interactions:
    """Rows in their order; what they lack is the same for all."""
    columns: dict[str, Any] = {"item_id": "i", "scenario_id": "s", "label": 1.0, "row": np.arange(len(frame))}
    whole = frame.assign(**{name: value for name, value in columns.items() if name not in frame})
    return Interactions.from_table(
        pa.table(
            [pa.array(whole[field.name]).cast(field.type) for field in schema.RAW_INTERACTIONS], schema.RAW_INTERACTIONS
        )
    )


def divide(frame: pd.DataFrame, config: SplitConfig, seed: int) -> split.SplitRows:
    rows = split.divide_all(encode(frame), config, seed)
    split.require_rows({name: rows.count(name) for name in split.SPLITS}, frame["order"].nunique(), config)
    return rows


def assign(frame: pd.DataFrame, config: SplitConfig, seed: int) -> np.ndarray:
    """The split of each row."""
    return divide(frame, config, seed).split_R
