"""`llm4msr skew CONFIG`: was it served as it was trained?"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llm4msr.cli.options import ConfigPath, Overrides, load_config
from llm4msr.cli.process import stdout_for_results
from llm4msr.errors import TooManyFailedError
from llm4msr.text import as_json, percent, shorten

if TYPE_CHECKING:
    from llm4msr.export.skew import Skew

Rows = Annotated[int, typer.Option("--rows", metavar="N", min=1, help="How many of the newest requests to compare.")]


def skew(config: ConfigPath, set_: Overrides = [], rows: Rows = 1000) -> None:
    """Compare the log of requests (serve.log.folder) with what the trained net makes of the same requests.

    Prints how many rows differ in each of the user's features, the code, the events and the scores, and by how much.
    Exit code 3: some differ.
    """
    from llm4msr import pipeline

    loaded = load_config(config, set_)
    with stdout_for_results():
        found = pipeline.skew(loaded, rows)
    print(table(found))
    print(as_json(summary(found)))
    if wrong := [name for name, one in found.found.items() if one.differ]:
        raise TooManyFailedError(
            f"not served as it was trained: {', '.join(map(shorten, wrong))}; the table says where"
        )


def table(found: "Skew") -> str:
    """For people."""
    lines = [
        f"{found.rows:,} requests that bundle {found.model_version} answered, {found.others:,} of others left out",
        f"{'':<32}{'rows':>8}{'differ':>10}{'largest':>12}  a request that differs",
    ]
    for name, one in found.found.items():
        largest = "" if one.largest is None else f"{one.largest:.2g}"
        share = percent(one.differ, one.rows)
        lines.append(f"{shorten(name, 31):<32}{one.rows:>8}{share:>10}{largest:>12}  {shorten(one.example)}".rstrip())
    return "\n".join(lines)


def summary(found: "Skew") -> dict[str, object]:
    """For programs."""
    return {
        "model_version": found.model_version,
        "rows": found.rows,
        "others": found.others,
        "compared": {name: asdict(one) for name, one in found.found.items()},
    }
