"""`llm4msr knowledge ls|show|export|prune|verify CONFIG`: what the store holds, version by version."""

from contextlib import suppress
from typing import Annotated

import typer

from llm4msr.cli.options import ConfigPath, Overrides, load_config
from llm4msr.cli.process import stdout_for_results
from llm4msr.errors import ConfigError
from llm4msr.progress import say
from llm4msr.text import as_json, mask, sanitize

app = typer.Typer(
    help="The knowledge store: its versions, what it knows of a user, vectors for other models, checks and pruning.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("ls")
def ls(config: ConfigPath, set_: Overrides = []) -> None:
    """List the versions below the config's storage, the newest first, with rows and sizes."""
    from llm4msr.knowledge import versions

    rows = versions.list_versions(load_config(config, set_))
    print(
        f"{'':>3} {'version':<14}{'created':<27}{'users':>12}{'by reference':>14}{'failed':>9}"
        f"{'forgotten':>11}{'MiB':>10}  model"
    )
    for row in rows:
        sizes = (
            f"{row['users']:>12}{row['kept']:>14}{row['failed']:>9}{row['forgotten']:>11}{row['bytes'] / 2**20:>10.1f}"
        )
        print(f"{row['version']:>3} {row['name']:<14}{row['created']:<27}{sizes}  {row['model']}")
    print(as_json({"versions": rows}))


@app.command()
def show(
    config: ConfigPath,
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id as the source has it.")],
    set_: Overrides = [],
) -> None:
    """Show what the LLM read about a user and what it said, and the users whose vectors are nearest."""
    from llm4msr import pipeline
    from llm4msr.knowledge import inspect

    shown = inspect.show(pipeline.extracted(load_config(config, set_)), user)
    lines = [shown["prompt"], "", f"answer: {shown['answer'] or '(none was asked for)'}"]
    lines += [f"{scenario}: {', '.join(words)}" for scenario, words in shown["interests"].items()]
    lines += [f"error: {shown['error']}"] if shown["error"] else []
    lines += [f"near: {near['raw_id']} {near['cosine']:.4f}" for near in shown.get("nearest", [])]
    lines += [f"among {shown['compared']} users of the same partition"] if "compared" in shown else []
    print(sanitize("\n".join(lines)))
    print(as_json(shown))


@app.command()
def export(
    config: ConfigPath,
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Folder or URI; the version gets a folder there.")],
    set_: Overrides = [],
    codes: Annotated[bool, typer.Option("--codes", help="Write the exported ranker's user codes instead.")] = False,
) -> None:
    """Write vectors of users, items and scenarios by raw id to Parquet, for other models.

    The folder is laid out for `datasets.load_dataset`, and its README.md says how to read it. Resumable.
    """
    from llm4msr import pipeline
    from llm4msr.export import code_files
    from llm4msr.knowledge import vector_files

    loaded = load_config(config, set_)
    with stdout_for_results():
        if codes:
            written = code_files.export(pipeline.exported(loaded), to)
        else:
            written = vector_files.export(pipeline.extracted(loaded), pipeline.prepared(loaded), to)
    print(mask(as_json(written.summary())))


@app.command()
def prune(
    config: ConfigPath,
    set_: Overrides = [],
    keep: Annotated[int, typer.Option("--keep", min=1, help="How many of the newest versions stay.")] = 1,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Also delete what unfinished runs left.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
) -> None:
    """Delete old versions, and every row that no remaining version refers to.

    This config's own version stays. Versions from before the newest list of users to forget (extract.forget) are
    deleted whatever --keep says, so that nothing of these users is left in the store. Prepared data and bundles are not
    touched: prepare from data without these users, and export again. Also deleted are the raw rows in the folder
    `shuffle` that this config's prepared data was not made of and, if there is a log of requests (serve.log.folder),
    its rows of the users to forget.
    """
    from llm4msr import pipeline, storage
    from llm4msr.bundle import request_rows
    from llm4msr.data import prepare, segments
    from llm4msr.knowledge.forget import ids_to_forget
    from llm4msr.knowledge.prune import prune as prune_versions

    loaded = load_config(config, set_)
    current = None
    with suppress(ConfigError):  # this config has no version of its own: only the newest ones stay
        current = pipeline.extracted(loaded)
    report = prune_versions(loaded, current, keep, unfinished, dry_run)
    if report["unfinished"]:
        say(f"  unfinished, kept: {', '.join(report['unfinished'])}; go on with `extract`, or give --unfinished")
    gone = []
    if prepared := storage.open_output(prepare.folder(loaded)):
        gone = segments.prune(loaded, prepared.manifest.info.get("segments", ()), dry_run)
    requests = 0
    if folder := loaded.serve.log.folder:
        requests = request_rows.forget(storage.path(folder), ids_to_forget(loaded), dry_run)
    print(as_json({**report, "segments": gone, "requests": requests}))


@app.command()
def verify(
    config: ConfigPath,
    set_: Overrides = [],
    sample: Annotated[int, typer.Option("--sample", min=1, help="How many rows to ask the LLM about again.")] = 16,
) -> None:
    """Ask the LLM again about some rows and compare: fingerprints equal, vectors with cosine above 0.999."""
    from llm4msr import pipeline
    from llm4msr.knowledge import inspect

    loaded = load_config(config, set_)
    with stdout_for_results():
        compared = inspect.verify(loaded, pipeline.extracted(loaded), sample)
    print(mask(as_json(compared)))
