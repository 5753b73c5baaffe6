"""``anygpt-web CONFIG [--set ...]``: a chat with the model as a page in the browser.

Serves until Ctrl-C. Media live in a temporary folder and go with their chat; what is to stay is saved from the page.
"""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from configs.load import parse_args
from inference.command_cli import open_in_silence, run_command
from inference.web_config import ServerConfig, WebConfig
from shards.errors import ConfigError

_PROGRAM = "anygpt-web"
_BACKLOG = 128
_SHUTDOWN_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page; exit 0 ended, 1 failed, 2 the config is wrong or the extra ``web`` is missing."""
    args = parse_args(_PROGRAM, "A chat with the model as a page in the browser.", argv)
    return run_command(_PROGRAM, args, WebConfig, serve)


def serve(config: WebConfig) -> int:
    """Open the model, print the address, serve until told to stop.

    Raises:
        ConfigError: aiohttp is not installed, or nothing can be bound to the address.
    """
    try:
        from aiohttp import web

        from inference.web_app import WebApp, is_loopback
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ConfigError(
            "the web page needs aiohttp, which is not installed; install the extra: pip install 'anygpt-data[web]'"
        ) from error
    with bind(config.server) as listener, tempfile.TemporaryDirectory(prefix="anygpt-web-") as folder:
        runtime = open_in_silence(config)
        app = WebApp(Path(folder), runtime, config.server)
        if not is_loopback(config.server.host):
            print(
                f"server.host = {config.server.host}: whoever reaches this machine can use the model", file=sys.stderr
            )
        print(f"AnyGPT chat: {address(listener)}   (Ctrl-C ends it)", flush=True)
        web.run_app(
            app.application(),
            sock=listener,
            print=None,
            access_log=None,
            # A person who leaves, or presses Stop, ends the answer.
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN_S,
        )
    return 0


def bind(server: ServerConfig) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address is none of this machine, or taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # A server that was just ended leaves its port in waiting; it may be taken again at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"server.host = {server.host}, server.port = {server.port}: expected an address to bind to, found: {error}; "
            "choose another, or port 0 for a free one"
        ) from error
    return listener


def address(listener: socket.socket) -> str:
    """Where a browser finds what listens; the name of an open address is that of this machine."""
    host, port = str(listener.getsockname()[0]), listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


if __name__ == "__main__":
    raise SystemExit(main())
