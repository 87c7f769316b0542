"""The whole path in one go: all stages of a config, the endpoint, asked for a few users over HTTP, and the report."""

import argparse
from typing import Any

import httpx

from llm4msr import config, pipeline, storage
from llm4msr.cli.process import run_command
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.explain.stage import REPORT
from llm4msr.knowledge.rows import read_texts
from llm4msr.pipeline import explain, exported, extracted, prepared, stages
from llm4msr.progress import say
from llm4msr.serve import api_token, endpoint
from llm4msr.text import shorten

USERS, SCENARIOS, SHOWN = 3, 2, 5


def main(uri: str, overrides: list[str]) -> None:
    """Run the stages, show table and texts, serve, ask, stop, and say where the report is and what to try next."""
    loaded = config.load(uri, overrides)
    (table,) = [output for output in stages(loaded) if output.manifest.stage == "evaluate"]
    print(f"\n{storage.read_bytes(table.folder / 'table.md').decode()}")
    if loaded.model.knowledge != "none":
        print("What the LLM says about the scenarios:")
        for text in read_texts(extracted(loaded)):
            print(f"  {shorten(text['raw_id'])}: {shorten(text['answer'], 2000)}")
    say("\nstarting the endpoint ...")
    address = pipeline.serve(loaded)
    try:
        token = api_token.read()
        headers = {b"authorization": b"Bearer " + token} if token else {}
        with httpx.Client(base_url=address, timeout=30, headers=headers, trust_env=False) as client:  # no proxy between
            show_rankings(loaded, client)
    finally:
        endpoint.stop()
    say("\nwriting the report ...")
    report = explain(loaded).folder / REPORT if loaded.model.knowledge != "none" else None
    print(_next_steps(uri, loaded))
    if report is not None:
        print(f"See why, in a browser: {report}")


def show_rankings(loaded: Config, client: httpx.Client) -> None:
    """Ask the endpoint for a few users in the two largest scenarios, and print titles."""
    folder = prepared(loaded).folder
    titles = dict(zip(*_columns(folder / "items.parquet", "item_id", "title"), strict=True))
    histories = storage.read_table(folder / partitions.file_name("histories", 0)).to_pylist()
    known = storage.read_table(folder / "scenarios.parquet").to_pylist()[1:]
    largest = sorted(known, key=lambda s: -s["interactions"])
    users = [histories[len(histories) * i // USERS] for i in range(USERS)]
    print(f"\nAsked over HTTP, {client.base_url}/v1/rank:")
    for user in users:
        liked = "; ".join([shorten(title) for part in user["history"] for title in part["titles"][-1:]][:4])
        print(f"\nUser {shorten(user['user_id'])} ({user['interactions']} interactions), liked of late: {liked}")
        for scenario in largest[:SCENARIOS]:
            asked = {
                "user_id": user["user_id"],
                "scenario": scenario["scenario_id"],
                "items": _new_items(folder, user["user"], scenario["scenario"])[: loaded.serve.max_candidates],
                "top_k": SHOWN,
            }
            answer = client.post("/v1/rank", json=asked).raise_for_status().json()
            best = "; ".join(f"{shorten(titles[one['item_id']])} ({one['score']:.2f})" for one in answer["ranked"])
            print(f"  {shorten(scenario['scenario_id'])} (knowledge {answer['knowledge']}): {best}")


def _new_items(folder: Any, user: int, scenario: int) -> list[str]:
    """Items of the scenario that the user has not met in the training rows."""
    raw = storage.read_table(folder / "items.parquet", ["item_id"])["item_id"].to_pylist()
    rows = storage.read_table(folder / partitions.file_name("train", 0), ["user", "item", "scenario"]).to_pandas()
    met = set(rows["item"][rows["user"] == user])
    return [raw[item] for item in rows["item"][rows["scenario"] == scenario].unique() if item not in met]


def _columns(file: Any, *names: str) -> list[list[Any]]:
    table = storage.read_table(file, list(names))
    return [table[name].to_pylist() for name in names]


def _next_steps(uri: str, loaded: Config) -> str:
    return f"""
Outputs: {storage.path(loaded.root)}
  prepare/ extract/ train/ evaluate/ export/ explain/, each with a manifest.json
  the bundle is {exported(loaded).folder}

Try next:
  .venv/bin/llm4msr serve {uri}                          keep the endpoint running
  .venv/bin/llm4msr run {uri} --set model.backbone=star  another backbone; the LLM is not asked again
  .venv/bin/tensorboard --logdir {storage.path(loaded.root)}/train     (pip install tensorboard)
  your own CSV or Parquet: see docs/data.md
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="TOML file: a path or any URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    given = parser.parse_args()
    run_command(lambda: main(given.config, given.set), "the quickstart")
