"""Raw data -> split rows, vocabularies, statistics and histories. Everything is fitted on training rows only.

The users and items that the source describes in files of their own are all kept, so that a new item with known
features can be ranked; but only those of training rows get an id embedding of their own.
"""

import json
import math
from typing import NamedTuple

import pyarrow as pa
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.data import catalogue, here, partitions, sources, split, work_files
from llm4msr.data.reading.raw_data import RawData
from llm4msr.data.reading.raw_tables import first_rows
from llm4msr.data.report import DataReport, report_lines
from llm4msr.data.report_figures import SamplerOpener
from llm4msr.data.report_warnings import find_warnings
from llm4msr.errors import ConfigError
from llm4msr.progress import say, warn
from llm4msr.storage import StageOutput, StageResult

VERSION = 13
SAMPLE_ROWS = 1_000_000
"""First interactions of larger data that a dry run looks at."""
ROWS_HERE = 5_000_000
"""Interactions that are prepared in this process, at most about."""
PARTITION_ROWS = 2_000_000
"""Interactions of one of several partitions, at most about: each CPU of Ray holds one at a time."""


def prepare(config: Config, open_sampler: SamplerOpener) -> StageOutput:
    """Publish `items`, `scenarios`, `fields.json` and, by partition of users, the tables `partitions.PARTITIONED`.

    The data report goes to standard error and into the manifest; if the output is there already, only its warnings
    are repeated.

    Raises:
        DataError: the source is wrong; the message names file, column and row.
        ConfigError: nothing but likes and no `split.negatives`, or labels and these.
    """
    output = storage.publish(
        folder(config),
        "prepare",
        config.seed,
        config.model_dump(include={"source", "split"}),
        {"source": sources.fingerprint(config.source)},
        lambda at: _build(config, open_sampler, at),
        resumable=True,
    )
    work_files.remove(output.folder)
    _print_report(output)
    return output


def _print_report(output: StageOutput) -> None:
    info = output.manifest.info
    for line in [] if output.reused else report_lines(DataReport.model_validate(info["report"])):
        say(line)
    for warning in info.get("warnings", []):
        warn(warning)


def goes_by_seed(config: Config) -> bool:
    """Whether each seed has data of its own: it decides the split of `random` and the negatives, and nothing else."""
    return config.split.kind == "random" or config.split.negatives > 0


def folder(config: Config) -> UPath:
    """Where this config's prepared data lies, or will."""
    seed = config.seed if goes_by_seed(config) else 0
    identity = [VERSION, sources.fingerprint(config.source), config.split.identity(), seed]
    return storage.path(config.root) / "prepare" / storage.digest_json(identity)[:12]


class PromptData(NamedTuple):
    """What prompts are made of: the tables `scenarios` and `items`, and `histories` of all users or of some of them.

    With them the `events` of these, where snapshots of users are read.
    """

    tables: dict[str, pa.Table]
    item_fields: dict[str, list[str]]
    users: int
    """Users with a history, or about how many."""
    report: DataReport
    warnings: list[str]


def prompt_data(config: Config, open_sampler: SamplerOpener) -> PromptData:
    """Read from the published output, or computed in memory if there is none; writes nothing.

    Of several partitions it reads the histories of the first; before they are prepared, the first rows of the source.
    """
    output = storage.open_output(folder(config))
    if output is not None:
        tables = {name: output.table(f"{name}.parquet") for name in ("scenarios", "items")}
        for name in ("histories", *["events"] * (config.extract.snapshots > 1)):
            tables[name] = partitions.read(output, name, 0)
        users, info = partitions.rows(output, "histories"), output.manifest.info
        report = DataReport.model_validate(info["report"])
        return PromptData(tables, catalogue.item_fields(output), users, report, info.get("warnings", []))
    sample_prompt, raw, note = open_sampler(config), _read(config), []
    rows = raw.interactions.rows
    if partition_count(config, raw) > 1 and rows > SAMPLE_ROWS:
        raw = first_rows(raw, SAMPLE_ROWS)
        note = [f"all of this is estimated from the first {raw.interactions.rows:,} of about {rows:,} rows"]
    data = here.prepare(raw, config, sample_prompt)
    users = data.tables["histories"].num_rows
    share = raw.interactions.rows / rows if note else 1
    warnings = note + find_warnings(data.report, config)
    return PromptData(data.tables, data.item_fields, round(users / share), data.report, warnings)


def _read(config: Config) -> RawData:
    raw = sources.read(config.source)
    implicit = raw.implicit or config.split.implicit
    if implicit and not config.split.negatives:
        raise ConfigError(
            f"{'all rows of this source are likes' if raw.implicit else 'split.implicit makes a like of every row'}; "
            "set split.negatives, such as 4"
        )
    if config.split.negatives and not implicit:
        raise ConfigError(
            "split.negatives is for rows that are all likes, and this source gives labels; "
            "set split.implicit = true to go without them"
        )
    return raw


def _build(config: Config, open_sampler: SamplerOpener, folder: UPath) -> StageResult:
    sample_prompt, raw = open_sampler(config), _read(config)
    total = partition_count(config, raw)
    if total == 1:
        storage.clear(folder)  # a single partition is not worth resuming
        data = here.write(here.prepare(raw, config, sample_prompt), folder)
    else:
        from llm4msr.data import on_ray

        data = on_ray.prepare(raw, config, sample_prompt, total, folder)
    storage.write_bytes(folder / "fields.json", json.dumps(data.fields, ensure_ascii=False).encode())
    counts: dict[str, int] = {}
    for file, record in data.files.items():
        name = file.partition("/")[0].removesuffix(".parquet")
        counts[name] = counts.get(name, 0) + record.rows
    info = {"report": data.report.model_dump(), "warnings": find_warnings(data.report, config)}
    if data.segments:
        info["segments"] = data.segments
    return StageResult(
        files=data.files | {"fields.json": 1}, rows=sum(counts[name] for name in split.SPLITS), info=counts | info
    )


def partition_count(config: Config, raw: RawData) -> int:
    """How many partitions the users get."""
    wanted = config.split.partitions
    if wanted != "auto":
        return wanted
    rows = raw.interactions.rows
    return 1 if rows <= ROWS_HERE else 1 << math.ceil(math.log2(rows / PARTITION_ROWS))
