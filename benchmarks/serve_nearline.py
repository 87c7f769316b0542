"""From a new user's events to a code that the LLM made of them, with `serve.nearline` and a real LLM that is kept open.

    python -m benchmarks.serve_nearline

`llm4msr run`, then `llm4msr serve`, as a user starts them, on the latest rows of MovieLens-100K. New users tell of
films that they liked and are ranked until the answer says that their code knows it: first one after the other, then
many at once.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np

from benchmarks._machine import describe
from llm4msr import load, pipeline
from llm4msr.arrays import strings
from tests.support.experiments import free_port, kill_all

RESULT = Path(__file__).parent / "results" / "serve-nearline.md"
SCENARIO = "Comedy"
PATIENCE = 600
"""Seconds after which a user who is not known counts as an error."""
CONFIG = """\
name = "nearline"
storage = "{folder}/runs"

[source]
kind = "movielens"
path = "ml-100k"
scenario = "genre"

[split]
by = "user"
latest = {rows}

[extract]
reads = "users"
pooling = "last"
point_in_time = false
answers = "none"
engine = "{engine}"

[model]
knowledge = "user"

[train]
epochs = 1

[serve]
port = {port}
events = "{folder}/events"
nearline = true
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000, help="the latest ones; their users are read first")
    parser.add_argument("--liked", type=int, default=10, help="films that a new user tells of")
    parser.add_argument("--alone", type=int, default=30, help="users, one after the other")
    parser.add_argument("--together", type=int, nargs="+", default=[64], help="users who come at once")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "nearline.toml"
        fields = {"folder": folder, "port": free_port(), "rows": options.rows, "engine": options.engine}
        config.write_text(CONFIG.format(**fields))
        subprocess.run([sys.executable, "-m", "llm4msr", "run", str(config)], check=True)
        films = strings(pipeline.prepared(load(str(config))).table("items.parquet", ["item_id"])["item_id"])[1:]
        with serving(config, fields["port"]) as client:
            seconds_until_known(client, ["warm-up"], films, options.liked)
            alone = []
            for at in range(options.alone):
                time.sleep(random.uniform(0, 1))  # or all would come at the same time of the process's second
                alone += seconds_until_known(client, [f"alone-{at}"], films, options.liked)
            together = [
                seconds_until_known(client, [f"of-{size}-{at}" for at in range(size)], films, options.liked)
                for size in options.together
            ]
    options.output.write_text(report(options, alone, together))
    print(options.output.read_text())


@contextmanager
def serving(config: Path, port: int) -> Iterator[httpx.Client]:
    """`llm4msr serve`, ready, until the block ends."""
    command = [sys.executable, "-m", "llm4msr", "serve", str(config)]
    variables = {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
    with subprocess.Popen(command, env=os.environ | variables) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                while not ready(client):
                    assert process.poll() is None, "llm4msr serve has ended"
                    time.sleep(0.5)
                yield client
        finally:
            kill_all(process)


def ready(client: httpx.Client) -> bool:
    with suppress(httpx.HTTPError):
        return client.get("/readyz").is_success
    return False


def seconds_until_known(client: httpx.Client, users: Sequence[str], films: Sequence[str], liked: int) -> list[float]:
    """Of each user, from the request with all their events until a ranking knows the code that was made of them."""
    rng = random.Random(users[0])
    events = [
        {"event_id": f"{user} {at}", "user_id": user, "item_id": film, "scenario": SCENARIO, "time": time.time()}
        for user in users
        for at, film in enumerate(rng.sample(films, liked))
    ]
    begun, waiting, seconds = time.monotonic(), list(users), list[float]()
    client.post("/v1/events", json={"events": events}).raise_for_status()
    while waiting:
        assert time.monotonic() < begun + PATIENCE, f"{waiting}: no code was made"
        known = [user for user in waiting if knowledge_of(client, user) == "events"]
        seconds += [time.monotonic() - begun] * len(known)
        waiting = [user for user in waiting if user not in known]
        time.sleep(0.05)
    return seconds


def knowledge_of(client: httpx.Client, user: str) -> str:
    body = {"user_id": user, "scenario": SCENARIO, "items": ["1", "8", "25"]}
    return str(client.post("/v1/rank", json=body).raise_for_status().json()["knowledge"])


def report(options: argparse.Namespace, alone: Sequence[float], together: Sequence[Sequence[float]]) -> str:
    rows = [("one after the other", alone)]
    rows += [(f"{len(seconds)} at once", seconds) for seconds in together]
    lines = [
        f"| {name} | {len(seconds)} | {np.percentile(seconds, 50):.2f} | {np.percentile(seconds, 99):.2f} | "
        f"{max(seconds):.2f} |"
        for name, seconds in rows
    ]
    text, sizes = "\n".join(lines), " ".join(map(str, options.together))
    return f"""# From an event to a code that the LLM made of it

| new users | of them | until their code counts: p50 s | p99 | the last |
| --- | ---: | ---: | ---: | ---: |
{text}

SmolLM2-135M is kept open by `serve.nearline` (engine {options.engine}); each user tells of {options.liked} liked films
in one batch at a random moment, and is ranked again and again, with 50 ms between, until `knowledge` says `events`. The
process looks for such users once a second, and replicas look for new codes as often as for events. Ranker and LLM share
the cores.

Command: `python -m benchmarks.serve_nearline --alone {options.alone} --together {sizes}`. {describe()}.
"""


if __name__ == "__main__":
    main(parser().parse_args())
