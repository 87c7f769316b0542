"""Libraries that only some kinds of sources need, and what they raise as one message."""

from collections.abc import Iterator
from contextlib import contextmanager

from llm4msr.errors import LLM4MSRError, MissingExtraError, StorageError
from llm4msr.text import first_line


@contextmanager
def needed_by(kind: str, package: str = "") -> Iterator[None]:
    """Import in the block what this kind of source needs.

    Raises:
        MissingExtraError: it is not installed; the message names the extra, or the package where there is no extra.
    """
    try:
        yield
    except ImportError as error:
        what = package or f"'llm4msr[{kind}]'"
        raise MissingExtraError(f"source.kind = '{kind}': {error}; pip install {what}") from None


@contextmanager
def library_errors(where: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises in the block into one message.

    Raises:
        StorageError: it names the place, what it was read as, and what the library says.
    """
    try:
        yield
    except LLM4MSRError:
        raise
    except Exception as error:  # each library has errors of its own
        why = f"{type(error).__name__}: {first_line(error)}"
        raise StorageError(f"{where}: cannot be read as {what} ({why}); check source.path, name and access") from None
