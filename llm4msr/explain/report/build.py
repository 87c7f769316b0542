"""Computes all sections in order, and writes the page and the data beside it. The package says how to add a section."""

from collections.abc import Sequence
from datetime import UTC, datetime

from threadpoolctl import threadpool_limits
from upath import UPath

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.explain.finished_run import FinishedRun, ModelPair
from llm4msr.explain.report.cases import case_section
from llm4msr.explain.report.effect import effect_section, score_test_rows
from llm4msr.explain.report.layers import layer_section
from llm4msr.explain.report.page import Header, Sections, html
from llm4msr.explain.report.scenarios import scenario_section
from llm4msr.explain.report.users import user_section
from llm4msr.progress import track
from llm4msr.storage import StageResult
from llm4msr.training.results import means_of


def build(pairs: Sequence[ModelPair], report: UPath) -> StageResult:
    """Write the page to `report` and its tables beside it.

    Raises:
        ConfigError: `explain.users` names an unknown user.
    """
    run = FinishedRun.open(pairs)
    # one thread: the pieces are small, and threads that wait for each other suffer most on a busy machine
    with threadpool_limits(1), track("explain", len(pairs) + 4) as progress:
        scenarios = scenario_section(run)
        progress.advance(1, "scenarios")
        users = user_section(run)
        progress.advance(1, "users")
        logits = score_test_rows(run, lambda note: progress.advance(1, note))
        effect, layers = effect_section(run, logits), layer_section(run, logits.levels, logits.plain)
        progress.advance(1, "results")
        sections = Sections(scenarios, users, effect, layers, case_section(run, logits.levels[0]))
        tables = sections.tables()
        for name, table in tables.items():
            table.write(report.parent / name)
        storage.write_bytes(report, html(_header(run), sections, tables).encode())
        progress.advance(1, "single users")
    rows = {name: len(table.rows) for name, table in tables.items()}
    summary = effect.results["summary"]
    info = {
        "metrics": {"on": "test", "overall": means_of(summary[effect.variant]["overall"])},
        "baselines": {name: means_of(summary[name]["overall"]) for name in summary if name != effect.variant},
        "against_none": effect.results["against_none"].get(effect.variant),
        "headline": effect.headline,
        "warnings": effect.results["warnings"],
        "sample": run.sample_note,
        "users": {case.kind: case.user_id for case in sections.cases.cases},
    }
    return StageResult(files={report.name: 1, **rows}, rows=len(run.test), info=info)


def _header(run: FinishedRun) -> Header:
    config = run.config
    history, pooled = "each user's history", "each item once; users are pooled from items"
    facts = {
        "Backbone": config.model.backbone,
        "Knowledge": config.model.variant,
        "Frozen LLM": run.extracted.manifest.inputs.get("model", ""),
        "It read": history if config.extract.reads == "users" else pooled,
        "Training rows": f"{partitions.rows(run.prepared, 'train'):,}",
        "Seeds": ", ".join(str(pair.model.config.seed) for pair in run.pairs),
    }
    warning = ""
    if config.model.control != "none":
        warning = f"This model is a control: its vectors are {config.model.control}, so no text below belongs to them."
    return Header(config.name, facts, warning, run.sample_note, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
