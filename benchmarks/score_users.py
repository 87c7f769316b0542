"""Lists for made-up users: 100 of 10,000 items each. The rate of a core, and memory as users grow.

    python -m benchmarks.score_users --users 10000 100000

Each number of users is `llm4msr score` in a process and on a Ray of its own, which CPU time and memory are of, with all
that it starts. With the fewest users it is also killed midway and started again, and must publish the same bytes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from benchmarks import _bundles, _process_meter, _skewed_rows
from benchmarks._machine import describe
from llm4msr import Config, load, pipeline, storage
from llm4msr.storage import StageOutput
from tests.support.experiments import kill_all

RESULT = Path(__file__).parent / "results" / "score-users.md"
VARIABLES = {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
SCENARIO = "scenario 0"
CONFIG = """\
name = "bundle"
storage = "{runs}"

[source]
kind = "table"
path = "{source}"

{table}
[model]
backbone = "{backbone}"
knowledge = "{knowledge}"

[serve]
bundle = "{runs}/export/bundle"

[score]
top_k = 100
scenarios = ["{scenario}"]
candidates = "{work}/candidates-{items}.csv"
output = "{runs}/score"
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000], help="about so many of each size")
    parser.add_argument("--items", type=int, default=10_000, help="candidates")
    parser.add_argument("--backbone", default="mmoe")
    parser.add_argument("--knowledge", default="both")
    parser.add_argument("--work", type=Path, default=Path("runs/score-users"))
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    work = options.work.absolute()
    sizes = sorted(options.users)
    configs = [write_config(options, work, users) for users in sizes]
    rows = [measure(config, users) for config, users in zip(configs, sizes, strict=True)]
    again = killed_and_continued(configs[0], rows[0]["files"])
    text = report(options, rows, again)
    options.output.write_text(text)
    print(text)


def write_config(options: argparse.Namespace, work: Path, users: int) -> Path:
    """The config of so many users, whose data are prepared and whose bundle is made if they are not there."""
    source = _skewed_rows.write_source(work / f"rows-{users}", users * _skewed_rows.ROWS_PER_USER)
    runs = work / f"runs-{users}-{options.backbone}-{options.knowledge}"
    fields = vars(options) | {"work": work, "runs": runs, "source": source, "scenario": SCENARIO}
    config = work / f"{runs.name}.toml"
    config.write_text(CONFIG.format(**fields, table=_skewed_rows.TABLE.format(label="like")))
    loaded = load(str(config))
    prepared = pipeline.prepare(loaded)
    _bundles.publish(loaded, prepared)
    write_candidates(Path(loaded.score.candidates), prepared, options.items)
    return config


def write_candidates(file: Path, prepared: StageOutput, items: int) -> None:
    """The first items of the prepared data, which the bundle knows."""
    ids = prepared.table("items.parquet", ["item_id"])["item_id"].slice(1, items)
    assert len(ids) == items, f"the data have {len(ids)} items"
    pacsv.write_csv(pa.table([pa.repeat(pa.scalar(SCENARIO), items), ids], ["scenario", "item_id"]), file)


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "llm4msr", "score", str(config)]


def measure(config: Path, users: int) -> dict[str, Any]:
    loaded = load(str(config))
    shutil.rmtree(loaded.score.output, ignore_errors=True)
    usage = _process_meter.run(command(config), VARIABLES)
    output = published(loaded)
    lists = [name for name in output.manifest.files if name.startswith("lists/")]
    counts = [pq.read_table(str(output.folder / name), columns=["user_id"]).column(0).unique() for name in lists]
    digests = {name: record.digest for name, record in output.manifest.files.items()}
    return usage._asdict() | {"users": sum(map(len, counts)), "rows": output.manifest.rows, "files": digests}


def published(config: Config) -> StageOutput:
    (folder,) = storage.path(config.score.output).iterdir()
    output = storage.open_output(folder)
    assert output is not None
    return output


def killed_and_continued(config: Path, expected: dict[str, str]) -> tuple[int, bool]:
    """Files that were there when it was killed, and whether the second run's are those of the undisturbed one."""
    loaded, total = load(str(config)), len(expected) - 1
    shutil.rmtree(loaded.score.output, ignore_errors=True)
    with subprocess.Popen(command(config), env=os.environ | VARIABLES) as process:
        while len(there := lists_there(loaded)) < max(1, total // 2):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        kill_all(process)
    before = {file: file.stat().st_mtime_ns for file in there}
    _process_meter.run(command(config), VARIABLES)
    digests = {name: record.digest for name, record in published(loaded).manifest.files.items()}
    kept = all(file.stat().st_mtime_ns == at for file, at in before.items())
    return len(there), kept and digests == expected


def lists_there(config: Config) -> list[Path]:
    return [file for file in Path(config.score.output).glob("*/lists/p=*.parquet") if file.name.startswith("p=")]


def report(options: argparse.Namespace, rows: list[dict[str, Any]], again: tuple[int, bool]) -> str:
    lines = [
        "# What lists for all users cost",
        "",
        f"`llm4msr score`: the best 100 of {options.items:,} items for each made-up user in one scenario, less what "
        f"the user has seen; {options.backbone} `{options.knowledge}` with random weights, which cost what trained "
        "ones do. CPU-seconds and memory are of all processes that the command starts, Ray's included: the highest sum "
        "at one moment (PSS), and the largest single process.",
        "",
        "| users | rows | wall s | CPU s | candidates / CPU s | users / CPU s | memory MB, all | largest process |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        rate = row["users"] / row["cpu_seconds"]
        lines.append(
            f"| {row['users']:,} | {row['rows']:,} | {row['wall_seconds']:,.0f} | {row['cpu_seconds']:,.0f} | "
            f"{rate * options.items:,.0f} | {rate:,.1f} | {row['peak'] / 1e6:,.0f} | "
            f"{max(row['largest_other'], row['first_peak']) / 1e6:,.0f} |"
        )
    files, equal = again
    total = len(rows[0]["files"]) - 1
    lines += [
        "",
        f"Killed when {files} of {total} files were there and started again, the run of {rows[0]['users']:,} users "
        f"scored none of them again and published {'the same bytes' if equal else '**OTHER BYTES**'}.",
    ]
    numbers = " ".join(map(str, sorted(options.users)))
    return "\n".join([*lines, "", f"Command: `python -m benchmarks.score_users --users {numbers}`. {describe()}.", ""])


if __name__ == "__main__":
    main(parser().parse_args())
