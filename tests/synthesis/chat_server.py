"""An endpoint of OpenAI's chat completions on loopback that answers by our rules, and misbehaves where it is told to.

``log`` holds the key of every call it got, in their order; the keys are those of :class:`synthesis.calls.Request`, made
from what came over the wire.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from synthesis.calls import Kind, Message, Request
from synthesis.config import TextConfig
from synthesis.llm_rules import RulesWriter

LATE_S = 12.0
Misbehave = Callable[[Request, int], str]
"""What to do with the nth try (from 0) of a request: ``""`` or a key of :data:`FAULTS`."""
FAULTS = {
    "garbage": (200, b"<html>busy</html>"),
    "rate": (429, b"slow down"),
    "refused": (401, b"who are you"),
    "error": (500, b"oops"),
    "empty": (200, b'{"choices": [{"message": {"content": ""}}]}'),
    "nothing": (0, b""),
    "late": (-1, b""),
}


class ChatServer(ThreadingHTTPServer):
    """Answers what :class:`~synthesis.llm_rules.RulesWriter` would, ``delay_s`` later."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, rules: TextConfig, misbehave: Misbehave, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rules, self.misbehave, self.delay_s = RulesWriter(rules), misbehave, delay_s
        self.lock = threading.Lock()
        self.log: list[str] = []
        self.requests: dict[str, Request] = {}
        self.tries: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        request = read_request(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        with self.server.lock:
            nth = self.server.tries[request.key]
            self.server.tries[request.key] += 1
            self.server.log.append(request.key)
            self.server.requests[request.key] = request
        fault = self.server.misbehave(request, nth)
        if not fault:
            time.sleep(self.server.delay_s)
            self._send(200, _completion(self.server.rules, request))
            return
        status, body = FAULTS[fault]
        if status < 0:
            time.sleep(LATE_S)
            status, body = 200, _completion(self.server.rules, request)
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        if not status:
            self.close_connection = True
            return
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            # Who asked has gone.
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def chat_server(
    rules: TextConfig, *, misbehave: Misbehave = lambda _request, _nth: "", delay_s: float = 0.0
) -> Iterator[ChatServer]:
    """A server; ``rules`` has the lists that its rules read."""
    server = ChatServer(rules, misbehave, delay_s)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def read_request(body: dict[str, Any]) -> Request:
    """The request that a body was made of."""
    messages = tuple(Message(one["role"], one["content"]) for one in body["messages"])
    prompt = messages[0].content
    kind: Kind = "topics" if prompt.startswith("Theme: ") else "scenarios" if "\nTopics:\n" in prompt else "dialogues"
    settings = (body["model"], body["temperature"], body["top_p"], body["max_tokens"], body["seed"])
    return Request(kind, messages, *settings)


def _completion(rules: RulesWriter, request: Request) -> bytes:
    answer = asyncio.run(rules.write(request))
    choice = {"message": {"content": answer.text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": answer.input_tokens, "completion_tokens": answer.output_tokens}
    return json.dumps({"choices": [choice], "usage": usage, "model": request.model}).encode()
