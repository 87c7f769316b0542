"""`llm4msr VERB CONFIG`: the stages on the command line. Results to standard output, progress to standard error."""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from llm4msr import __version__
from llm4msr.cli import config, knowledge, own_data
from llm4msr.cli.options import ConfigPath, DryRun, Overrides, load_config
from llm4msr.cli.process import interrupts_as_errors, run_command, signal_code, stdout_for_results
from llm4msr.cli.skew import skew
from llm4msr.progress import Level, say, set_level
from llm4msr.text import as_json, mask

if TYPE_CHECKING:
    from llm4msr.config import Config
    from llm4msr.storage import StageOutput

app = typer.Typer(
    name="llm4msr",
    help="LLM knowledge for multi-scenario recommenders: extracted once offline, served by a small fast ranker.\n\n"
    "For your own data, `init` writes a first config and `check` shows what it makes of the data. "
    "The stages, in order: prepare, extract, train, evaluate, export, explain, serve. `run` does all up to export; "
    "`refresh` brings newer knowledge to what is served, `score` writes lists for all users, `tune` looks for better "
    "settings. Each is a function of one TOML file, finds what it finished before, and continues what was "
    "interrupted.\n\n"
    "Exit codes: 0 fine, 2 wrong config or input, 3 more failed rows than allowed (or skew), 130 and 143 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(own_data.init)
app.command()(own_data.check)

ANYWHERE = ("--quiet", "--verbose")
"""Options of the whole program that may stand behind the verb too."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"llm4msr {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show only warnings, errors and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also show what Ray logs, and where an error arose.")]


@app.callback()
def options(version: Version = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """What holds for every verb."""
    set_level(Level.QUIET if quiet else Level.VERBOSE if verbose else Level.USUAL)


VERBS = {
    "prepare": "Read the source, split it, fit vocabularies and statistics on training rows.",
    "extract": "Ask the frozen LLM about every user (or item) and scenario; goes on after the last finished shard.",
    "train": "Train the configured model on Ray; continues from its last checkpoint.",
    "evaluate": "Compare trained models on the test rows, per scenario and overall, and publish their predictions.",
    "export": "Write the bundle that serving loads: weights, vocabularies and user codes.",
    "explain": "Write report.html: what the model gains over the plain one and its controls, how surely, and for whom; "
    "evaluates first if need be.",
    "refresh": "Make the users' codes of a served bundle again from newer knowledge; its endpoints take them over.",
    "score": "Write each user's best items to Parquet, 100 in every scenario unless [score] says otherwise, without "
    "those that the user has already seen; an interrupted run goes on.",
    "run": "Everything from prepare to export, training each model that [evaluate] compares.",
}
"""What each verb does whose work is a function of `llm4msr.pipeline` with the same name."""


def _add_verb(verb: str, description: str) -> None:
    @app.command(verb, help=description)
    def command(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
        _execute(verb, config, set_, dry_run, partial(_run_stages, verb))


for _verb, _description in VERBS.items():
    _add_verb(_verb, _description)


Trials = Annotated[int | None, typer.Option("--trials", metavar="N", help="Trials of each model; else tune.trials.")]


@app.command()
def tune(config: ConfigPath, set_: Overrides = [], trials: Trials = None, dry_run: DryRun = False) -> None:
    """Look for better values of the ranker's keys, on Ray Tune: for the configured model and, with the same budget, for
    the plain backbone; the knowledge stays as it is. Writes a TOML file to run for each of the two, and a table.

    Trials are judged by the AUC of validation rows, never of test rows, and weak ones are stopped early (ASHA). The
    first has the config's own values. Killed and started again, it goes on from the trials that had ended.

    Tuned, unless [tune.space] says otherwise: train.learning_rate from 0.0003 to 0.01, train.weight_decay,
    model.dropout, model.embedding_dim and model.hidden; and where the model has them model.code_dim, model.meta_rank
    and model.knowledge_dropout. --dry-run prints all values.
    """
    budget = [] if trials is None else [f"tune.trials={trials}"]
    _execute("tune", config, [*set_, *budget], dry_run, partial(_run_stages, "tune"))


@app.command()
def serve(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Serve the exported bundle over HTTP until interrupted."""
    code = 0

    def serve_until_interrupted(loaded: "Config", results: TextIO) -> "list[StageOutput]":
        from llm4msr import pipeline
        from llm4msr.serve import endpoint

        nonlocal code
        bundle = pipeline.exported(loaded)
        say(f"starting an endpoint for {bundle.folder}")
        try:
            address = pipeline.serve(loaded)
            explorer = f"; the explorer is at {address}/explore/" if loaded.serve.explore else ""
            say(f"serving {bundle.folder}\n  at {address}/v1/rank (docs at {address}/docs){explorer}; end with Ctrl-C")
            while True:
                time.sleep(3600)
        except KeyboardInterrupt as interrupt:
            code = signal_code(interrupt)
            say("ending: what is in flight is answered")
        finally:
            endpoint.stop()
        return [bundle]

    _execute("serve", config, set_, dry_run, serve_until_interrupted)
    sys.exit(code)


app.command()(skew)
app.add_typer(config.app, name="config")
app.add_typer(knowledge.app, name="knowledge")


def _execute(
    verb: str, uri: str, overrides: list[str], dry_run: bool, work: "Callable[[Config, TextIO], list[StageOutput]]"
) -> None:
    """Load the config, do a verb's work (or print its plan) and end with one JSON line."""
    begun = time.monotonic()
    config = load_config(uri, overrides)
    if dry_run:
        with stdout_for_results() as results:
            _print_plan(verb, config, results)
        return
    with interrupts_as_errors(verb), stdout_for_results() as results:
        outputs = work(config, results)
    summary = outputs[-1].summary() | {"stage": verb}
    if len(outputs) > 1:
        summary = {"stage": verb, "uri": config.root} | _summarize(outputs, time.monotonic() - begun)
    print(mask(as_json(summary)))


def _print_plan(verb: str, config: "Config", results: TextIO) -> None:
    from llm4msr.dry_run import plan

    parts = plan(config, verb)
    numbers = parts.get("extract", {}) | parts.get("prepare", {})
    line = {name: numbers[name] for name in ("prompts", "left", "tokens", "estimate", "warnings") if name in numbers}
    line |= {"training": parts["train"]["estimate"]} if "train" in parts else {}
    print(mask(as_json(parts, indent=2)), file=results)
    print(mask(as_json({"stage": verb, "dry_run": True} | line)), file=results)


def _summarize(outputs: "list[StageOutput]", seconds: float) -> dict[str, Any]:
    """What the last line says of a whole run."""
    lines = {output.manifest.stage: output.summary() for output in outputs}
    return {
        "outputs": {stage: line["uri"] for stage, line in lines.items()},
        "rows": lines["prepare"]["rows"],
        "failed": sum(output.manifest.failed for output in outputs),
        "skipped": sum(output.reused for output in outputs),
        "seconds": round(seconds, 1),
        "metrics": lines["evaluate"]["metrics"],
        "baselines": lines["evaluate"]["baselines"],
        "warnings": [line for output in outputs for line in output.manifest.info.get("warnings", [])],
    }


def _run_stages(verb: str, config: "Config", results: TextIO) -> "list[StageOutput]":
    """Run one stage, or all of them, and show at once what a finished one has to show."""
    from llm4msr import pipeline

    outputs = []
    for output in pipeline.stages(config) if verb == "run" else [getattr(pipeline, verb)(config)]:
        outputs.append(output)
        if output.manifest.stage in ("evaluate", "tune"):
            print(f"\n{output.read('table.md').decode()}", file=results, flush=True)
        if output.manifest.stage == "explain":
            say(f"open it in a browser: {output.folder / 'report.html'}")
    return outputs


def main(verb: str = "") -> None:
    """Entry point, of one verb if it is given."""
    given = [*([verb] if verb else []), *sys.argv[1:]]
    run_command(lambda: app(sorted(given, key=lambda word: word not in ANYWHERE), prog_name="llm4msr"))
