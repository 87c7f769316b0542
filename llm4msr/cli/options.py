"""Arguments and options that every verb has."""

from typing import Annotated

import typer

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="TOML file: a path or any URI.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.epochs=5. Can be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with its numbers, and do nothing.")]
