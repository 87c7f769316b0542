"""The API token. Where none is set, whoever reaches the endpoint may ask it."""

import os

from llm4msr.errors import ConfigError

VARIABLE = "LLM4MSR_API_TOKEN"
"""The environment variable that holds the token."""


def read() -> bytes:
    """The token of this node's environment, without the line end of the file it may come from; empty if there is none.

    Raises:
        ConfigError: it is set but blank, although whoever set it relies on it.
    """
    value = os.environb.get(VARIABLE.encode(), b"")
    if value and not value.strip():
        raise ConfigError(f"{VARIABLE} is set but blank; give it a value, or unset it")
    return value.strip()


def check_node(required: bool) -> None:
    """Refuse to serve openly on this node what asks for a token on the node that deployed it.

    Raises:
        ConfigError: a token is required, and this node has none.
    """
    if not read() and required:
        raise ConfigError(f"{VARIABLE} is set where this was started but not on this node; set it on every node")
