"""Which systems of benchmarks.quality are above their controls, by paired tests that are corrected for their number.

Shape suffix: N tests.
"""

import numpy as np
import pandas as pd
from scipy import stats

from llm4msr.arrays import Floats

SIGNIFICANT = 0.05
WRONG = ("random", "shuffled")
WIDTH = {"words": ("words", "words128"), "words128": ("words", "words128")}
"""Sources of vectors for which these are no controls."""


def controls_of(system: str) -> list[str]:
    """What it has to beat, from weak to strong; none for controls."""
    form, _, vectors = system.partition("@")
    if system in ("none", "din", *WRONG) or vectors in WRONG:
        return []
    if not vectors:
        return ["none", "din", "feature" if form in ("user", "both") else "", *WRONG]
    others = [source for source in (*WRONG, "words", "words128") if source not in WIDTH.get(vectors, ())]
    fewer = ["match"] if form == "contrast" else [form.replace("both", "feature")] if "both" in form else []
    return ["none", "din", *(f"{form}@{source}" for source in others), *(f"{one}@{vectors}" for one in fewer)]


def holm(p_N: Floats) -> Floats:
    """The same p, corrected for their number (Holm, 1979); what is not a number is no test and stays so."""
    corrected, tests = np.full(len(p_N), np.nan), np.flatnonzero(np.isfinite(p_N))
    order = tests[np.argsort(p_N[tests], kind="stable")]
    corrected[order] = np.minimum(np.maximum.accumulate(p_N[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Each system with each of its controls: `change` of the mean AUC, corrected `p` over backbones, and `wins`."""
    aucs = rows.pivot_table(index=["backbone", "seed"], columns="system", values="test_auc", sort=False)
    pairs = [(one, other) for one in aucs.columns for other in controls_of(one) if other in aucs.columns]
    lines, p_seeds = [], []
    for system, control in pairs:
        pair = aucs[[system, control]].dropna()
        means = pair.groupby("backbone").mean()
        by_backbone = [of_one for _, of_one in pair.groupby("backbone")]
        p_seeds.append([paired(of_one) if gain(of_one) > 0 else 1.0 for of_one in by_backbone])
        names = {"system": system, "control": control, "backbones": len(means)}
        lines.append(names | {"change": gain(means), "p": paired(means)})
    table = pd.DataFrame(lines, columns=["system", "control", "backbones", "change", "p"])
    corrected = holm(np.array([p for of_pair in p_seeds for p in of_pair], float))
    ends = np.cumsum([len(of_pair) for of_pair in p_seeds])[:-1]
    wins = [int((part < SIGNIFICANT).sum()) for part in np.split(corrected, ends)] if pairs else []
    return table.assign(p=holm(table["p"].to_numpy(float)), wins=wins)


def gain(pair: pd.DataFrame) -> float:
    """Of a column's mean against that of the second one, relative."""
    ours, theirs = pair.to_numpy(float).mean(0)
    return float(ours / theirs - 1)


def paired(pair: pd.DataFrame) -> float:
    """p of a t-test of a column against the second one, row by row; not a number where there is one row."""
    ours, theirs = pair.to_numpy(float).T
    return float(stats.ttest_rel(ours, theirs).pvalue) if len(ours) > 1 else float("nan")
