"""Raw data -> split rows, vocabularies, statistics and histories. Everything is fitted on training rows only.

The users and items that the source describes in files of their own are all kept, so that a new item with known
features can be ranked; but only those of training rows get an id embedding of their own.
"""

import json
from typing import NamedTuple

import pyarrow as pa
from upath import UPath

from llm4msr import schema, storage
from llm4msr.config import Config
from llm4msr.data import catalogue, here, partitions, sources, split
from llm4msr.data.here import Prepared
from llm4msr.data.report import DataReport, report_lines
from llm4msr.data.report_figures import SamplerOpener
from llm4msr.data.report_warnings import find_warnings
from llm4msr.errors import ConfigError
from llm4msr.progress import say
from llm4msr.storage import StageOutput, StageResult

VERSION = 10


def prepare(config: Config, open_sampler: SamplerOpener) -> StageOutput:
    """Publish `items`, `scenarios`, `fields.json` and, by partition of users, the tables `partitions.PARTITIONED`.

    The data report goes to standard error and into the manifest; if the output is there already, only its warnings
    are repeated.

    Raises:
        DataError: the source is wrong; the message names file, column and row.
        ConfigError: implicit data without `split.negatives`.
    """
    output = storage.publish(
        folder(config),
        "prepare",
        config.seed,
        config.model_dump(include={"source", "split"}),
        {"source": sources.fingerprint(config.source)},
        lambda at: _build(config, open_sampler, at),
    )
    _print_report(output)
    return output


def _print_report(output: StageOutput) -> None:
    info = output.manifest.info
    for line in [] if output.reused else report_lines(DataReport.model_validate(info["report"])):
        say(line)
    for warning in info.get("warnings", []):
        say(f"warning: {warning}")


def goes_by_seed(config: Config) -> bool:
    """Whether each seed has data of its own: it decides the split of `random` and the negatives, and nothing else."""
    return config.split.kind == "random" or config.split.negatives > 0


def folder(config: Config) -> UPath:
    """Where this config's prepared data lies, or will."""
    seed = config.seed if goes_by_seed(config) else 0
    identity = [VERSION, sources.fingerprint(config.source), config.split.identity(), seed]
    return storage.path(config.root) / "prepare" / storage.digest_json(identity)[:12]


class PromptData(NamedTuple):
    """What prompts are made of: the tables `histories`, `scenarios` and `items`, and the items' fields."""

    tables: dict[str, pa.Table]
    item_fields: dict[str, list[str]]
    warnings: list[str]


def prompt_data(config: Config, open_sampler: SamplerOpener) -> PromptData:
    """Read from the published output, or computed in memory if there is none; writes nothing."""
    output = storage.open_output(folder(config))
    if output is None:
        data = _prepare_here(config, open_sampler)
        return PromptData(data.tables, data.item_fields, find_warnings(data.report, config))
    tables = {name: output.table(f"{name}.parquet") for name in ("scenarios", "items")}
    tables["histories"] = pa.concat_tables(partitions.read_each(output, "histories"))
    return PromptData(tables, catalogue.item_fields(output), output.manifest.info.get("warnings", []))


def _prepare_here(config: Config, open_sampler: SamplerOpener) -> Prepared:
    sample_prompt = open_sampler(config)
    raw = sources.read(config.source)
    if raw.implicit and not config.split.negatives:
        raise ConfigError("all rows of this source are positives; set split.negatives, such as 4")
    if not raw.implicit and config.split.negatives:
        raise ConfigError("split.negatives is for data without labels; this source gives labels")
    return here.prepare(raw, config, sample_prompt)


def _build(config: Config, open_sampler: SamplerOpener, folder: UPath) -> StageResult:
    data = _prepare_here(config, open_sampler)
    names = {name: partitions.file_name(name, 0) for name in partitions.PARTITIONED}
    files: dict[str, int | storage.FileRecord] = {"fields.json": 1}
    for name, table in data.tables.items():
        file = names.get(name, f"{name}.parquet")
        rows_per_group = schema.TRAIN_GROUP_ROWS if name == "train" else storage.GROUP_ROWS
        files[file] = storage.write_table(folder / file, table, rows_per_group)
    storage.write_bytes(folder / "fields.json", json.dumps(data.fields, ensure_ascii=False).encode())
    counts = {name: table.num_rows for name, table in data.tables.items()}
    info = {"report": data.report.model_dump(), "warnings": find_warnings(data.report, config)}
    return StageResult(files=files, rows=sum(counts[name] for name in split.SPLITS), info=counts | info)
