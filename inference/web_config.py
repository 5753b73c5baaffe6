"""What the web page is served with: everything of :class:`inference.config.InferenceConfig`, and ``[server]``."""

from __future__ import annotations

from pydantic import Field

from configs.load import Config
from inference.config import InferenceConfig


class ServerConfig(Config):
    """Where the page is served, to how many, and what it takes."""

    host: str = "127.0.0.1"
    """The address to bind to. Any other than loopback opens the model to all who reach this machine: there is no login."""
    port: int = Field(default=0, ge=0, le=65535)
    """0: a free one; the address is printed."""
    max_sessions: int = Field(default=8, ge=1)
    """Chats kept at once, one a browser; the one that was silent longest is let go for a new one."""
    max_waiting: int = Field(default=8, ge=0)
    """People who may wait for the model at once; one more is asked to try again later."""
    max_upload_mb: float = Field(default=25.0, gt=0.0)
    """Largest file that is taken, in millions of bytes."""
    max_files: int = Field(default=32, ge=1)
    """Files that one chat may hold at once."""


class WebConfig(InferenceConfig):
    """A model, and how its page is served."""

    server: ServerConfig = ServerConfig()
