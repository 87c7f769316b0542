"""`llm4msr init FILES...`: a first config for someone's own data."""

import shlex
from typing import Annotated

import typer

from llm4msr.errors import ConfigError
from llm4msr.progress import say
from llm4msr.text import as_json, mask

Files = Annotated[list[str], typer.Argument(metavar="FILES...", help="CSV or Parquet files, or folders of them.")]
Out = Annotated[str, typer.Option("--out", metavar="CONFIG", help="The TOML file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]


def init(files: Files, out: Out = "config.toml", force: Force = False) -> None:
    """Write a first config for your own data: each column's role is guessed from some rows, and each guess explained.

    Give the file of interactions (a row for what a user did with an item) and, if you have them, those that describe
    items and users. Nothing is asked. Next: `llm4msr check CONFIG`.
    """
    from llm4msr import storage
    from llm4msr.draft.draft import draft
    from llm4msr.draft.guess import Guess
    from llm4msr.draft.write import experiment_name, write

    file = storage.path(out)
    if file.exists() and not force:
        raise ConfigError(f"{file}: exists already; give another --out, or --force to overwrite it")
    found = draft(files)
    storage.write_bytes(file, write(found, experiment_name(found.path), out).encode())
    guesses = [entry for entry in [*found.table, *found.split] if isinstance(entry, Guess)]
    for guess in guesses:
        say(f"  {guess.key:<18} {guess.value!s:<24} {'' if guess.is_sure else 'unsure: '}{guess.why}")
    for decision in found.decisions:
        say(f"to decide: {decision}")
    say(f"wrote {out}; next: llm4msr check {shlex.quote(out)}")
    unsure = [guess.key for guess in guesses if not guess.is_sure]
    print(mask(as_json({"stage": "init", "config": out, "decide": found.decisions, "unsure": unsure})))
