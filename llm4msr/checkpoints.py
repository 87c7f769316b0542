"""What Ray Train keeps of an interrupted training: a folder for each checkpoint, and a file that names them."""

import json

from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.fit import Checkpoint
from llm4msr.progress import say

FOLDER = "checkpoints"
_STATE = "checkpoint_manager_snapshot.json"


def forget_unreadable(folder: UPath) -> None:
    """Delete what no training can go on from, which Ray would fail at: after a full disk, a lost file, or a crash.

    If the latest checkpoint is whole, it stays, and only what is left of unfinished ones goes.
    """
    kept = folder / FOLDER
    there = storage.files_below(kept)
    if not there:
        return
    try:
        state = json.loads(storage.read_bytes(kept / _STATE))
        named = {str(one["checkpoint_dir_name"]) for one in state["checkpoint_results"]}
        latest = str(state["latest_checkpoint_result"]["checkpoint_dir_name"])
        Checkpoint.load(kept / latest)
    except (StorageError, ValueError, KeyError, TypeError):
        say(f"  {folder.name}: no checkpoint that can be read; training begins anew")
        storage.remove(kept)
        return
    there_too = {name.partition("/")[0] for name in there if "/" in name}
    for name in there_too - named:
        storage.remove(kept / name)
