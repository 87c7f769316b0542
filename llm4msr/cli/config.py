"""`llm4msr config show|schema`: every key with its value, and what an editor completes keys by."""

import json

import typer

from llm4msr.cli.options import ConfigPath, Overrides, load_config
from llm4msr.text import sanitize

app = typer.Typer(
    help="The config: every key with its value, and the JSON schema of the file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def show(config: ConfigPath, set_: Overrides = []) -> None:
    """Print every key with its value as TOML; `# default` marks what neither the file nor --set says."""
    from llm4msr.config.toml import dump

    print(sanitize(dump(load_config(config, set_))))


@app.command()
def schema() -> None:
    """Print the JSON schema of the TOML file, with a description of every key.

    An editor with a TOML language server completes and checks the file by it: write it beside the file, with
    `llm4msr config schema > config.schema.json`, and `#:schema ./config.schema.json` as the file's first line.
    """
    from llm4msr.config.json_schema import json_schema

    print(json.dumps(json_schema(), indent=2))
