"""Music with metadata, as AnyGPT's authors collected it (Youtube-Music-1M).

Source: AnyGPT section 4.1 and appendix A: title, description, keywords, playlists and lyrics of each piece as JSON, told in
a sentence by a language model. The layout on disk was never published; this one is an assumption.
Reads: ``<id>.json`` and the mp3 or wav it names, in one folder per first character (or any folders).
Yields: one sample per piece, with the slots ``music`` and ``caption``. A piece is a name: sound and JSON of one name
are one input, and so is either of them alone. Lyrics are never part of a caption.

The caption is the ``caption`` field where there is one. Else it is put together offline, by :func:`describe`: the title and
artist, then what of the description is prose (no links, no licence lines), then the keywords. A real captioner is a plug:
``options.captioner = "package.module:function"`` names any function from the JSON's fields to a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from pipeline.reading.files import find_files, read_media, relative_name
from pipeline.reading.lines import parse_record
from pipeline.reading.options import CorpusOptions
from pipeline.reading.outcomes import Outcome, attempt, numbers
from pipeline.reading.text import clean_text
from pipeline.samples import RawMedia, RawSample, RawText, Source
from shards.errors import ConfigError, SampleError
from shards.records import Provenance
from shards.vocabulary import Modality

CORPUS = "youtube_music"
SOUND_EXTENSIONS = (".mp3", ".wav", ".flac", ".ogg", ".opus")
MAX_METADATA_BYTES = 4 << 20
Captioner = Callable[[Mapping[str, Any]], str]

_LINK = re.compile(r"\S*(?:https?://|www\.)\S*")
_NO_PROSE = re.compile(r"licen[cs]|copyright|creative commons|\bCC[ -]BY\b|subscribe|follow us|©", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class Options(CorpusOptions):
    """Where a caption comes from."""

    caption_from: Literal["caption_or_metadata", "caption", "metadata"] = "caption_or_metadata"
    captioner: str = ""
    """``package.module:function`` in place of the offline rule."""
    max_description_sentences: int = 2
    max_keywords: int = 8


def sources(root: Path, options: Options) -> list[Source]:
    """Every folder that holds pieces, in the order of the names."""
    patterns = ["*.json", *(f"*{extension}" for extension in SOUND_EXTENSIONS)]
    folders = sorted({path.parent for path in find_files(root, patterns, corpus=CORPUS)})
    return [Source(folder, len(_pieces(folder))) for folder in folders]


def read(root: Path, source: Source, options: Options, *, start: int = 0, stop: int | None = None) -> Iterator[Outcome]:
    """Pieces ``[start, stop)`` of a folder, in the order of the names."""
    captioner = _captioner(options)
    for piece in islice(_pieces(source.path), start, stop):
        path = source.path / f"{piece}.json"
        sample_id = f"{CORPUS}/{relative_name(path, root).removesuffix('.json')}"
        yield attempt(
            lambda path=path, sample_id=sample_id: _sample(root, path, options, captioner, sample_id),
            sample_id=sample_id,
            corpus=CORPUS,
            provenance=Provenance(relative_name(path, root)),
        )


def describe(fields: Mapping[str, Any], *, max_description_sentences: int = 2, max_keywords: int = 8) -> str:
    """The offline rule: a caption of what the metadata says about a piece, and nothing else.

    Returns:
        E.g. ``"Vibe Ace" by Kevin MacLeod. Relaxed jazz instrumental. Keywords: jazz, vibraphone.``; empty if title,
        description and keywords are all missing.
    """
    title, artist = _text(fields.get("title")), _text(fields.get("artist"))
    sentences = _prose(_text(fields.get("description")))[:max_description_sentences]
    listed = fields.get("keywords")
    keywords = [word for word in map(_text, listed if isinstance(listed, list) else []) if word and word != artist]
    parts = []
    if title:
        parts.append(f'"{title}" by {artist}.' if artist else f'"{title}".')
    parts += sentences
    if keywords:
        parts.append(f"Keywords: {', '.join(keywords[:max_keywords])}.")
    return " ".join(parts)


def _sample(root: Path, path: Path, options: Options, captioner: Captioner, sample_id: str) -> RawSample:
    fields = _fields(path)
    caption = clean_text(_caption(fields, options, captioner), what="caption")
    audio = fields.get("audio")
    sound = read_media(path.parent, audio, root=root)
    return RawSample(
        sample_id,
        CORPUS,
        options.split,
        (RawMedia("music", Modality.MUSIC, sound), RawText("caption", caption)),
        Provenance(relative_name(path, root), str(audio)),
        numbers(fields, ("duration",)),
    )


def _fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SampleError("metadata_missing", f"expected {path.name} beside the sound, found none")
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise SampleError("metadata_too_large", f"{path.name}: expected at most {MAX_METADATA_BYTES} bytes, found more")
    return parse_record(path.read_bytes(), what=path.name)


def _caption(fields: Mapping[str, Any], options: Options, captioner: Captioner) -> Any:
    if options.caption_from == "caption":
        return fields.get("caption")
    written = fields.get("caption")
    if options.caption_from == "caption_or_metadata" and written is not None:
        return written
    return captioner(fields) or None


def _captioner(options: Options) -> Captioner:
    if not options.captioner:
        return lambda fields: describe(
            fields, max_description_sentences=options.max_description_sentences, max_keywords=options.max_keywords
        )
    module, colon, name = options.captioner.partition(":")
    try:
        found = getattr(import_module(module), name) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"options.captioner = {options.captioner!r}: expected package.module:function, {error}"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"options.captioner = {options.captioner!r}: expected package.module:function, found no function"
        )
    return cast(Captioner, found)


def _pieces(folder: Path) -> list[str]:
    wanted = {".json", *SOUND_EXTENSIONS}
    return sorted({path.stem for path in folder.iterdir() if path.suffix.lower() in wanted and path.is_file()})


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _prose(description: str) -> list[str]:
    """Sentences that tell of the music: without links, and without what is about rights or channels."""
    found: list[str] = []
    for sentence in _SENTENCE_END.split(description):
        if sentence and not _LINK.search(sentence) and not _NO_PROSE.search(sentence):
            found.append(sentence if sentence.endswith((".", "!", "?")) else f"{sentence}.")
    return found
