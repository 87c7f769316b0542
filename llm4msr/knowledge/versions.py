"""Versions of the knowledge below one storage: listed, numbered, and what they hold. No Ray here."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

from pydantic import ValidationError
from upath import UPath

from llm4msr import storage
from llm4msr.config import Config
from llm4msr.errors import StorageError
from llm4msr.knowledge.buckets import Bucket, ByBucket, bucket_of_shard
from llm4msr.knowledge.index import RowGroup
from llm4msr.storage import Manifest, StageOutput


def root(config: Config) -> UPath:
    """The folder of all versions."""
    return storage.path(config.root) / "extract"


def finished_versions(config: Config) -> list[StageOutput]:
    """The finished versions below this storage, the newest first.

    Raises:
        StorageError: one is damaged.
    """
    all_versions = root(config)
    folders = [folder for folder in all_versions.iterdir() if folder.is_dir()] if all_versions.exists() else []
    outputs = [output for folder in folders if (output := storage.open_output(folder))]
    return sorted(outputs, key=lambda v: (v.manifest.info.get("version", 0), v.manifest.created), reverse=True)


def readable_manifests(config: Config) -> list[Manifest]:
    """Those of the finished versions below this storage that can be read, the newest first."""
    all_versions = root(config)
    folders = [folder for folder in all_versions.iterdir() if folder.is_dir()] if all_versions.exists() else []
    found = [manifest for folder in folders if (manifest := _read_manifest(folder))]
    return sorted(found, key=lambda manifest: (_number(manifest), manifest.created), reverse=True)


class VersionSummary(TypedDict):
    """A version in the list of all."""

    version: int
    name: str
    created: str
    model: str
    users: int
    kept: int
    """Rows of earlier versions that it refers to."""
    forgotten: int
    failed: int
    bytes: int
    """Of its own files."""


def list_versions(config: Config) -> list[VersionSummary]:
    """A summary of each finished version, the newest first.

    Raises:
        StorageError: one is damaged.
    """
    return [_summarize(version) for version in finished_versions(config)]


def _summarize(version: StageOutput) -> VersionSummary:
    m = version.manifest
    return {
        "version": m.info.get("version", 0),
        "name": version.folder.name,
        "created": m.created,
        "model": m.inputs["model"],
        "users": m.info["users"],
        "kept": m.info.get("kept", 0),
        "forgotten": m.info.get("forgotten", 0),
        "failed": m.failed,
        "bytes": sum(record.bytes for record in m.files.values()),
    }


def index_files(root: UPath, names: Iterable[str]) -> dict[str, list[RowGroup]]:
    """Name -> index files of each version, the newest version first, out of the `names` of all files below `root`.

    A version without a manifest counts too: its index files were written last, so what they name exists, or is looked
    for once more; thus a version with a lost or damaged file is mended by making it again.
    """
    versions: dict[str, list[str]] = {}
    for name in sorted(names):
        version, _, inner = name.partition("/")
        if Bucket.parse(inner):
            versions.setdefault(version, []).append(inner)
    manifests = {version: _read_manifest(root / version) for version in versions}
    newest_first = sorted(versions, key=lambda version: _number(manifests[version]), reverse=True)
    return {
        version: [
            RowGroup(str(root / version / name), _checksum(manifests[version], name)) for name in versions[version]
        ]
        for version in newest_first
    }


class Held(NamedTuple):
    """What earlier versions hold of a bucket: index files of each version, the newest first, and shards that exist."""

    indexes: list[list[RowGroup]]
    shards: list[str]


class Earlier:
    """What earlier versions hold, bucket by bucket.

    Args:
        indexes: index files of each version, the newest first.
        names: of all files below the folder of the versions.
    """

    def __init__(self, indexes: Iterable[Sequence[RowGroup]], names: Iterable[str]):
        self._indexes = [by_bucket(files) for files in indexes]
        self._shards = ByBucket((bucket_of_shard(name), name) for name in sorted(names) if "/vectors/" in name)

    def of(self, bucket: Bucket) -> Held:
        """What may hold a row of the bucket."""
        indexes = [files for version in self._indexes if (files := version.overlapping(bucket))]
        return Held(indexes, self._shards.overlapping(bucket))


def by_bucket(files: Iterable[RowGroup]) -> ByBucket[RowGroup]:
    """Index files by their buckets."""
    return ByBucket((file.bucket, file) for file in files if file.bucket)


def version_number(version: UPath) -> int:
    """1, 2 and so on in the order in which versions were begun; 0 for one without a readable manifest."""
    return _number(_read_manifest(version))


def _read_manifest(version: UPath) -> Manifest | None:
    try:
        return Manifest.model_validate_json(storage.read_bytes(version / storage.MANIFEST))
    except (StorageError, ValidationError):
        return None


def _number(manifest: Manifest | None) -> int:
    number = manifest.info.get("version", 0) if manifest else 0
    return number if isinstance(number, int) else 0


def _checksum(manifest: Manifest | None, name: str) -> str:
    return manifest.files[name].digest if manifest and name in manifest.files else ""
