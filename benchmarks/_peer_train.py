"""Trains one model of Scenario-Wise-Rec with its own trainer and loader; run by its own interpreter, so nothing of ours
is imported here.

    python _peer_train.py '{"peer": "...", "arrays": "....npz", "model": "star", "epochs": 1, ...}'

The array file holds `{part}_x` (int64, a column per field, the scenario last), `{part}_y` for the parts train, valid
and test, `names` and `sizes` of the fields, and `ids`, the names among them that are ids. Prints one JSON line last.
"""

import contextlib
import copy
import json
import os
import resource
import sys
from typing import Any

import numpy as np

DEFAULTS: dict[str, Any] = {
    "model": "star",
    "epochs": 1,
    "rows": 0,  # of each part, 0 = all
    "batch_size": 4096,
    "loader": "frames",  # its own loader over data frames, as its scripts feed it | tensors: the same batches pre-made
    "workers": 8,
    "threads": 1,
    "learning_rate": 1e-3,
    "weight_decay": 1e-5,
    "seed": 2022,
    "embedding_dim": 16,
    "scenario_as_input": False,  # whether STAR, MMoE and the like also read the scenario as a feature
    "patience": 0,  # epochs without a better validation AUC before it stops; 0 = train all epochs
    "score": True,  # whether the validation and test rows are scored
    "sizes": {},  # overrides of the model's own hyper-parameters
}
SCENARIO = "domain_indicator"


def main() -> None:
    job = DEFAULTS | json.loads(sys.argv[1])
    sys.path.insert(0, job["peer"])
    with contextlib.redirect_stdout(sys.stderr):
        found = run(job)
    print(json.dumps(found))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train, and score at the best validation epoch."""
    import torch
    from scenario_wise_rec.trainers import CTRTrainer  # type: ignore[import-not-found]

    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    arrays = np.load(job["arrays"])
    loaders = make_loaders(arrays, job)
    model = make_model(arrays, job)
    settings = {"lr": job["learning_rate"], "weight_decay": job["weight_decay"]}
    trainer = CTRTrainer(model, "benchmark", optimizer_params=settings, n_epoch=job["epochs"])
    seconds, valid, best = [], [], None
    for _ in range(job["epochs"]):
        start = cpu_seconds()
        trainer.train_one_epoch(loaders[0])
        seconds.append(cpu_seconds() - start)
        if job["score"]:
            valid.append(trainer.evaluate(model, loaders[1])[0])
            if valid[-1] == max(valid):
                best = copy.deepcopy(model.state_dict())
            if job["patience"] and len(valid) - 1 - int(np.argmax(valid)) >= job["patience"]:
                break
    test = None
    if best is not None:
        model.load_state_dict(best)
        test = trainer.evaluate(model, loaders[2])[0]
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "rows": len(part(arrays, "train", job)[1]),
        "cpu_seconds": seconds,
        "valid_auc": valid,
        "test_auc": test,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_mib": peak // 1024,
        "versions": versions(),
    }


def part(arrays: Any, name: str, job: dict[str, Any]) -> tuple[Any, Any]:
    """Features [B, F] and labels [B] of `train`, `valid` or `test`."""
    rows = job["rows"] or None
    return arrays[f"{name}_x"][:rows], arrays[f"{name}_y"][:rows]


def make_loaders(arrays: Any, job: dict[str, Any]) -> list[Any]:
    """Loaders of train, valid and test."""
    if job["loader"] == "tensors":
        return [TensorLoader(arrays, name, job) for name in ("train", "valid", "test")]
    import pandas as pd
    from scenario_wise_rec.utils.data import DataGenerator  # type: ignore[import-not-found]

    frames = {}
    for name in ("train", "valid", "test"):
        x, y = part(arrays, name, job)
        frames[name] = pd.DataFrame(x, columns=arrays["names"].tolist()), pd.Series(y)
    x_val, y_val, x_test, y_test = *frames["valid"], *frames["test"]
    return list(
        DataGenerator(*frames["train"]).generate_dataloader(
            x_val, y_val, x_test, y_test, batch_size=job["batch_size"], num_workers=job["workers"]
        )
    )


class TensorLoader:
    """The batches that its loader would give, cut from tensors; the order of training rows is drawn anew each time."""

    def __init__(self, arrays: Any, name: str, job: dict[str, Any]):
        import torch

        x, y = part(arrays, name, job)
        self.columns = {n: torch.from_numpy(x[:, i].copy()) for i, n in enumerate(arrays["names"].tolist())}
        self.labels, self.size, self.shuffled = torch.from_numpy(y), job["batch_size"], name == "train"

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def __iter__(self) -> Any:
        import torch

        order = torch.randperm(len(self.labels)) if self.shuffled else torch.arange(len(self.labels))
        for chosen in order.split(self.size):
            yield {name: column[chosen] for name, column in self.columns.items()}, self.labels[chosen]


def make_model(arrays: Any, job: dict[str, Any]) -> Any:
    """One of its models with the hyper-parameters of its MovieLens script, unless the job gives others."""
    from scenario_wise_rec.basic.features import SparseFeature  # type: ignore[import-not-found]
    from scenario_wise_rec.models import multi_domain as models  # type: ignore[import-not-found]

    sizes = dict(zip(arrays["names"].tolist(), arrays["sizes"].tolist()))  # noqa: B905  its Python may be old

    def features(names: Any) -> list[Any]:
        return [SparseFeature(name, vocab_size=sizes[name], embed_dim=job["embedding_dim"]) for name in names]

    ids = arrays["ids"].tolist()
    plain, scenario = features(n for n in sizes if n != SCENARIO), features([SCENARIO])
    read = plain + scenario if job["scenario_as_input"] else plain
    domains, small = sizes[SCENARIO], {"expert_params": {"dims": [16]}, "tower_params": {"dims": [8]}}
    known: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
        "star": ("Star", (read, domains), {"fcn_dims": [128, 64, 32], "aux_dims": [32]}),
        "shared_bottom": ("SharedBottom", (read, domains), {"bottom_params": {"dims": [128]}, **small}),
        "mmoe": ("MMOE", (read, domains), {"n_expert": domains, **small}),
        "ple": ("PLE", (read, domains), {"n_level": 1, "n_expert_specific": 2, "n_expert_shared": 1, **small}),
        "adasparse": (
            "AdaSparse",
            (scenario, plain),
            {
                "form": "Fusion",
                "epsilon": 1e-2,
                "alpha": 1.0,
                "delta_alpha": 1e-4,
                "mlp_params": {"dims": [32, 32], "dropout": 0.2, "activation": "relu"},
            },
        ),
        "sarnet": ("Sarnet", (plain, domains), {"domain_shared_expert_num": 8, "domain_specific_expert_num": 2}),
        "m2m": (
            "M2M",
            (plain + scenario, scenario, domains),
            {
                "num_experts": 4,
                "expert_output_size": 16,
                "transformer_dims": {"num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 16},
            },
        ),
        "adaptdhm": (
            "AdaptDHM",
            (plain + scenario,),
            {"fcn_dims": [64, 64], "cluster_num": 3, "beta": 0.9, "device": "cpu"},
        ),
        "epnet": ("EPNet", (scenario, plain), {"fcn_dims": [128, 64, 32]}),
        "ppnet": (
            "PPNet",
            ([f for f in plain if f.name in ids], [f for f in plain if f.name not in ids] + scenario, domains),
            {"fcn_dims": [128, 64, 32]},
        ),
        "m3oe": (
            "M3oE",
            (plain, domains),
            {"fcn_dims": [128, 64, 64, 32], "expert_num": 4, "exp_d": 1, "exp_t": 1, "bal_d": 1, "bal_t": 1},
        ),
        "hamur": ("HamurSmall", (plain, domains), {"fcn_dims": [256, 128], "hyper_dims": [64], "k": 35}),
    }
    name, given, own = known[job["model"]]
    if job["model"] == "shared_bottom":
        own.pop("expert_params")
    return getattr(models, name)(*given, **{**own, **job["sizes"]})


def versions() -> dict[str, str]:
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("numpy", "pandas", "scikit-learn", "torch")}
    return {"python": sys.version.split()[0], **libraries}


def cpu_seconds() -> float:
    """Of this process and of its ended children, which a loader's workers are once an epoch is over."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
