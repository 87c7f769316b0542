"""The picture of a quality report: gains over the plain backbone, by system or as histories grow."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

FIRST = "-first-"
"""In the name of a data set, before the number of each user's first events that it is cut to."""


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Of each run of a model that is not plain, `gain`: the change of its AUC against the plain one, in percent."""
    keys = ["data", "backbone", "seed"]
    plain = table[table["system"] == "none"].drop_duplicates(keys)[[*keys, "test_auc"]]
    both = table[table["system"] != "none"].merge(plain, on=keys, suffixes=("", "_plain"))
    return both.assign(gain=100 * (both["test_auc"] / both["test_auc_plain"] - 1))


def picture(file: Path, table: pd.DataFrame) -> None:
    """Gains over the plain backbone: against the length of histories where sets are cut to some, else by system."""
    found = gains(table)
    panel, _, length = zip(*(data.partition(FIRST) for data in found["data"]), strict=True)
    found = found.assign(panel=panel, length=length)
    is_curve = all(length)
    sets = list(dict.fromkeys(panel))
    height = 4 if is_curve else 1.5 + 0.2 * found["system"].nunique()
    figure, axes = plt.subplots(1, len(sets), figsize=(4.5 * len(sets) + 1.5, height), squeeze=False, sharey=is_curve)
    for axis, name in zip(axes[0], sets, strict=True):
        (_draw_curve if is_curve else _draw_systems)(axis, found[found["panel"] == name])
        axis.set_title(name)
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False)
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "llm4msr"  # the same runs give the same file
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _draw_curve(axis: Any, found: pd.DataFrame) -> None:
    for system, own in found.assign(length=found["length"].astype(int)).groupby("system", sort=False):
        means = own.groupby("length")["gain"].mean()
        axis.plot(means.index, means, "o-", markersize=4, label=str(system))
    lengths = sorted({*found["length"].astype(int)})
    axis.set_xscale("log")
    axis.set_xticks(lengths, lengths)
    axis.minorticks_off()
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel("first interactions of each user")
    axis.set_ylabel("gain of AUC over the plain backbone, %")


def _draw_systems(axis: Any, found: pd.DataFrame) -> None:
    systems = list(dict.fromkeys(found["system"]))
    for backbone, own in found.groupby("backbone", sort=False):
        means = own.groupby("system", sort=False)["gain"].mean()
        axis.plot(means, [systems.index(name) for name in means.index], "o", markersize=4, label=str(backbone))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(systems)), systems)
    axis.invert_yaxis()
    axis.set_xlabel("gain of AUC over the plain backbone, %")
