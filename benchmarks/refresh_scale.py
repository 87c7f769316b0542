"""A day later: 1% of the users have new rows. How long until a bundle in service has their codes, and who is read?

    python -m benchmarks.refresh_scale --users 1000000

Two bundles of made-up users: of one, a tiny random Llama has read each user; of the other, users are pooled from their
items. Then each hundredth user takes five more items, and `prepare`, `extract` and `refresh` run as a user runs them,
each in processes of its own. Prints an error and stops if `extract` asks about anybody else, or about a scenario.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import _process_meter, _skewed_rows
from benchmarks._machine import describe
from benchmarks.extract_scale import new_ids
from llm4msr import load, pipeline, storage
from llm4msr.bundle.files import LATEST, codes_root
from tests.support.experiments import tiny_llama

RESULT = Path(__file__).parent / "results" / "refresh-scale.md"
VARIABLES = {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
CHANGED_EVERY, NEW_ROWS = 100, 5
"""Which users act on the new day, and how often."""
CONFIG = """\
name = "{reads}"
storage = "{work}/runs"

[source]
kind = "table"
path = "{source}"

{table}
[split]
by = "user"

[extract]
engine = "transformers"
model = "{work}/llama"
answers = "none"
{extract}

[model]
knowledge = "user"

[train]
batch_size = 16384
epochs = 1
"""
EXTRACT = {
    "users": """\
reads = "users"
pooling = "last"
point_in_time = false
user_template = "{work}/template.txt"
titles_per_scenario = 1
rows_per_shard = 1024""",
    "items": """\
reads = "items"
item_vectors = "random" """.rstrip(),
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000, help="about so many, of ten rows on average")
    parser.add_argument("--work", type=Path, default=Path("runs/refresh-scale"))
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    work = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    source = _skewed_rows.write_source(work / "rows", options.users * _skewed_rows.ROWS_PER_USER)
    tiny_llama(work / "llama")
    (work / "template.txt").write_text("Likes: $history")
    configs = {reads: write_config(work, source, reads) for reads in EXTRACT}
    first = {reads: base(config) for reads, config in configs.items()}
    changed = write_new_day(source, options.users)
    rows = [step(stage, reads, configs[reads], first[reads]) for reads, stage in steps()]
    asked, users = who_was_asked(configs["users"], changed)
    options.output.write_text(report(options, rows, first, (len(changed), asked, users)))
    print(options.output.read_text())


def steps() -> list[tuple[str, str]]:
    """What is read, and the command; one `prepare` is for both."""
    return [("users", "prepare"), ("users", "extract"), ("users", "refresh"), ("items", "refresh")]


def write_config(work: Path, source: Path, reads: str) -> Path:
    config = work / f"{reads}.toml"
    table = _skewed_rows.TABLE.format(label="like")
    extract = EXTRACT[reads].format(work=work)
    config.write_text(CONFIG.format(reads=reads, work=work, source=source, table=table, extract=extract))
    return config


def base(config: Path) -> dict[str, Any]:
    """The bundle in service, and what the first extraction took."""
    usages = {
        stage: _process_meter.run(command(stage, config), VARIABLES)
        for stage in ("prepare", "extract", "train", "export")
    }
    loaded = load(str(config))
    bundle = pipeline.exported(loaded)
    return {"bundle": str(bundle.folder), "usages": usages, "asked": pipeline.extracted(loaded).manifest.rows}


def command(stage: str, config: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "llm4msr", stage, str(config), *more]


def write_new_day(source: Path, users: int) -> set[str]:
    """A further file of rows, after all others; gives back whose they are."""
    last = sorted((source / "interactions").iterdir())[-1]
    known = _skewed_rows.user_ids(np.arange(0, users, CHANGED_EVERY))
    like = pq.read_table(last).slice(0, len(known) * NEW_ROWS)
    whose = pa.concat_arrays([known] * NEW_ROWS)[: len(like)]
    later = _skewed_rows.START + (_skewed_rows.DAYS + 1) * 86_400
    day = like.set_column(like.schema.get_field_index("user"), "user", whose)
    for name, numbers in (("time", np.arange(later, later + len(day))), ("like", np.ones(len(day), np.int8))):
        day = day.set_column(day.schema.get_field_index(name), name, pa.array(numbers))
    pq.write_table(day.cast(like.schema), last.with_name("new-day.parquet"))
    return set(map(str, known.to_pylist()))


def step(stage: str, reads: str, config: Path, first: dict[str, Any]) -> dict[str, Any]:
    more = ["--set", f"serve.bundle={first['bundle']}"] if stage == "refresh" else []
    usage = _process_meter.run(command(stage, config, *more), VARIABLES)
    codes = 0
    if stage == "refresh":
        root = codes_root(storage.path(first["bundle"]))
        newest = storage.open_output(root / json.loads((root / LATEST).read_text())["codes"])
        assert newest is not None
        codes = newest.manifest.rows
    return usage._asdict() | {"stage": stage, "reads": reads, "codes": codes}


def who_was_asked(config: Path, changed: set[str]) -> tuple[int, int]:
    """Users about whom the second extraction asked, and all of them.

    Raises:
        RuntimeError: it asked about nobody, about others, or about scenarios.
    """
    loaded = load(str(config))
    asked = {kind: new_ids(loaded, kind) for kind in ("users", "scenarios")}
    if not asked["users"]:
        raise RuntimeError("it asked about nobody")
    if others := asked["users"] - changed:
        raise RuntimeError(f"it asked about {len(others)} users who had not changed")
    if asked["scenarios"]:
        raise RuntimeError(f"it asked about {len(asked['scenarios'])} scenarios")
    return len(asked["users"]), pipeline.extracted(loaded).manifest.rows


def report(
    options: argparse.Namespace, rows: list[dict[str, Any]], first: dict[str, dict[str, Any]], who: tuple[int, int, int]
) -> str:
    changed, asked, users = who
    names = {"users": "the LLM reads users", "items": "users are pooled from items"}
    lines = []
    for row in rows:
        bundle = "both" if row["stage"] == "prepare" else names[row["reads"]]
        codes = f"{row['codes']:,}" if row["codes"] else ""
        lines.append(
            f"| {bundle} | `{row['stage']}` | {row['wall_seconds']:.0f} | {row['cpu_seconds']:.0f} | "
            f"{row['peak'] / 2**30:.2f} | {codes} |"
        )
    both = rows[0]["wall_seconds"]
    total = {reads: both + sum(row["wall_seconds"] for row in rows[1:] if row["reads"] == reads) for reads in names}
    extraction = first["users"]["usages"]["extract"].wall_seconds
    text = "\n".join(lines)
    return f"""# A day later: what a refresh costs

About {options.users:,} made-up users with ten rows each on average. {changed:,} of them take {NEW_ROWS} more items on a
new day.

| bundle | command | wall s | CPU s | all processes, peak GiB | users with codes or events |
| --- | --- | ---: | ---: | ---: | ---: |
{text}

From the new rows to codes that endpoints take: {total["users"]:.0f} s where the LLM reads users, {total["items"]:.0f} s
where they are pooled from items. The LLM was asked about {asked:,} of {users:,} prompts, no scenario among them; the
first extraction, of all of them, took {extraction:,.0f} s. It is a random Llama of 2 layers of 128: a real one adds its
own time for each of these users.

CPU-seconds and memory are of all processes that a command starts, Ray's included.
Command: `python -m benchmarks.refresh_scale --users {options.users}`. {describe()}.
"""


if __name__ == "__main__":
    main(parser().parse_args())
