"""`llm4msr <verb> CONFIG`: the stages on the command line. Results to standard output, progress to standard error."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from llm4msr import config as configs
from llm4msr.cli import knowledge
from llm4msr.cli.options import ConfigPath, DryRun, Overrides
from llm4msr.config import Config
from llm4msr.errors import InterruptedRunError, LLM4MSRError
from llm4msr.progress import say
from llm4msr.storage import StageOutput
from llm4msr.text import as_json, mask

app = typer.Typer(
    name="llm4msr",
    help="LLM knowledge for multi-scenario recommenders: extracted once offline, served by a small fast ranker.\n\n"
    "The stages, in order: prepare, extract, train, evaluate, export, explain, serve. `run` does all up to export; "
    "`refresh` brings newer knowledge to what is served. Each is a function of one TOML file, finds what it finished "
    "before, and continues what was interrupted.\n\n"
    "Exit codes: 0 fine, 2 wrong config or input, 3 more failed rows than allowed, 130 and 143 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SECONDS_TO_END = 8.0
"""After Ctrl-C or SIGTERM; then the process ends without waiting for what does not let go."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: what ends a run as Ctrl-C does, with an exit code of its own."""


app.add_typer(knowledge.app, name="knowledge")


@app.command()
def prepare(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Read the source, split it by time, fit vocabularies and statistics on training rows."""
    _execute("prepare", config, set_, dry_run)


@app.command()
def extract(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Ask the frozen LLM about every user and scenario; resumable by shards."""
    _execute("extract", config, set_, dry_run)


@app.command()
def train(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Train the configured model on Ray Train; continues from its last checkpoint."""
    _execute("train", config, set_, dry_run)


@app.command()
def evaluate(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Compare trained models on the test rows: AUC, GAUC and logloss per scenario and overall."""
    _execute("evaluate", config, set_, dry_run)


@app.command()
def export(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Write the bundle that serving loads: weights, vocabularies and user codes."""
    _execute("export", config, set_, dry_run)


@app.command()
def explain(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Write report.html: what the LLM says, the model beside a plain one, and what it moved for single users."""
    _execute("explain", config, set_, dry_run)


@app.command()
def refresh(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Make the users' codes of a served bundle again from newer knowledge; its endpoints take them over."""
    _execute("refresh", config, set_, dry_run)


@app.command()
def run(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Everything from prepare to export, training each model that [evaluate] compares."""
    _execute("run", config, set_, dry_run)


@app.command()
def serve(config: ConfigPath, set_: Overrides = [], dry_run: DryRun = False) -> None:
    """Serve the exported bundle over HTTP until interrupted."""
    code = 0

    def until_interrupted(loaded: Config) -> list[StageOutput]:
        from llm4msr import pipeline
        from llm4msr.serve import endpoint

        nonlocal code
        bundle = pipeline.exported(loaded)
        try:
            address = pipeline.serve(loaded)
            shown = f"; the explorer is at {address}/explore/" if loaded.serve.explore else ""
            say(f"serving {bundle.folder}\n  at {address}/v1/rank (docs at {address}/docs){shown}; end with Ctrl-C")
            while True:
                time.sleep(3600)
        except KeyboardInterrupt as ended:
            code = 128 + (signal.SIGTERM if isinstance(ended, Terminated) else signal.SIGINT)
            say("ending: what is in flight is answered")
        finally:
            endpoint.stop()
        return [bundle]

    _execute("serve", config, set_, dry_run, until_interrupted)
    sys.exit(code)


def _execute(
    verb: str,
    uri: str,
    overrides: list[str],
    dry_run: bool,
    work: Callable[[Config], list[StageOutput]] | None = None,
) -> None:
    """Load the config, do a verb's work (or print its plan) and end with one JSON line."""
    begun = time.monotonic()
    loaded = configs.load(uri, overrides)
    if dry_run:
        from llm4msr.pipeline import plan

        found = plan(loaded, verb)
        print(mask(as_json(found, indent=2)))
        print(mask(as_json({"stage": verb, "dry_run": True} | _flat(found))))
        return
    with _interruptible(verb):
        outputs = work(loaded) if work else _stages(verb, loaded)
    summary = outputs[-1].summary() | {"stage": verb}
    if len(outputs) > 1:
        named = {output.manifest.stage: output.summary() for output in outputs}
        summary = {"stage": verb, "uri": loaded.root, "outputs": {n: s["uri"] for n, s in named.items()}}
        summary |= {"rows": named["prepare"]["rows"], "failed": sum(o.manifest.failed for o in outputs)}
        summary |= {"skipped": sum(o.reused for o in outputs), "seconds": round(time.monotonic() - begun, 1)}
        summary |= {name: named["evaluate"][name] for name in ("metrics", "baselines")}
        summary |= {"warnings": [line for output in outputs for line in output.manifest.info.get("warnings", [])]}
    print(mask(as_json(summary)))


@contextmanager
def _interruptible(verb: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM in the block as one error of ours."""
    try:
        yield
    except KeyboardInterrupt as stop:
        code = 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        message = f"{verb} was interrupted; run again to continue: what is finished is kept"
        raise InterruptedRunError(message, code) from None


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    numbers = found.get("extract", {}) | found.get("prepare", {})
    return {name: numbers[name] for name in ("prompts", "left", "tokens", "estimate", "warnings") if name in numbers}


def _stages(verb: str, config: Config) -> list[StageOutput]:
    """Run one stage, or all of them, and show at once what a finished one has to show."""
    from llm4msr import pipeline

    outputs = []
    for output in pipeline.stages(config) if verb == "run" else [getattr(pipeline, verb)(config)]:
        outputs.append(output)
        if output.manifest.stage == "evaluate":
            print(f"\n{output.read('table.md').decode()}")
        if output.manifest.stage == "explain":
            say(f"open it in a browser: {output.folder / 'report.html'}")
    return outputs


def main(verb: str = "") -> None:
    """Entry point, of one verb where it is given."""
    guarded(lambda: app([verb, *sys.argv[1:]] if verb else None))


def guarded(command: Callable[[], None], verb: str = "it") -> None:
    """Run a command; an error that the user can mend is one message and an exit code, no stack trace."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        with _interruptible(verb):
            command()
    except LLM4MSRError as error:
        say(f"error: {error}")
        if isinstance(error, InterruptedRunError):
            end = threading.Timer(SECONDS_TO_END, os._exit, [error.exit_code])
            end.daemon = True
            end.start()
        sys.exit(error.exit_code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    main()
