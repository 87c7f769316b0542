"""A made-up LLM behind a real OpenAI-style endpoint on loopback, which can also do what endpoints do on bad days."""

import base64
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Pieces = Iterable[bytes]
"""What goes over the wire as it is, piece by piece; then the endpoint hangs up."""


def vector(prompt: str, width: int) -> np.ndarray:
    """What the model makes of a prompt: float32 [D], the same every time."""
    return np.random.default_rng(zlib.crc32(prompt.encode())).standard_normal(width, np.float32)


class LLMEndpoint:
    """`with LLMEndpoint() as endpoint:` listens at `endpoint.url`.

    Args:
        width: of its vectors.
        seconds: that each request takes.
        change: makes another JSON body out of a good one.
    """

    def __init__(self, width: int = 4, seconds: float = 0.0, change: Callable[[dict[str, Any]], Any] | None = None):
        self.width, self.seconds, self.change = width, seconds, change
        self.refused: dict[str, Reply] = {}
        """What is answered to a request with one of these prompts."""
        self.first: list[Reply | Pieces] = []
        """What is answered to the first requests."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def prompts(self) -> list[str]:
        """All prompts of which vectors were wanted, but the one that says hello."""
        return [prompt for body in self.bodies for prompt in body.get("input", []) if prompt != "text"]

    def _reply(self, path: str, body: dict[str, Any]) -> Reply | Pieces:
        with self._lock:
            if self.first:
                return self.first.pop(0)
        asked = [message["content"] for message in body.get("messages", [])]
        for prompt in body.get("input", asked):
            if isinstance(prompt, str) and prompt in self.refused:
                return self.refused[prompt]
        good = self._embed(body) if path == "/v1/embeddings" else self._chat(body)
        return 200, {}, json.dumps(self.change(good) if self.change else good).encode()

    def _embed(self, body: dict[str, Any]) -> dict[str, Any]:
        made = [vector(str(prompt), self.width) for prompt in body["input"]]
        in_base64 = body.get("encoding_format") == "base64"
        texts = [base64.b64encode(one.tobytes()).decode() if in_base64 else one.tolist() for one in made]
        data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(texts)]
        tokens = 7 * len(data)
        return {"data": data[::-1], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def _chat(self, body: dict[str, Any]) -> dict[str, Any]:
        said = f" about {body['messages'][0]['content']} "
        return {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint._lock:
                    endpoint.bodies.append(body)
                    endpoint.keys.append(self.headers.get("authorization", ""))
                    endpoint.at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                time.sleep(endpoint.seconds)
                reply = endpoint._reply(self.path, body)
                with endpoint._lock:
                    endpoint.at_once -= 1
                if not isinstance(reply, tuple):
                    self.close_connection = True
                    with suppress(OSError):  # the client may have hung up first
                        self.wfile.writelines(reply)
                    return
                status, headers, content = reply
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        return Handler
