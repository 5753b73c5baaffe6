"""From a layout file and a text tokenizer to a :class:`Vocabulary`; or from a checkpoint's own tokenizer files.

A layout says which markers and media follow the text, in which order. How many text ids there are comes from the
tokenizer bound to it. The ids of a published checkpoint are never assumed: they are read from its ``added_tokens.json``
(or the newer places transformers writes them to), and every medium must be one contiguous run there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.load import Config, load_config
from pipeline.text import TextTokenizer, load_text_tokenizer
from shards.errors import ConfigError, DatasetError
from shards.tokenizer_files import VOCABULARY_NAME, check_added_tokens, read_added_tokens, read_json
from shards.vocabulary import Vocabulary, from_added_tokens, lay_out

UINT16_IDS = 1 << 16


class MediumLayout(Config):
    """One medium's block: ``codebook_size * levels`` code ids, then ``start``, then ``end``."""

    name: str
    prefix: str
    start: str
    end: str
    codebook_size: int = Field(gt=0)
    levels: int = Field(gt=0)
    """Levels the language model reads (speech 1, music 4), not those kept at rest."""


class VocabularyLayout(Config):
    """What a file in ``configs/vocabulary`` holds."""

    name: str
    text_size: int | None = Field(default=None, gt=0)
    """Ids of the text; None takes the size of the text tokenizer."""
    markers: tuple[str, ...]
    media: tuple[MediumLayout, ...]
    later_markers: tuple[str, ...] = ()
    """Markers that a later stage of training adds: behind the media, so that every id before them stays what it was."""
    dtype: Literal["uint16", "uint32"] | None = None
    """Refuse a vocabulary that needs a wider type than this at rest; None takes what is needed."""


def load_vocabulary(
    path: Path, *, text_tokenizer: TextTokenizer | None = None, overrides: Sequence[str] = ()
) -> Vocabulary:
    """Read a layout file and bind it to a text tokenizer, if one is given.

    Raises:
        ConfigError: the file is wrong, strings or sizes clash, or the ids do not fit ``dtype``; names file, key and fix.
    """
    return build_vocabulary(
        load_config(path, VocabularyLayout, overrides), text_tokenizer=text_tokenizer, where=str(path)
    )


def build_vocabulary(
    layout: VocabularyLayout, *, text_tokenizer: TextTokenizer | None = None, where: str = "layout"
) -> Vocabulary:
    """Number a layout: text, markers, each medium in order, then later markers."""
    _check_strings(layout, where)
    media = [medium.model_dump() for medium in layout.media]
    if text_tokenizer is None:
        if layout.text_size is None:
            raise ConfigError(
                f"{where}: key 'text_size': absent, so a text tokenizer must be given; run anygpt-text first"
            )
        vocabulary = lay_out(layout.name, text_size=layout.text_size, markers=layout.markers, media=media)
        return _checked_dtype(_with_later_markers(vocabulary, layout), layout, where)
    if layout.text_size not in (None, text_tokenizer.size):
        raise ConfigError(
            f"{where}: key 'text_size': expected {text_tokenizer.size}, the size of the text tokenizer, found "
            f"{layout.text_size}; give the tokenizer this layout was made for, or remove the key"
        )
    vocabulary = lay_out(
        layout.name,
        text_size=text_tokenizer.size,
        markers=layout.markers,
        media=media,
        text_fingerprint=text_tokenizer.fingerprint,
        bos_id=text_tokenizer.bos_id,
        eos_id=text_tokenizer.eos_id,
        pad_id=text_tokenizer.pad_id,
    )
    return _checked_dtype(_with_later_markers(vocabulary, layout), layout, where)


def vocabulary_from_checkpoint(
    folder: Path, layout: VocabularyLayout, *, num_embeddings: int | None = None
) -> tuple[Vocabulary, TextTokenizer]:
    """The vocabulary of a checkpoint, from its own tokenizer files, and its text tokenizer.

    Args:
        layout: the strings that may be there; ids, order and unknown extra markers come from the folder.
        num_embeddings: rows of the checkpoint's embedding, if known.

    Raises:
        DatasetError: no added tokens, a medium that is not one contiguous run, too few embedding rows, or an export of
            ours whose tokenizer and ``vocabulary.json`` disagree.
    """
    text_tokenizer = load_text_tokenizer(folder)
    if (folder / VOCABULARY_NAME).is_file():
        return _checked_rows(_exported_vocabulary(folder), folder, num_embeddings), text_tokenizer
    added = read_added_tokens(folder)
    media = [medium.model_dump() for medium in layout.media]
    first_added = min((added[name] for name in added if name in _own_strings(layout)), default=None)
    if first_added is None:
        raise DatasetError(
            f"{folder}: expected AnyGPT's added tokens, found none; give the folder of an AnyGPT checkpoint"
        )
    vocabulary = replace(
        from_added_tokens(layout.name, text_size=first_added, added_tokens=added, media=media),
        bos_id=text_tokenizer.bos_id,
        eos_id=text_tokenizer.eos_id,
        pad_id=text_tokenizer.pad_id,
        text_fingerprint=text_tokenizer.fingerprint,
    )
    return _checked_rows(vocabulary, folder, num_embeddings), text_tokenizer


def _exported_vocabulary(folder: Path) -> Vocabulary:
    """What our own export says, so that data packed with it fits its weights; its tokenizer files must say the same."""
    vocabulary = Vocabulary.from_json(read_json(folder / VOCABULARY_NAME))
    if not check_added_tokens(folder, vocabulary):
        raise DatasetError(
            f"{folder}: expected the tokens of {VOCABULARY_NAME} in the tokenizer beside it, found none; export the model "
            "again, or pack with text_tokenizer and vocabulary"
        )
    return vocabulary


def _checked_rows(vocabulary: Vocabulary, folder: Path, num_embeddings: int | None) -> Vocabulary:
    if num_embeddings is not None and num_embeddings < vocabulary.size:
        raise DatasetError(
            f"{folder}: expected at least {vocabulary.size} embedding rows for its tokenizer, found {num_embeddings}; "
            "tokenizer and weights are of different checkpoints"
        )
    return vocabulary


def _own_strings(layout: VocabularyLayout) -> set[str]:
    return {*layout.markers, *layout.later_markers, *(f"<{medium.prefix}0>" for medium in layout.media)}


def _check_strings(layout: VocabularyLayout, where: str) -> None:
    """Every string stands for one id; two that are equal would make the text form ambiguous."""
    strings = [*layout.markers, *layout.later_markers]
    for medium in layout.media:
        strings += [medium.start, medium.end, f"<{medium.prefix}0>"]
    twice = sorted({text for text in strings if strings.count(text) > 1 or not text})
    names = [medium.name for medium in layout.media]
    twice += sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{where}: expected every marker, prefix and medium once, found {twice[0]!r} again; rename it"
        )


def _with_later_markers(vocabulary: Vocabulary, layout: VocabularyLayout) -> Vocabulary:
    later = {marker: vocabulary.size + number for number, marker in enumerate(layout.later_markers)}
    return replace(vocabulary, markers={**vocabulary.markers, **later})


def _checked_dtype(vocabulary: Vocabulary, layout: VocabularyLayout, where: str) -> Vocabulary:
    if layout.dtype == "uint16" and vocabulary.size > UINT16_IDS:
        raise ConfigError(
            f"{where}: key 'dtype': expected at most {UINT16_IDS} ids for uint16, found {vocabulary.size}; set dtype = "
            '"uint32", or use a smaller text tokenizer'
        )
    return vocabulary


def vocabulary_facts(vocabulary: Vocabulary) -> Mapping[str, int]:
    """Ids a modality, for a plan or a report: ``{"text": 1030, "image": 8194, ...}``, markers counted as text."""
    media = {name: block.num_codes + 2 for name, block in vocabulary.blocks.items()}
    return {"text": vocabulary.size - sum(media.values()), **media}
