"""From what a user writes for a place to a path: local, with `~` and `file://`, or on any storage that fsspec knows."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from upath import UPath

from llm4msr.errors import MissingExtraError, StorageError
from llm4msr.storage import s3
from llm4msr.text import mask

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
"""Scheme -> the extra that installs its package."""


def path(uri: str | os.PathLike[str]) -> UPath:
    """A pathlib-like path for a local path (`~` and `~user` are home folders), `file://` or any fsspec URI.

    Credentials and the endpoint of `s3://` come from the usual AWS variables and files, those of other stores from
    where their packages look for them; a URI of S3 holds none.

    Raises:
        MissingExtraError: the scheme needs a package that is not installed.
        StorageError: the scheme or the user of `~user` is unknown, or the bucket cannot be used.
    """
    text = os.fspath(uri) if isinstance(uri, Path) else str(uri)
    if "\0" in text or "%00" in text:
        raise StorageError(f"{text}: holds a NUL character, which no name has; take it out")
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower() if colon else ""
    if scheme in ("file", "local") and rest.startswith("/"):
        return UPath(_expand_user(_local_path(text, rest))).absolute()
    if not colon or "://" not in text:
        _refuse_half_a_uri(text, scheme, rest)
        text = _expand_user(text)
    elif rest.startswith("//"):
        text = f"{scheme}:{rest}"
    if scheme in ("http", "https"):
        _check_port(text)
    on_s3 = text.startswith(s3.SCHEMES)
    if on_s3 and ("@" in rest[2:].split("/", 1)[0] or mask(text) != text):
        raise StorageError(f"{text}: a URI of S3 holds no keys; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    place = _open(text, scheme, s3.OPTIONS if on_s3 else {})
    if on_s3:
        s3.reach(text)
    return place


def _open(text: str, scheme: str, options: dict[str, object]) -> UPath:
    try:
        place = UPath(text, **options)
        if isinstance(place, Path):
            return place.absolute()
        _ = place.fs, place / "a"  # some connect here, or have no folders
    except Exception as error:  # of whichever package the scheme has
        if scheme in EXTRAS and (isinstance(error, ImportError) or "not known" in str(error)):
            raise MissingExtraError(f"{text}: {error}; pip install 'llm4msr[{EXTRAS[scheme]}]'") from None
        if isinstance(error, ImportError):
            raise MissingExtraError(f"{text}: {error}; install the package of this scheme with pip") from None
        why = str(error) or type(error).__name__
        raise StorageError(f"{text}: {why}; use a local path or a scheme that fsspec knows, such as s3://") from None
    return place


def _check_port(text: str) -> None:
    try:
        _ = urlsplit(text).port
    except ValueError:
        raise StorageError(f"{text}: not a URL with a port; a slash in a password is written %2F") from None


def _refuse_half_a_uri(text: str, scheme: str, rest: str) -> None:
    """Do not take what was meant as a URI for the name of a folder in the working directory."""
    if scheme in ("file", "local"):
        raise StorageError(f"{text}: holds no whole path; write file:///{rest or 'folder'}, or {rest or './file:'}")
    if scheme in {*EXTRAS, "data"}:
        raise StorageError(f"{text}: not a URI; use a local path or a scheme such as s3://, or ./{text} for the name")


def _local_path(text: str, rest: str) -> str:
    """The path in a `file:` URI, where a space may be written %20."""
    host, slash, inner = rest[2:].partition("/") if rest.startswith("//") else ("", "/", rest[1:])
    if not slash and host in ("", "localhost"):
        raise StorageError(f"{text}: names no folder; write file:///folder")
    if host.startswith("~"):
        return unquote(f"{host}/{inner}")
    if host not in ("", "localhost"):
        raise StorageError(f"{text}: '{host}' would be a machine; three slashes begin a path: file:///{host}/{inner}")
    return unquote(inner if inner.startswith("~") else f"/{inner}")


def _expand_user(text: str) -> str:
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise StorageError(f"{text}: no such user, or no home is known; write the whole path, or ./{text} for the name")
    return expanded
