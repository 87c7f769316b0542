"""`llm4msr init FILES...` and `llm4msr check CONFIG`: a first config for someone's own data, and a look at it."""

import shlex
from typing import Annotated

import typer

from llm4msr.cli.options import ConfigPath, Overrides, load_config
from llm4msr.cli.process import stdout_for_results
from llm4msr.errors import ConfigError
from llm4msr.progress import say, warn
from llm4msr.text import as_json, mask, sanitize

Files = Annotated[list[str], typer.Argument(metavar="FILES", help="CSV or Parquet files, or folders of them.")]
Out = Annotated[str, typer.Option("--out", metavar="CONFIG", help="The TOML file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]


def init(files: Files, out: Out = "config.toml", force: Force = False) -> None:
    """Write a first config for your own data: each column's role is guessed from some rows, and each guess explained.

    Give the file of interactions (a row for what a user did with an item) and, if you have them, those that describe
    items and users. Nothing is asked. Next: `llm4msr check CONFIG`.
    """
    from llm4msr import storage
    from llm4msr.config.toml import as_toml
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
        value = guess.value if isinstance(guess.value, str) else as_toml(guess.value)
        say(f"  {guess.key:<18} {value:<24} {'' if guess.is_sure else 'unsure: '}{guess.why}")
    for decision in found.decisions:
        say(f"to decide: {decision}")
    say(f"wrote {out}; next: llm4msr check {shlex.quote(out)}")
    unsure = [guess.key for guess in guesses if not guess.is_sure]
    print(mask(as_json({"stage": "init", "config": out, "decide": found.decisions, "unsure": unsure})))


def check(config: ConfigPath, set_: Overrides = []) -> None:
    """Print the data report and one whole prompt as the LLM will read it, and warn of likely mistakes.

    Reads the source as `prepare` does, of very large data the first million rows, and writes nothing. Next:
    `llm4msr run CONFIG --dry-run` for the plan with its times.
    """
    from llm4msr.data.prepare import prompt_data
    from llm4msr.data.report import report_lines
    from llm4msr.knowledge.prompts.sample import sampler

    with stdout_for_results():
        data = prompt_data(load_config(config, set_), sampler)
    print(sanitize("\n".join(report_lines(data.report, whole_prompt=True))))
    for warning in data.warnings:
        warn(warning)
    say(f"next: llm4msr run {shlex.quote(config)} --dry-run, for the plan with its times")
    counts = data.report.model_dump(include={"rows", "users", "items", "scenarios"})
    print(mask(as_json({"stage": "check"} | counts | {"warnings": data.warnings})))
