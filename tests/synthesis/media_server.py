"""An endpoint for media on loopback that behaves as well or as badly as a test wants."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import soundfile
from PIL import Image

Reply = tuple[int, dict[str, str], bytes]


class MediaServer(ThreadingHTTPServer):
    """Answers by ``replies``, one a call, the last one for ever; ``calls`` is what it was asked."""

    daemon_threads = True

    def __init__(self, replies: list[Callable[[], Reply]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = replies
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: MediaServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.calls.append((self.path, body, self.headers.get("authorization", "")))
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        self._send(self.server.replies[min(len(self.server.calls), len(self.server.replies)) - 1]())
        with self.server.lock:
            self.server.at_once -= 1

    def do_GET(self) -> None:
        self._send((200, {"content-type": "image/png"}, png_bytes()))

    def _send(self, reply: Reply) -> None:
        status, headers, data = reply
        try:
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            # Who asked has gone.
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def serve(*replies: Callable[[], Reply]) -> Iterator[MediaServer]:
    """A server with these replies."""
    server = MediaServer(list(replies))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def png_bytes(*, plain: bool = False) -> bytes:
    pixels = np.full((64, 64, 3), 9, np.uint8) if plain else np.random.default_rng(1).integers(0, 256, (64, 64, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def wav_bytes(length_s: float, *, rate_hz: int = 24_000) -> bytes:
    sound = 0.4 * np.sin(2 * np.pi * 300 * np.arange(round(length_s * rate_hz)) / rate_hz)
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, rate_hz, format="WAV")
    return buffer.getvalue()


def picture(data: bytes | None = None) -> Reply:
    """As OpenAI's images answer."""
    text = base64.b64encode(data or png_bytes()).decode()
    return 200, {"content-type": "application/json"}, json.dumps({"data": [{"b64_json": text}]}).encode()


def says(data: object, status: int = 200, **headers: str) -> Callable[[], Reply]:
    """Bytes, or JSON."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    kind = "audio/wav" if isinstance(data, bytes) else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: (status, {"content-type": kind, **named}, raw)


def hangs(seconds: float) -> Callable[[], Reply]:
    """Answers, but late."""

    def reply() -> Reply:
        time.sleep(seconds)
        return picture()

    return reply
