"""Computes all sections in order, and writes the page and the data beside it. The package says how to add a section."""

from collections.abc import Sequence
from datetime import UTC, datetime

from threadpoolctl import threadpool_limits
from upath import UPath

from llm4msr import storage
from llm4msr.data import partitions
from llm4msr.explain.finished_run import FinishedRun
from llm4msr.explain.report.cases import case_section
from llm4msr.explain.report.gains import gain_section
from llm4msr.explain.report.models import model_section
from llm4msr.explain.report.page import Header, Sections, html
from llm4msr.explain.report.rows import read_rows
from llm4msr.explain.report.scenarios import scenario_section
from llm4msr.explain.report.users import user_section
from llm4msr.progress import track
from llm4msr.storage import StageOutput, StageResult
from llm4msr.training.results import PLAIN, Results, means_of
from llm4msr.training.table import CONTROLS
from llm4msr.training.trained import TrainedModel


def build(models: Sequence[TrainedModel], evaluation: StageOutput, report: UPath) -> StageResult:
    """Write the page to `report` and its tables beside it; the first model is the one that is explained.

    Raises:
        ConfigError: `explain.users` names an unknown user.
    """
    own = models[0]
    plain = next((one for one in models if one.variant == PLAIN and one.config.seed == own.config.seed), None)
    run = FinishedRun.open(own)
    results: Results = evaluation.json("metrics.json")
    # one thread: the pieces are small, and threads that wait for each other suffer most on a busy machine
    with threadpool_limits(1), track("explain", 4) as progress:
        rows = read_rows(evaluation, models, run.partitions)
        aucs = {name: one["overall"]["auc"]["mean"] for name, one in results["summary"].items()}
        gains = gain_section(own.variant, rows, run.scenario_names, aucs)
        compared = model_section(models, results, rows[0], gains.words or gains.plain)
        progress.advance(1, "gains")
        scenarios = scenario_section(run)
        progress.advance(1, "scenarios")
        users = user_section(run)
        progress.advance(1, "users")
        sections = Sections(gains, compared, scenarios, users, case_section(run, rows[0], plain))
        tables = sections.tables()
        for name, table in tables.items():
            table.write(report.parent / name)
        storage.write_bytes(report, html(_header(run, gains.seeds), sections, tables).encode())
        progress.advance(1, "single users")
    summary = {name: means_of(one["overall"]) for name, one in results["summary"].items()}
    info = {
        "metrics": {"on": "test", "overall": summary.pop(own.variant)},
        "baselines": summary,
        "against_none": results["against_none"].get(own.variant),
        "verdict": gains.verdict,
        "limits": gains.limits,
        "interval": gains.plain,
        "warnings": results["warnings"],
        "sample": run.sample_note,
        "users": {case.kind: case.user_id for case in sections.cases.cases},
    }
    files = {name: len(table.rows) for name, table in tables.items()}
    return StageResult(files={report.name: 1, **files}, rows=len(run.test), info=info)


def _header(run: FinishedRun, seeds: Sequence[int]) -> Header:
    config, extracted = run.config, run.extracted
    history, pooled = "each user's history", "each item once; users are pooled from items"
    facts = {"Backbone": config.model.backbone, "Knowledge": config.model.variant}
    if extracted is not None:
        facts["Vectors from"] = extracted.manifest.inputs.get("model", "")
        facts["It read"] = history if config.extract.reads == "users" else pooled
    facts["Training rows"] = f"{partitions.rows(run.prepared, 'train'):,}"
    facts["Seeds"] = ", ".join(map(str, seeds))
    warning = ""
    if wrong := " and ".join(one for one in CONTROLS if one in (config.model.control, *config.extract.sources)):
        warning = f"This model is a control: its vectors are {wrong}, so no text below belongs to them."
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Header(config.name, facts, warning, run.sample_note, created)
