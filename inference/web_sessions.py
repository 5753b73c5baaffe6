"""Chats of the web page: one a browser, told by a cookie; so many at once, and the one silent longest is let go.

A session owns a folder with what was sent to it and what the model made for it. Files are served by the names in
``files`` alone, so whoever asks for anything else, be it another's picture or a path out of the folder, finds nothing.
The folder goes with its session.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.chat_session import ChatSession
from inference.web_uploads import Upload
from shards.errors import AnyGPTError


class NoRoom(AnyGPTError):
    """Every session is being answered, so that none can be let go for a new one."""


@dataclass(slots=True, eq=False)
class WebSession:
    """One browser's chat.

    Attributes:
        token: what its cookie holds.
        uploads: id -> file that was sent.
        files: name in an address -> file inside ``folder``.
        shown: what the page shows, for when it is opened again: dictionaries as ``web_page.js`` draws them.
        idle: set while no answer is being written or waited for.
    """

    token: str
    folder: Path
    chat: ChatSession
    uploads: dict[str, Upload] = field(default_factory=dict[str, Upload])
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    shown: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def new_path(self, suffix: str = "") -> Path:
        """A path in the folder that nothing has yet; its name cannot be guessed."""
        return self.folder / f"{secrets.token_urlsafe(9)}{suffix}"

    def publish(self, path: Path) -> str:
        """The name under which a file is served from now on; one that lies elsewhere is copied into the folder first.

        The name in an address is the file's name.
        """
        if not path.resolve().is_relative_to(self.folder.resolve()):
            path = Path(shutil.copyfile(path, self.new_path(path.suffix)))
        self.files[path.name] = path
        return path.name

    def clear(self) -> None:
        """Forget all that was said and delete every file."""
        self.chat.clear()
        self.uploads.clear()
        self.files.clear()
        self.shown.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)


class SessionStore:
    """The sessions that are kept, least recently used first."""

    def __init__(self, folder: Path, make_chat: Callable[[Path], ChatSession], *, most: int) -> None:
        """``make_chat`` begins a chat whose media are saved in the folder it is given."""
        self.folder, self.make_chat, self.most = folder, make_chat, most
        self._sessions: OrderedDict[str, WebSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, token: str | None) -> WebSession | None:
        """The session of a cookie, used now; None if there is none or it was let go."""
        if token is None or token not in self._sessions:
            return None
        self._sessions.move_to_end(token)
        return self._sessions[token]

    def open(self) -> WebSession:
        """Begin a session; the one silent longest is let go if there are as many as may be.

        Raises:
            NoRoom: all of them wait for answers.
        """
        if len(self._sessions) >= self.most:
            idle = next((one for one in self._sessions.values() if one.idle.is_set()), None)
            if idle is None:
                raise NoRoom(f"all {self.most} places are taken and waiting for answers; try again in a minute")
            self._let_go(idle)
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(parents=True)
        session = WebSession(secrets.token_urlsafe(24), folder, self.make_chat(folder))
        self._sessions[session.token] = session
        return session

    def close(self) -> None:
        """Let all of them go."""
        for session in list(self._sessions.values()):
            self._let_go(session)

    def _let_go(self, session: WebSession) -> None:
        del self._sessions[session.token]
        shutil.rmtree(session.folder, ignore_errors=True)
