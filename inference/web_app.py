"""The web page's server: one page, and what it asks for.

    GET  /                the page; begins a session and sets its cookie
    GET  /page.css .js    beside this file
    GET  /shown           what was said so far, for a page that is opened again
    POST /upload?name=    a file as the body; what it is, is told from its content
    POST /ask             a message; the answer streams back, a JSON object a line
    POST /clear           forget everything
    GET  /media/NAME      a file of this session, and of no other
    GET  /transcript      the chat as one HTML file

Nothing comes from another host: the page brings its own style and script, and its content security policy lets the browser
load nothing else. There is no login, so the server binds to loopback unless it is told otherwise, and then answers only to
the names of loopback: a page of another site that has its name point here is refused. What changes something must be of a
type that a browser sends to another site only with that site's leave.
"""

from __future__ import annotations

import asyncio
import html
import ipaddress
import json
import mimetypes
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aiohttp import web

from inference.chat_grammar import answerable
from inference.chat_messages import UserMessage
from inference.chat_session import ChatSession
from inference.runtime import Runtime
from inference.transcript import transcript_page
from inference.web_config import ServerConfig
from inference.web_messages import event_line, message_line, read_message, remember, without_paths
from inference.web_queue import ModelQueue, QueueFull
from inference.web_sessions import NoRoom, SessionStore, WebSession
from inference.web_uploads import Refused, check_name, check_size, known_suffix, take_upload
from shards.errors import AnyGPTError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HERE = Path(__file__).parent
_MAX_ASK = 256 * 1024
_STOPPING_S = 2.0
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_LET_GO = "this chat was let go to make room for others; reload the page to begin anew"


class WebApp:
    """The handlers, and what they share."""

    def __init__(self, folder: Path, runtime: Runtime, server: ServerConfig) -> None:
        """Nothing is served yet; see :meth:`application`. The folders of the sessions are made in ``folder``."""
        self.runtime, self.server = runtime, server
        self.modalities = answerable(runtime)
        self.sessions = SessionStore(folder, self._begin, most=server.max_sessions)
        self.queue = ModelQueue(max_waiting=server.max_waiting)
        # Between two ids of an answer, so that one that nobody waits for ends in the midst of a medium, too.
        runtime.model.register_forward_pre_hook(lambda model, arguments: self.queue.check())

    def application(self) -> web.Application:
        """What aiohttp serves."""
        application = web.Application(client_max_size=_MAX_ASK, middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/", self._page),
                web.get("/page.css", lambda request: _file("web_page.css", "text/css")),
                web.get("/page.js", lambda request: _file("web_page.js", "text/javascript")),
                web.get("/shown", self._shown),
                web.post("/upload", self._upload),
                web.post("/ask", self._ask),
                web.post("/clear", self._clear),
                web.get("/media/{name}", self._media),
                web.get("/transcript", self._transcript),
            ]
        )
        application.on_response_prepare.append(_add_headers)
        application.on_cleanup.append(self._close)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_loopback(self.server.host) and not is_loopback(request.url.host or ""):
            return _refuse(
                403, f"expected the address of this machine, found {request.host}; open the one that was printed"
            )
        if request.method == "POST" and request.content_type not in {"application/json", "application/octet-stream"}:
            return _refuse(415, f"expected JSON or bytes, found {request.content_type}; use the page")
        try:
            return await handler(request)
        except Refused as error:
            return _refuse(error.status, str(error))
        except (NoRoom, QueueFull) as error:
            return _refuse(503, str(error))
        except AnyGPTError as error:
            return _refuse(400, str(error))

    async def _page(self, request: web.Request) -> web.StreamResponse:
        session = self.sessions.find(request.cookies.get(self._cookie(request))) or self.sessions.open()
        page = (_HERE / "web_page.html").read_text(encoding="utf-8")
        page = page.replace("{modalities}", " ".join(self.modalities))
        page = page.replace("{voice}", "yes" if self.runtime.config.vocoder else "")
        page = page.replace("{examples}", html.escape(json.dumps(self.runtime.config.examples)))
        page = page.replace("{max_upload_mb}", f"{self.server.max_upload_mb:g}")
        response = web.Response(text=page, content_type="text/html")
        response.set_cookie(self._cookie(request), session.token, httponly=True, samesite="Strict")
        return response

    async def _shown(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._session(request).shown)

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request)
        if len(session.uploads) >= self.server.max_files:
            raise Refused(
                409, f"a chat holds at most {self.server.max_files} files and this one has them all; clear it to go on"
            )
        name = check_name(request.query.get("name", ""))
        limit = self.server.max_upload_mb
        check_size(name, request.content_length or 0, max_mb=limit)
        upload = await take_upload(name, request.content.iter_any(), session.new_path(known_suffix(name)), max_mb=limit)
        key = session.publish(upload.path)
        session.uploads[key] = upload
        return web.json_response({"id": key, "name": upload.name, "kind": upload.kind, "url": f"/media/{key}"})

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request)
        body = await request.text()
        # From its end to the clearing below nothing else is awaited: of two questions at once, one waits.
        await _until_idle(session)
        message = read_message(body, session.uploads, self.modalities)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        session.idle.clear()
        try:
            await response.prepare(request)
            await self._answer(session, message, response)
        except AnyGPTError as error:
            await _write(response, {"kind": "error", "message": without_paths(str(error), session.uploads)})
        finally:
            session.idle.set()
        await response.write_eof()
        return response

    async def _answer(self, session: WebSession, message: UserMessage, response: web.StreamResponse) -> None:
        """Stream an answer; one that breaks off is no part of the chat."""
        answer: list[dict[str, Any]] = []
        async with aclosing(self.queue.stream(lambda: session.chat.stream(message))) as events:
            async for event in events:
                line = event_line(event, session.publish)
                remember(answer, line)
                await _write(response, line)
        session.shown.append({"asked": message_line(message, session.uploads), "answer": answer})

    async def _clear(self, request: web.Request) -> web.StreamResponse:
        session = self._session(request)
        await _until_idle(session)
        session.clear()
        return web.json_response({})

    async def _media(self, request: web.Request) -> web.StreamResponse:
        path = self._session(request).files.get(request.match_info["name"])
        if path is None:
            return _refuse(404, "no such file in this chat")
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return web.FileResponse(path, headers={"Content-Type": media_type})

    async def _transcript(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Disposition": 'attachment; filename="chat.html"'}
        text = transcript_page(self._session(request).chat, title="AnyGPT chat")
        return web.Response(text=text, content_type="text/html", headers=headers)

    def _begin(self, folder: Path) -> ChatSession:
        return ChatSession(self.runtime, seed=self.runtime.config.seed, folder=folder)

    async def _close(self, application: web.Application) -> None:
        self.queue.close()
        self.sessions.close()

    def _session(self, request: web.Request) -> WebSession:
        session = self.sessions.find(request.cookies.get(self._cookie(request)))
        if session is None:
            raise Refused(410, _LET_GO)
        return session

    @staticmethod
    def _cookie(request: web.Request) -> str:
        # Cookies do not tell ports apart, and two models may be served from one machine.
        return f"anygpt-{request.url.port}"


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine and nothing beyond it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _until_idle(session: WebSession) -> None:
    """Wait for the end of an answer that was stopped just now; one that goes on is in the way."""
    try:
        async with asyncio.timeout(_STOPPING_S):
            await session.idle.wait()
    except TimeoutError:
        raise Refused(409, "an answer is being written; wait for its end, or stop it") from None


async def _file(name: str, media_type: str) -> web.StreamResponse:
    return web.Response(text=(_HERE / name).read_text(encoding="utf-8"), content_type=media_type)


async def _write(response: web.StreamResponse, line: dict[str, Any]) -> None:
    await response.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
