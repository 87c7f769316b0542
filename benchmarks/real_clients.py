"""Clients that nobody here wrote, as they are: `hey` puts load on the endpoint, and one that `openapi-python-client`
makes from the committed OpenAPI document ranks, ranks a batch, posts an event and is refused.

    apt-get install hey
    python -m benchmarks.real_clients

Behind HAProxy and behind Ray's own proxy. The generator comes by `uvx`, from the package index.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._endpoint import INGRESSES, Endpoint, endpoint
from benchmarks._machine import describe
from llm4msr.serve.web_app import OPENAPI

RESULT = Path(__file__).parent / "results" / "real-clients.md"
GENERATOR = "openapi-python-client==0.29.1"
UVX = [str(Path(sys.executable).with_name("uvx")), "--quiet", "--from", GENERATOR]
BODY = {"user_id": "196", "scenario": "Comedy", "items": [str(number) for number in range(1, 101)]}
SCRIPT = """
import sys
import time
from llm4msr_client import Client
from llm4msr_client.api.default import (
    keep_events_v1_events_post, model_v1_model_get, rank_batch_v1_rank_batch_post, rank_v1_rank_post)
from llm4msr_client.models import EventBatch, EventsKept, HTTPValidationError, NewEvent, RankBatchRequest, RankRequest

client = Client(sys.argv[1], raise_on_unexpected_status=True)
one = RankRequest("196", "Comedy", ["1", "2", "3"])
model = model_v1_model_get.sync(client=client)
answer = rank_v1_rank_post.sync(client=client, body=one)
assert {item.item_id for item in answer.ranked} == {"1", "2", "3"}, answer
assert answer.model_version == model.model_version
batch = rank_batch_v1_rank_batch_post.sync(client=client, body=RankBatchRequest([one, one]))
assert [item.item_id for item in batch.responses[0].ranked] == [item.item_id for item in answer.ranked]
event = NewEvent(user_id="196", item_id="1", scenario="Comedy", event_id="a", time=time.time())
kept = keep_events_v1_events_post.sync(client=client, body=EventBatch([event]))
assert isinstance(kept, EventsKept) and kept.accepted == 1, kept
refused = rank_v1_rank_post.sync_detailed(client=client, body=RankRequest("196", "Comedy", []))
assert refused.status_code == 422 and isinstance(refused.parsed, HTTPValidationError), refused
print("model, rank, rank of a batch, an event, a refusal")
"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000, help="that hey sends")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def main(options: argparse.Namespace) -> None:
    lines = ["# Clients that nobody here wrote", ""]
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for ingress in INGRESSES:
            with endpoint(ingress, events=f"{folder}/events-{ingress}") as running:
                lines += [
                    f"## Behind {ingress}",
                    "",
                    f"The generated client: {use_generated(Path(folder), running)}.",
                    "",
                    *("```", put_load(Path(folder), running, options.requests), "```", ""),
                ]
    lines += [f"`python -m benchmarks.real_clients` with {GENERATOR} and hey; {describe(('ray',))}."]
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def generate(folder: Path) -> None:
    """A package `llm4msr_client` in the folder, from the committed document alone."""
    words = ["openapi-python-client", "generate", "--path", str(OPENAPI), "--meta", "none"]
    subprocess.run([*UVX, *words, "--output-path", str(folder / "llm4msr_client")], check=True, capture_output=True)


def use_generated(folder: Path, running: Endpoint) -> str:
    """What it did, in words; it runs where the generator is installed, apart from our own packages."""
    (folder / "use.py").write_text(SCRIPT)
    words = [*UVX, "python", str(folder / "use.py"), running.address]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip()


def put_load(folder: Path, running: Endpoint, requests: int) -> str:
    """What hey counted: rate, latencies and statuses."""
    (folder / "body.json").write_text(json.dumps(BODY))
    words = ["hey", "-n", str(requests), "-c", "2", "-m", "POST", "-T", "application/json"]
    words += ["-D", str(folder / "body.json"), f"{running.address}/v1/rank"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    first = next(at for at, line in enumerate(said) if "Latency distribution" in line)
    rate = [line for line in said[:first] if "Requests/sec" in line]
    statuses = said[next(at for at, line in enumerate(said) if "Status code" in line) :]
    latencies = [line for line in said[first:] if "% in" in line and line.split("%")[0].strip() in ("50", "99")]
    return "\n".join(line.strip() for line in [*rate, *latencies, *statuses] if line.strip())


if __name__ == "__main__":
    main(parser().parse_args())
