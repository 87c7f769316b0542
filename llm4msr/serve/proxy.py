"""What Ray Serve's HTTP proxy does before any application: it refuses what would make it fail, and adds our headers.

Ray Serve calls `middlewares` in each proxy whose environment names it:
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=llm4msr.serve.proxy:middlewares. `llm4msr serve` sets it.
Each proxy holds what this module imports, so that is neither torch nor pyarrow.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from llm4msr.serve.middleware import ASCIIResponse, ResponseHeaders

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:middlewares"}

_NAMES = ("x-request-id", "x-request-timeout-seconds", "x-request-disconnect-disabled", "x-session-id", "traceparent")
DECODED = frozenset(name.encode() for name in (*_NAMES, "serve-multiplexed-model-id"))
"""Headers that the proxy decodes as UTF-8; it answers 500 where they are something else."""


def middlewares() -> list[Middleware]:
    """For Ray Serve; a request meets the last one first."""
    return [Middleware(ReadableHeaders), Middleware(ResponseHeaders)]


class ReadableHeaders:
    """Answers 400 to a header that the proxy would read but cannot."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        for key, value in scope.get("headers", ()):
            if key.lower().replace(b"_", b"-") in DECODED and not _is_utf8(value):
                message = f"header {key.decode('latin-1')}: write it in UTF-8"
                await ASCIIResponse({"detail": message}, 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
