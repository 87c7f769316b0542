"""One user's or item's prompt as the LLM will read it, for the report on the data."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm4msr.config import Config
from llm4msr.data.report_figures import PromptSampler
from llm4msr.knowledge.prompts import render, templates
from llm4msr.knowledge.sources import sources
from llm4msr.text import quote

MAX_PROMPT = 4000
"""Characters of the prompt that the report shows."""


def sampler(config: Config) -> PromptSampler:
    """Read the template of the sample's prompt at once, so that a wrong one is refused before the work.

    Raises:
        ConfigError: the template cannot be used.
        StorageError: it cannot be read.
    """
    kind = "item" if config.extract.reads == "items" else "user"
    templates.read(kind, getattr(config.extract, f"{kind}_template"))
    return lambda tables, fields: _sample(config, tables, fields)


def _sample(config: Config, tables: dict[str, pa.Table], fields: dict[str, list[str]]) -> tuple[str, str]:
    """Whose prompt it is, and the prompt: the middle one of those that are read, have a title and are not empty."""
    if config.extract.reads == "items":
        rows = tables["items"].filter(pc.greater(tables["items"]["f:item_id"], pa.scalar(0)))
        titled = rows.filter(pc.not_equal(rows["title"], rows["item_id"]))
        rows = titled if len(titled) else rows
        rows = rows.slice(len(rows) // 2, 1)
        first = sources(config.extract)[0]
        kind = first.kinds[0]
        sample = render.item_rows(rows, fields, config, first.name, first.reads_own_text(kind))
    else:
        rows = tables["histories"]
        active = np.flatnonzero(pc.list_value_length(rows["history"]).to_numpy())
        rows = rows.take(active[len(active) // 2 :][:1])
        sample = render.user_prompts(rows, config)
    if not len(sample):
        return "", ""
    return quote(sample["raw_id"][0].as_py()), sample["prompt"][0].as_py()[:MAX_PROMPT]
