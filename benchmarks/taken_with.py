"""Items described by what was taken with them: Beauty with longer titles, for `benchmarks.quality readings`.

    python -m benchmarks.taken_with     # data/amazon-beauty -> data/beauty-taken-with

Behind its own title, an item gets those of the two items that share most users with it in training rows: the cosine of
their users, of whom at least two must have taken both, so that no title repeats one user's own past.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.quality_grids import CONFIGS, DATA_SEED, SETS
from llm4msr import config, ray_session
from llm4msr.data import partitions
from llm4msr.data.split import TRAIN
from llm4msr.pipeline import prepare
from llm4msr.storage import StageOutput

NEIGHBOURS, SHARED_USERS = 2, 2
"""Titles that an item gets at most, and users who must have taken both."""
OWN, OTHER = 90, 45
"""Characters kept of an item's own title and of another one's: a prompt reads 200 in all."""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/quality", help="the --root of benchmarks.quality")
    parser.add_argument("--out", type=Path, default=Path("data/beauty-taken-with"))
    return parser


def main() -> None:
    options = parser().parse_args()
    ray_session.connect()
    file, settings = SETS["beauty-implicit"]
    overrides = [f"storage={options.root}/{file}", f"seed={DATA_SEED}", *settings]
    loaded = config.load(str(CONFIGS / f"{file}.toml"), overrides)
    neighbours = taken_with(trained(prepare(loaded)))
    source = Path(loaded.source.path)
    items = pd.read_csv(source / "items.csv.gz", dtype=str)
    items["title"] = described(items.set_index("item_id")["title"], neighbours).to_numpy()
    options.out.mkdir(parents=True, exist_ok=True)
    items.to_csv(options.out / "items.csv.gz", index=False)
    shutil.copy(source / "interactions.csv.gz", options.out)
    print(items["title"].sample(5, random_state=1).to_string(index=False))
    print(f"{neighbours['item'].nunique()} of {len(items)} items got other titles -> {options.out}")


def trained(data: StageOutput) -> pd.DataFrame:
    """The training events: columns `user` (a number) and `item` (its id)."""
    events = pa.concat_tables(partitions.read_each(data, "events", ["user", "item", "split"])).to_pandas()
    ids = data.table("items.parquet", ["item_id"])["item_id"].to_numpy(zero_copy_only=False)
    events = events[events["split"] == TRAIN]
    return pd.DataFrame({"user": events["user"], "item": ids[events["item"]]}).drop_duplicates()


def taken_with(events: pd.DataFrame) -> pd.DataFrame:
    """The nearest others of each item, nearest first: columns `item` and `other`."""
    pairs = events.merge(events.rename(columns={"item": "other"}), on="user").query("item != other")
    shared = pairs.value_counts(["item", "other"]).rename("users").reset_index()
    shared = shared[shared["users"] >= SHARED_USERS]
    takers = events["item"].value_counts()
    sizes = shared["item"].map(takers) * shared["other"].map(takers)
    shared["cosine"] = shared["users"] / np.sqrt(sizes.to_numpy(float))
    nearest = shared.sort_values(["item", "cosine", "other"], ascending=[True, False, True])
    return nearest.groupby("item").head(NEIGHBOURS)[["item", "other"]]


def described(title: "pd.Series[str]", neighbours: pd.DataFrame) -> "pd.Series[str]":
    """Each item's title with those of its neighbours; `title` by item id."""
    whole = title.fillna("")
    neighbours = neighbours[neighbours["other"].map(whole) != ""]
    others = neighbours["other"].map(whole.str.slice(0, OTHER)).groupby(neighbours["item"]).agg("; ".join)
    others = others.reindex(title.index)
    return whole.where(others.isna(), whole.str.slice(0, OWN) + ". Taken with: " + others)


if __name__ == "__main__":
    main()
