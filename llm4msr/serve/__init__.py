"""The HTTP endpoint and its client.

A new field of a request or response is added in `llm4msr/bundle/messages.py`, a new route in `routes.py`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`build` for `import_path: llm4msr.serve:build`, imported on demand: the client has no need of Ray Serve."""
    if name == "build":
        from llm4msr.serve.app import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
