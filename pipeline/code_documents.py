"""Codes alone as documents: what a model that reads no text is trained on, such as a vocoder's network.

``documents = "codes"`` in a packing config writes the media of each sample and nothing else: start marker, codes frame by
frame, end marker. The vocabulary then has one medium and as many of its levels as the model needs, e.g. all 8 of speech
(``configs/vocabulary/soundstorm.toml``), of which a language model reads the first.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from pipeline.documents import Document
from shards.errors import ConfigError, SampleError
from shards.records import TokenizedSample
from shards.vocabulary import MediaBlock, Vocabulary

DIRECTION = "codes"


def only_block(vocabulary: Vocabulary) -> MediaBlock:
    """The one medium of a vocabulary.

    Raises:
        ConfigError: there are several, or none.
    """
    if len(vocabulary.blocks) != 1:
        raise ConfigError(
            f"vocabulary {vocabulary.name}: expected one medium for documents of codes alone, found "
            f"{sorted(vocabulary.blocks)}; take configs/vocabulary/soundstorm.toml, or one like it"
        )
    return next(iter(vocabulary.blocks.values()))


def code_document(sample: TokenizedSample, vocabulary: Vocabulary, *, draw: int) -> Document:
    """The media of the vocabulary's one kind, one after another; a document may be split between two of them.

    Raises:
        SampleError: ``media_missing``, or codes that do not fit (fewer levels than the vocabulary has, say).
    """
    name = only_block(vocabulary).name
    media = [segment.codes for segment in sample.segments if segment.modality == name and segment.codes is not None]
    if not media:
        raise SampleError("media_missing", f"{sample.sample_id}: expected {name}, found none")
    parts = [vocabulary.media_token_ids(name, codes) for codes in media]
    token_ids = np.concatenate(parts)
    borders = tuple(accumulate(len(part) for part in parts[:-1]))
    return Document(sample.sample_id, draw, DIRECTION, token_ids, ((0, len(token_ids)),), borders)
