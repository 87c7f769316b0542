"""One user's or item's prompt as the LLM will read it, for the report on the data."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.config import Config
from llm4msr.data.report_figures import PromptSampler
from llm4msr.knowledge.prompts import render, templates
from llm4msr.text import quote

MAX_PROMPT = 4000
"""Characters that are kept of it."""


def sampler(config: Config) -> PromptSampler:
    """Read the template of the prompt that is shown, so that a wrong one is told before the work.

    Raises:
        ConfigError: it cannot be used.
        StorageError: it cannot be read.
    """
    kind = "item" if config.extract.reads == "items" else "user"
    templates.read(kind, getattr(config.extract, f"{kind}_template"))
    return lambda tables, fields: _sample(config, tables, fields)


def _sample(config: Config, tables: dict[str, pa.Table], fields: dict[str, list[str]]) -> tuple[str, str]:
    """Whose prompt it is, and the prompt: that of the middle one among those that have one."""
    if config.extract.reads == "items":
        rows = tables["items"].filter(pc.greater(tables["items"]["f:item_id"], 0))
        rows = rows.slice(len(rows) // 2, 1)
        shown = render.item_prompts(rows, fields, config)
    else:
        rows = tables["histories"]
        places = np.flatnonzero(pc.list_value_length(rows["history"]).to_numpy())
        rows = rows.take(pa.array(places[len(places) // 2 :][:1]))
        shown = render.user_prompts(rows, config)
    if not len(shown):
        return "", ""
    return quote(shown["raw_id"][0].as_py()), shown["prompt"][0].as_py()[:MAX_PROMPT]
