"""A chat as one HTML page with its pictures and players, which needs no other file and no network.

What was said is read from the token ids, as the model read and wrote it. A medium is shown as its file where that is
there, small enough, and of a kind that every browser shows; otherwise as its codes decode. All text is escaped, and the page
allows no scripts. Equal chats with equal files give equal pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import cast

from inference.chat_files import Said
from inference.chat_history import ChatForm
from inference.chat_messages import TextDelta
from inference.chat_reading import ClosedMedium, read_ids
from inference.chat_session import ChatSession
from inference.runtime import Runtime
from pipeline.tokenizers.base import Medium, Picture
from shards.errors import AnyGPTError
from shards.media_files import data_uri, png_bytes, wav_bytes
from shards.modality import Modality
from shards.writer import commit_bytes

MAX_FILE_BYTES = 8 << 20
"""A larger file is not put into the page; what its codes decode to is."""
_MEDIA_TYPES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
)
_RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}
_WHAT = {Modality.IMAGE: "Picture", Modality.SPEECH: "Speech", Modality.MUSIC: "Music"}


@dataclass(frozen=True, slots=True)
class ShownMedium:
    """A medium of a page; ``uri`` is None where it cannot be shown, and ``note`` says why."""

    modality: Modality
    uri: str | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """What one side said: texts, what was heard, and media in order."""

    is_user: bool
    parts: tuple[TextDelta | ShownMedium, ...]


def write_transcript(path: Path, session: ChatSession, *, title: str = "Chat") -> None:
    """Write the page of a chat; a file of that name is replaced, in one step."""
    commit_bytes(path, transcript_page(session, title=title).encode())


def transcript_page(session: ChatSession, *, title: str = "Chat") -> str:
    """The page of a chat, exchanges that the model is no longer shown among it."""
    body: list[str] = []
    for number, said in enumerate(session.said):
        if number == session.dropped and number:
            body.append('<p class="line">From here on is what the model still knows.</p>')
        body += [turn_html(turn) for turn in _turns(said, session.form, session.runtime)]
    return fill_transcript(title, body or ['<p class="line">Nothing was said.</p>'])


def fill_transcript(title: str, body: Sequence[str]) -> str:
    """A whole page around pieces of HTML."""
    template = Template(_beside("transcript.html"))
    return template.substitute(title=escape(title), css=_beside("transcript.css"), body="\n".join(body))


def turn_html(turn: ShownTurn) -> str:
    """One turn as HTML, every text escaped."""
    who, kind = ("You", "user") if turn.is_user else ("Assistant", "assistant")
    inner = "\n".join(_parts_html(turn.parts))
    return f'<article class="{kind}">\n<h2>{who}</h2>\n{inner}\n</article>'


def _turns(said: Said, form: ChatForm, runtime: Runtime) -> Iterator[ShownTurn]:
    files = iter(said.files)
    for is_user, ids in ((True, form.user_ids(said.exchange.asked)), (False, said.exchange.answered)):
        read = read_ids(ids, runtime.vocabulary, runtime.text_tokenizer)
        parts = tuple(
            _show(part, next(files, None), runtime) if isinstance(part, ClosedMedium) else part for part in read
        )
        yield ShownTurn(is_user, _without_colon(parts) if is_user else parts)


def _without_colon(parts: tuple[TextDelta | ShownMedium, ...]) -> tuple[TextDelta | ShownMedium, ...]:
    """A user's turn without the colon behind the name."""
    first = parts[0] if parts else None
    if not isinstance(first, TextDelta):
        return parts
    words = first.text.removeprefix(":").lstrip()
    return (*([TextDelta(words)] if words else []), *parts[1:])


def _show(medium: ClosedMedium, file: Path | None, runtime: Runtime) -> ShownMedium:
    if file is not None and (uri := _file_uri(file)) is not None:
        return ShownMedium(medium.modality, uri)
    try:
        decoded = runtime.decode(medium.modality, medium.codes)
        return ShownMedium(medium.modality, _decoded_uri(medium.modality, decoded, runtime))
    except AnyGPTError as error:
        return ShownMedium(medium.modality, None, str(error))


def _file_uri(file: Path) -> str | None:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return None
        data = file.read_bytes()
    except OSError:
        return None
    media_type = _media_type(data)
    return data_uri(data, media_type) if media_type else None


def _media_type(data: bytes) -> str | None:
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12])
    return next((media_type for magic, media_type in _MEDIA_TYPES if data.startswith(magic)), None)


def _decoded_uri(modality: Modality, medium: Medium, runtime: Runtime) -> str:
    if modality.is_sound:
        return data_uri(wav_bytes(medium, runtime.sample_rate_hz(modality)), "audio/wav")
    return data_uri(png_bytes(cast(Picture, medium)), "image/png")


def _parts_html(parts: Iterable[TextDelta | ShownMedium]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, TextDelta):
            start = '<p class="heard"><span class="label">Heard</span> ' if part.heard else "<p>"
            yield f"{start}{escape(part.text)}</p>"
        elif part.uri is None:
            yield f'<p class="note">{_what(part)} that could not be decoded. {escape(part.note)}</p>'
        elif part.modality.is_sound:
            caption = f"<figcaption>{_what(part)}</figcaption>"
            yield f'<figure>{caption}<audio controls preload="metadata" src="{part.uri}"></audio></figure>'
        else:
            yield f'<figure><img alt="{_what(part)}" src="{part.uri}"></figure>'


def _what(medium: ShownMedium) -> str:
    return _WHAT.get(medium.modality, str(medium.modality).capitalize())


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
