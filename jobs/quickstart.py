"""The whole path in one go: all stages of a config, the endpoint, asked for a few users over HTTP, and the report."""

import argparse
import itertools
from typing import Any

import httpx
import numpy as np

from llm4msr import config, pipeline, storage
from llm4msr.cli.process import run_command
from llm4msr.config import Config
from llm4msr.data import partitions
from llm4msr.explain.stage import REPORT
from llm4msr.knowledge import item_vectors
from llm4msr.pipeline import explain, exported, extracted, prepared, stages
from llm4msr.progress import say
from llm4msr.serve import api_token, endpoint
from llm4msr.text import shorten

USERS, SCENARIOS, SHOWN = 3, 2, 5
ALIKE, NEAREST = 8, 3


def main(uri: str, overrides: list[str]) -> None:
    """Run the stages, show table and likenesses, serve, ask, stop, and say where the report is and what to try next."""
    loaded = config.load(uri, overrides)
    (table,) = [output for output in stages(loaded) if output.manifest.stage == "evaluate"]
    print(f"\n{storage.read_bytes(table.folder / 'table.md').decode()}")
    print(f"{_about(uri)}\n")
    if loaded.model.uses_knowledge and loaded.extract.reads == "items":
        show_likeness(loaded)
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
    has_report = loaded.model.knowledge != "none" and not loaded.model.match
    report = explain(loaded).folder / REPORT if has_report else None
    print(_next_steps(uri, loaded))
    if report is not None:
        print(f"See why, in a browser: {report}")


def show_likeness(loaded: Config) -> None:
    """Print the items that were taken most, each with those whose vectors are nearest."""
    folder = prepared(loaded).folder
    rows = storage.read_table(folder / partitions.file_name("events", 0), ["item"])["item"].to_numpy()
    (titles,) = _columns(folder / "items.parquet", "title")
    unit_ID = item_vectors.of_unit_length(item_vectors.read(extracted(loaded)).vectors_ID).astype(np.float32)
    taken_I = np.bincount(rows, minlength=len(titles))
    taken_I[0] = 0  # the unknown item
    print(f"Items that the vectors ({', '.join(loaded.extract.sources)}) find alike:")
    for item in np.argsort(-taken_I, kind="stable")[:ALIKE]:
        near = [place for place in np.argsort(-unit_ID @ unit_ID[item]) if titles[place] != titles[item]]
        print(f"  {shorten(titles[item])}: {'; '.join(shorten(titles[place]) for place in near[:NEAREST])}")


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


def _about(uri: str) -> str:
    """The comment that the config begins with: what the data is, and what the table is to show."""
    lines = storage.read_bytes(storage.path(uri)).decode().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return "\n".join(line.removeprefix("#").strip() for line in comment)


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
