"""Scores the candidates of one request with Scenario-Wise-Rec's MMoE; run by its own interpreter, so nothing of ours
is imported here.

    python _peer_score.py PATH [candidates ...]

Tensors are given, so ids, sorting and an answer cost it nothing. The fields are MovieLens-100K's, the sizes our
defaults. Prints one JSON line last: candidates, p50 and p99 in milliseconds, on one thread.
"""

import json
import sys
import time

import numpy as np

SIZES = {"user": 944, "age": 62, "gender": 3, "occupation": 22, "item": 1683, "genre": 20, "year": 73}
SCENARIOS = 6


def main() -> None:
    import torch

    sys.path.insert(0, sys.argv[1])
    from scenario_wise_rec.basic.features import SparseFeature  # type: ignore[import-not-found]
    from scenario_wise_rec.models.multi_domain import MMOE  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fields = [SparseFeature(name, vocab_size=size, embed_dim=16) for name, size in SIZES.items()]
    model = MMOE(fields, SCENARIOS, 4, {"dims": [128, 64]}, {"dims": [32]}).eval()
    results = []
    for candidates in map(int, sys.argv[2:] or ("100", "1000")):
        batches = []
        for _ in range(500):
            batch = {name: torch.randint(size, (candidates,)) for name, size in SIZES.items()}
            batches.append(batch | {"domain_indicator": torch.full((candidates,), 2)})
        taken = []
        with torch.inference_mode():
            for batch in batches:
                begun = time.perf_counter()
                model(batch)
                taken.append((time.perf_counter() - begun) * 1e3)
        results.append([candidates, *(float(np.percentile(taken[50:], q)) for q in (50, 99))])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
