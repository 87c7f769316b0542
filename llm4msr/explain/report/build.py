"""All sections in order, the page that shows them, and the data beside it."""

import csv
from collections.abc import Sequence
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
from threadpoolctl import threadpool_limits
from upath import UPath

from llm4msr import storage
from llm4msr.explain.opened_run import Opened, Seed
from llm4msr.explain.report.cases import Case, case_section
from llm4msr.explain.report.effect import EffectSection, effect_section, score
from llm4msr.explain.report.layers import LayerSection, layer_section
from llm4msr.explain.report.page import Page, html
from llm4msr.explain.report.scenarios import ScenarioSection, scenario_section
from llm4msr.explain.report.users import UserSection, user_section
from llm4msr.progress import track
from llm4msr.storage import StageResult
from llm4msr.text import cell
from llm4msr.training.results import means_of

FILES = {
    "scenarios.csv": "the LLM's text on each scenario, and its statistics",
    "similarity.csv": "each pair of scenarios in each heat map",
    "knowledge.csv": "who has knowledge",
    "users.parquet": "the map: every user with knowledge",
    "groups.csv": "the groups of users",
    "effect.csv": "AUC of this model, of the plain one where it is trained, and of item popularity, with intervals",
    "levels.csv": "how far each level moves the logits",
    "rankings.csv": "single users: every candidate with its ranks and the parts of its logit",
}


def build(seeds: Sequence[Seed], report: UPath) -> StageResult:
    """Write the report and, beside it, the data beneath its pictures."""
    run = Opened.read(seeds)
    # one thread: the pieces are small, and threads that wait for each other suffer most on a busy machine
    with threadpool_limits(1), track("explain", len(run.seeds) + 4) as progress:
        scenarios = scenario_section(run)
        progress.advance(1, "scenarios")
        users = user_section(run)
        progress.advance(1, "users")
        scored = score(run, lambda note: progress.advance(1, note))
        effect, layers = effect_section(run, scored), layer_section(run, scored.levels, scored.plain)
        progress.advance(1, "results")
        cases = case_section(run, scored.levels[0])
        tables = _tables(scenarios, users, effect, layers, cases)
        for name, table in tables.items():
            _write(report.parent / name, table)
        storage.write_bytes(report, html(_page(run, scenarios, users, effect, layers, cases, list(tables))).encode())
        progress.advance(1, "single users")
    rows = {name: len(table) for name, table in tables.items()}
    summary = effect.results["summary"]
    info = {
        "metrics": {"on": "test", "overall": means_of(summary[effect.own]["overall"])},
        "baselines": {name: means_of(summary[name]["overall"]) for name in summary if name != effect.own},
        "against_none": effect.results["against_none"].get(effect.own),
        "headline": effect.headline,
        "warnings": effect.results["warnings"],
        "users": {case.kind: case.user_id for case in cases},
    }
    return StageResult(files={report.name: 1, **rows}, rows=len(run.test), info=info)


def _tables(
    scenarios: ScenarioSection, users: UserSection, effect: EffectSection, layers: LayerSection, cases: list[Case]
) -> dict[str, pd.DataFrame]:
    """The data beneath the pictures; without user codes there is no map."""
    columns = ["scenario", "scenario_id", "interactions", "users", "items", "positive_rate", "answer"]
    rankings = [
        case.ranked.assign(
            why=case.kind, user=case.user, user_id=case.user_id, scenario=case.scenario, scenario_id=case.scenario_id
        )
        for case in cases
    ]
    tables = {
        "scenarios.csv": pd.DataFrame(scenarios.rows)[columns],
        "similarity.csv": scenarios.table(),
        "knowledge.csv": pd.DataFrame(users.shares).astype({"scenario": "Int64"}),
        "effect.csv": effect.table(),
        "levels.csv": pd.DataFrame(layers.parts).astype({"scenario": "Int64"}),
        "rankings.csv": pd.concat(rankings) if rankings else pd.DataFrame(),
    }
    if users.groups:
        tables["users.parquet"] = users.points
        rows = [
            {
                "group": g.letter,
                "users": g.users,
                "rows": g.rows,
                "items": "; ".join(g.items),
                "words": " ".join(g.words),
            }
            for g in users.groups
        ]
        tables["groups.csv"] = pd.DataFrame(rows)
    return {name: tables[name] for name in FILES if name in tables}


def _write(file: UPath, table: pd.DataFrame) -> None:
    if file.suffix == ".parquet":
        storage.write_table(file, pa.Table.from_pandas(table, preserve_index=False))
        return
    safe = {n: table[n].map(lambda v: cell(v) if isinstance(v, str) else v) for n in table.columns}
    storage.write_bytes(
        file, pd.DataFrame(safe).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode("utf-8", "replace")
    )


def _page(
    run: Opened,
    scenarios: ScenarioSection,
    users: UserSection,
    effect: EffectSection,
    layers: LayerSection,
    cases: list[Case],
    files: list[str],
) -> Page:
    config, asked = run.config, run.extracted.manifest.inputs
    reads = "each user's history" if config.extract.reads == "users" else "each item once; users are pooled from items"
    facts = [
        ("Backbone", config.model.backbone),
        ("Knowledge", config.model.variant),
        ("Frozen LLM", asked.get("model", "")),
        ("It read", reads),
        ("Training rows", f"{len(run.train):,}"),
        ("Seeds", ", ".join(str(seed) for seed in effect.seeds)),
    ]
    warning = ""
    if config.model.control != "none":
        warning = f"This model is a control: its vectors are {config.model.control}, so no text below belongs to them."
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    named = [(name, FILES[name]) for name in files]
    return Page(config.name, facts, warning, made, scenarios, users, effect, layers, cases, named)
