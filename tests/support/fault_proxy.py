"""An S3 server's bad days: a proxy in front of it that answers 503, waits, and cuts connections now and then."""

import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

FAULTS = ("503", "cut before", "cut after", "slow")
_HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "server", "date"}


class FaultProxy:
    """`with FaultProxy(endpoint) as proxy:` serves at `proxy.endpoint`; `proxy.faults` counts what it did.

    `cut after` passes the request on and cuts the answer: what was asked for has happened, and nobody hears of it.
    Of the files whose path matches `hold`, the first `passing` are written; with the next the client is left waiting,
    and `held` is set.
    """

    def __init__(self, endpoint: str, share: float = 0.2, seed: int = 0, hold: str = "", passing: int = 0):
        self.behind, self.share, self.faults = endpoint, share, Counter[str]()
        self.held, self._hold, self._passing, self._over = threading.Event(), hold, passing, threading.Event()
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self._client = httpx.Client(timeout=60)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def forward(self) -> None:
                proxy.forward(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._client.close()

    def forward(self, request: BaseHTTPRequestHandler) -> None:
        """Pass one request on, or spoil it."""
        if request.headers.get("Transfer-Encoding"):  # of no client of ours: it must not pass as an empty body
            self._answer(request, 411, {}, b"<Error><Code>MissingContentLength</Code></Error>")
            return
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self._holds(request):
            self.held.set()
            self._over.wait()
            request.close_connection = True
            return
        with self._lock:
            fault = self._draw.choice(FAULTS) if self._draw.random() < self.share else ""
            self.faults[fault] += 1
        if fault == "503":
            self._answer(request, 503, {}, b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
            return
        if fault == "slow":
            time.sleep(0.3)
        if fault != "cut before":
            headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "expect")}
            url = f"{self.behind}{request.path}"
            with self._client.stream(request.command, url, headers=headers, content=body) as answer:
                data = b"".join(answer.iter_raw())
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
                length = answer.headers.get("content-length")
                status = answer.status_code
        if fault.startswith("cut"):
            request.close_connection = True
            request.connection.close()
            return
        self._answer(request, status, kept, data, length)

    def _holds(self, request: BaseHTTPRequestHandler) -> bool:
        if not self._hold or request.command != "PUT" or not re.search(self._hold, request.path):
            return False
        with self._lock:
            self._passing -= 1
            return self._passing < 0

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, length: str | None = None
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", length if request.command == "HEAD" and length else str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
