"""Every error that this package raises on purpose; each message says what is wrong, where, and what to do.

LLM4MSRError               exit code 1
 ├─ InputError              2   the user can correct it
 │   ├─ ConfigError             an unknown key, a wrong value, a missing section
 │   ├─ DataError               a missing column, a bad cell, an empty file
 │   ├─ StorageError            a URI that cannot be read, a damaged or unfinished output
 │   │   ├─ FullDiskError           no space is left
 │   │   └─ EndpointError           an LLM's endpoint cannot be reached, or does not answer as one
 │   └─ MissingExtraError       a package of an optional extra is not installed
 ├─ TooManyFailedError      3   more rows failed than `max_failed_fraction` allows
 └─ InterruptedRunError   130   Ctrl-C; 143 after SIGTERM
"""

from llm4msr.text import mask


class LLM4MSRError(Exception):
    """Base of this package's errors; `exit_code` is what the command line returns. No message contains a password."""

    exit_code = 1

    def __init__(self, message: str = ""):
        self.message = mask(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message  # Ray Data adds advice of its own to `args`


class InputError(LLM4MSRError):
    """Something that the user provided is wrong, and the user can correct it."""

    exit_code = 2


class ConfigError(InputError):
    """The configuration is wrong; the message names the key."""


class DataError(InputError):
    """A data file is wrong; the message names the file, the column and the row."""


class StorageError(InputError):
    """A URI cannot be read, or what it holds is damaged or unfinished."""


class FullDiskError(StorageError):
    """No space is left on a disk; the same command continues once there is some."""


class EndpointError(StorageError):
    """An LLM's endpoint cannot be reached, refuses all requests, or does not answer as one."""


class MissingExtraError(InputError):
    """A package of an optional extra is not installed; the message names the extra."""


class TooManyFailedError(LLM4MSRError):
    """More rows failed than `max_failed_fraction` allows."""

    exit_code = 3


class InterruptedRunError(LLM4MSRError):
    """Ctrl-C or SIGTERM stopped a stage; what is finished is kept."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
