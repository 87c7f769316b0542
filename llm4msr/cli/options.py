"""Arguments and options that every verb has, and the config that they name."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llm4msr.config import Config


def _complete_override(begun: str) -> list[str]:
    """The keys that begin so, for the shell."""
    from llm4msr.config.json_schema import keys

    return [f"{key}=" for key in keys() if key.startswith(begun)]


ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="TOML file: a path or any URI.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key: train.epochs=5. Can be repeated.",
        autocompletion=_complete_override,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan with its numbers, and do nothing.")]


def load_config(uri: str, overrides: list[str]) -> "Config":
    """The config of a command; imported on demand, so that help needs nothing that reads files.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong.
    """
    from llm4msr import config

    return config.load(uri, overrides)
