"""Does knowledge help, and is it the knowledge? One backbone, every way of using knowledge, and its controls.

    python -m benchmarks.controls jobs/configs/quickstart.toml

Trains 7 variants x 3 seeds through the product's own stages (finished runs are reused), looks at the test rows once
per model, and writes benchmarks/results/controls-<name>-<backbone>.md.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from llm4msr import config, storage
from llm4msr.config import Config
from llm4msr.run import stages

VARIANTS = ["none", "feature", "user", "scenario", "both", "shuffled", "random"]
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", default="1,2,3")
    given = parser.parse_args()
    compared = [f"evaluate.variants={json.dumps(VARIANTS)}", f"evaluate.seeds=[{given.seeds}]"]
    loaded = config.load(given.config, [*given.set, *compared])
    (output,) = [output for output in stages(loaded) if output.manifest.stage == "evaluate"]
    measured = json.loads(storage.read_bytes(output.folder / "metrics.json"))
    text = report(loaded, measured, output.manifest.libraries, f"python -m benchmarks.controls {given.config}")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"controls-{loaded.name}-{loaded.model.backbone}.md"
    file.write_text(text)
    print(text, f"\n-> {file}")


def report(loaded: Config, measured: dict[str, Any], libraries: dict[str, str], command: str) -> str:
    """The result as Markdown."""
    rows = measured["summary"]
    plain = rows["none"]["overall"]["auc"]["mean"]
    lines = ["| variant | test AUC | against none | GAUC | logloss |", "|---|---:|---:|---:|---:|"]
    for name, values in sorted(rows.items(), key=lambda pair: _order(pair[0])):
        overall = values["overall"]
        gain = f"{overall['auc']['mean'] - plain:+.4f}"
        lines.append(
            f"| {name} | {_cell(overall['auc'])} | {gain} | {_cell(overall['gauc'])} | {_cell(overall['logloss'])} |"
        )
    seeds = ", ".join(map(str, loaded.evaluate.seeds))
    source = f"{loaded.source.kind} {Path(loaded.source.path).name}"
    split = loaded.split
    return "\n".join(
        [
            f"# Knowledge and its controls: {source}, {loaded.model.backbone}",
            "",
            *lines,
            "",
            f"Mean ± standard deviation over seeds {seeds}. Split `{split.kind}` by `{split.by}`; the hyper-parameters "
            "are the same for every variant. `feature` is the user's code as one more input; `shuffled` and "
            f"`random` are `{loaded.model.knowledge}` with other users' vectors and with noise.",
            "",
            f"Command: `{command}`. LLM: {loaded.extract.model}, pooling {loaded.extract.pooling}. "
            f"Python {platform.python_version()}, {', '.join(f'{k} {v}' for k, v in libraries.items())}; "
            f"{os.cpu_count()} CPU cores.",
            "",
        ]
    )


def _order(variant: str) -> int:
    return VARIANTS.index(variant.split("-")[-1])


def _cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.4f} ± {value['std']:.4f}"


if __name__ == "__main__":
    main()
