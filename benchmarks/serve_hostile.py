"""Hostile requests against a running endpoint: none may break it, and no answer may tell what is inside.

Half of them are made from the committed OpenAPI document by schemathesis, valid and broken; the others are written by
hand: huge numbers, NaN, nested bombs, wrong encodings, markup and SQL in ids, wrong methods, paths and headers.
"""

import argparse
import asyncio
import itertools
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

from benchmarks._endpoint import INGRESSES, endpoint
from benchmarks._machine import describe
from llm4msr.bundle.messages import RankRequest, RankResponse
from llm4msr.config import ServeConfig
from llm4msr.serve.live_model import LiveModel
from llm4msr.serve.routes import ranking_app
from llm4msr.serve.web_app import OPENAPI

RESULT = Path(__file__).parent / "results" / "serve-hostile.md"
ROUTES = (("/v1/rank", "POST"), ("/v1/rank:batch", "POST"))
TOLD = ("Traceback", 'File "', "site-packages", ".py:", "ray::")
"""What only a stack trace would say, unless the request said it: hypothesis takes words from this file, too."""


class Attack(NamedTuple):
    """One request as it goes over the wire."""

    method: str
    path: str
    body: bytes
    headers: dict[str, bytes]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--address", default="", help="an endpoint that is up; empty = one is started for this")
    parser.add_argument("--ingress", choices=INGRESSES, default="haproxy", help="what stands before the replicas")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser


def attack(address: str, requests: int) -> tuple[Counter[str], list[str]]:
    """Answers counted by kind of request and status, and what went wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with httpx.Client(base_url=address, timeout=60) as client:

        def send(kind: str, one: Attack) -> None:
            try:
                headers = [(name.encode(), value) for name, value in one.headers.items()]
                request = client.build_request(one.method, one.path, content=one.body, headers=headers)
                answer = client.send(request)
            except (httpx.InvalidURL, httpx.LocalProtocolError, ValueError, TypeError):
                counts[f"{kind}: no HTTP client would send it"] += 1
                return
            except httpx.TransportError as error:
                counts[f"{kind}: connection closed"] += 1
                client.get("/healthz").raise_for_status()  # closing on nonsense is fine, dying is not
                if not isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
                    wrong.append(f"{type(error).__name__} {one!r}"[:500])
                return
            counts[f"{kind}: {answer.status_code}"] += 1
            leaks = any(word in answer.text and word.encode() not in one.body for word in TOLD)
            if answer.status_code >= 500 or leaks:
                wrong.append(f"{answer.status_code} {answer.text[:200]} for {one!r}"[:700])

        for number, one in zip(range(requests // 2), by_hand(), strict=False):
            send("written", one._replace(headers={"x-request-id": b"h%d" % number} | one.headers))
        each = requests // 2 // (2 * len(ROUTES))
        for (path, method), mode in itertools.product(ROUTES, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)):
            for one in generated(path, method, mode, each):
                send(f"generated {mode.value}", one)
    return counts, wrong


def generated(path: str, method: str, mode: GenerationMode, count: int) -> list[Attack]:
    """Requests for one route, drawn from the OpenAPI document."""
    document = json.loads(OPENAPI.read_text())
    operation = schemathesis.openapi.from_dict(document)[path][method]
    attacks: list[Attack] = []
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @seed(1)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=checks, phases=[Phase.generate])
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url="http://x")
        body = sent.get("json", sent.get("data", b""))
        raw = body if isinstance(body, bytes) else str(body).encode("utf-8", "surrogatepass")
        if "json" in sent:
            raw = json.dumps(body).encode()
        headers = {k: str(v).encode("latin-1", "replace") for k, v in dict(sent.get("headers") or {}).items()}
        attacks.append(Attack(method, path, raw, headers | {"content-type": b"application/json"}))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect()
    return attacks


def by_hand() -> Iterator[Attack]:
    """Without end: each nasty value in each place of a request, and bodies that are no request at all."""
    draw = random.Random(1)
    texts = [
        *("", " ", "\u0000", "\ud800", "\u202eabc", "𝔘" * 60, "x" * 256, "x" * 257, "a" * 100_000, "null", "NaN"),
        *("'; DROP TABLE users; --", '" OR 1=1', "<script>alert(1)</script>", "${jndi:ldap://x}", "{{7*7}}", "%00%n%s"),
        *("../../etc/passwd", "file:///etc/passwd", "\r\nx: y", "user-1\n", "__class__", "🦆" * 64),
    ]
    numbers = [0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1.5, 1e308, float("nan"), float("inf"), True, None]
    values: list[Any] = [*texts, *numbers, [], {}, [[]], {"a": {"b": {}}}, ["x"] * 2_000, [None], {"": ""}]
    values += [[0] * 3_000, {str(i): i for i in range(2_000)}, [{}] * 2_000, [[]] * 2_000]
    nonsense = [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b"[" * 50_000, b'{"a":' * 20_000]
    nonsense += [
        b'{"top_k": ' + b"9" * 100_000 + b"}",
        b'{"user_id": "\\ud800"}',
        b'{"a":1,"a":2}',
        b"NaN",
        b"-Infinity",
        b"0x10",
    ]
    nonsense += [
        b'{"%s": [%s0]}' % (key, many * 300_000) for key in (b"items", b"requests") for many in (b"0,", b"[],")
    ]
    nonsense += ['{"user_id": "ü"}'.encode(e) for e in ("latin-1", "utf-16", "utf-32", "utf-7")]
    values += [[{"item_id": "1", "scenario": "Comedy"}] * many for many in (2, 201, 2_000)]
    keys = ["user_id", "scenario", "items", "context", "top_k", "history", "history_mode", "extra", "", "__proto__"]
    keys += ["\ud800"]
    content_types = [b"application/json", b"text/plain", b"application/xml", b"multipart/form-data", b"\xff", b""]
    while True:
        request: dict[str, Any] = {"user_id": "1", "scenario": "Comedy", "items": ["1", "2"], "context": {}}
        for _ in range(draw.choice((1, 1, 2, 3))):
            request[draw.choice(keys)] = draw.choice(values)
        if draw.random() < 0.2 and isinstance(request["items"], list):
            request["items"] = [*request["items"], draw.choice(values)]
        if draw.random() < 0.2:
            request["context"] = {draw.choice(texts): draw.choice(values)}
        whole: Any = {"requests": [request] * draw.choice((0, 1, 2, 300))} if draw.random() < 0.3 else request
        body = draw.choice(nonsense) if draw.random() < 0.3 else json.dumps(whole).encode()
        if draw.random() < 0.1:
            body = body[: draw.randrange(len(body) + 1)]
        headers = (
            {"content-type": draw.choice(content_types)}
            if draw.random() < 0.3
            else {"content-type": b"application/json"}
        )
        if draw.random() < 0.1:
            headers["authorization"] = draw.choice((b"Bearer \xff", b"Basic x", b"", b"Bearer " + b"x" * 5_000))
        if draw.random() < 0.1:
            headers["x-request-timeout-seconds"] = draw.choice((b"-1", b"nan", b"1e999", b"\xff"))
        if draw.random() < 0.1:
            odd = draw.choice(("x-request-id", "x-session-id", "serve_multiplexed_model_id", "cookie"))
            headers[odd] = draw.choice((b"\xe9", "é".encode(), b"\xff" * 100, b"", b"x" * 5_000))
        if draw.random() < 0.05:
            headers["host"] = draw.choice((b"evil.example", b"[::1]:1", b"\xe9", b"localhost:99999999", b""))
        path = draw.choice(("/v1/rank", "/v1/rank", "/v1/rank:batch"))
        method = "POST"
        if draw.random() < 0.05:
            path = draw.choice(
                ("/v1/rank/../model", "/v1/%00", "/v1/" + "a" * 5_000, "/v2/rank", "//v1/rank", "/docs?x=<b>")
            )
        if draw.random() < 0.05:
            method = draw.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"))
        yield Attack(method, path, body, headers)


async def spent_on_bodies() -> list[tuple[str, int, float]]:
    """What stands in a large wrong body, the status of its answer, and the CPU milliseconds of both."""

    async def respond(requests: list[RankRequest], request_id: str) -> list[RankResponse]:
        raise AssertionError("it was taken for a right one")

    app = ranking_app(ServeConfig(), LiveModel(on_refusal=lambda _: None), respond)
    head = b'{"user_id":"u","scenario":"s","items":['
    lists = b",".join([head + b"0," * 1_990 + b"0]}"] * 256)
    wrong = {
        "510,000 numbers for ids": head + b"0," * 510_000 + b"0]}",
        "a batch of 256 lists of 1,990 numbers": b'{"requests":[%s]}' % lists,
        "340,000 ids, where 100,000 are allowed": head + b'"",' * 340_000 + b'""]}',
        "as many, of which the last is a number": head + b'"",' * 340_000 + b"0]}",
        "95,000 context fields": head + b'"a"],"context":{%s}}' % b",".join(b'"%d":""' % i for i in range(95_000)),
        "140,000 times the same one": head + b'"a"],"context":{%s}}' % b",".join([b'"a":""'] * 140_000),
        "340,000 lists in lists": b"[" * 340_000,
        "one text of a megabyte": head + b'"%s"]}' % (b"x" * 1_000_000),
    }
    found = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        for what, body in wrong.items():
            path = "/v1/rank:batch" if b"requests" in body else "/v1/rank"
            begun = time.process_time()
            answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            found.append((what, answer.status_code, (time.process_time() - begun) * 1e3))
    return found


def main(options: argparse.Namespace) -> None:
    if options.address:
        counts, wrong = attack(options.address, options.requests)
    else:
        with endpoint(options.ingress) as running:
            before = running.replicas()
            counts, wrong = attack(running.address, options.requests)
            if running.replicas() != before:
                wrong.append("a replica died")
    lines = ["# Hostile requests", "", f"{sum(counts.values()):,} requests, {len(wrong)} faults.", ""]
    lines += [
        "| kind and answer | requests |",
        "| --- | --- |",
        *(f"| {k} | {n:,} |" for k, n in sorted(counts.items())),
    ]
    lines += ["", *(f"- {one}" for one in wrong[:20])]
    lines += ["| body of a megabyte, read in process | answer | CPU ms, at most 50 |", "| --- | --- | ---: |"]
    lines += [f"| {what} | {status} | {spent:.1f} |" for what, status, spent in asyncio.run(spent_on_bodies())]
    flags = f"--requests {options.requests} --ingress {options.ingress}"
    lines += ["", f"Command: `python -m benchmarks.serve_hostile {flags}`. {describe()}."]
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main(parser().parse_args())
