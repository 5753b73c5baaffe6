"""Media to fit or judge a codec on: a stable choice from any corpora, decoded.

Which items are chosen depends on the seed and their ids alone, not on the order of files or on what else is drawn. Of a
huge corpus only some sources are opened, in an order that is drawn as well.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.corpus import BoundReader, CorpusConfig, load_corpus
from pipeline.media import make_decoder
from pipeline.samples import RawMedia, RawSample, Source
from pipeline.tokenizers.base import Medium
from shards.errors import CorpusError, SampleError
from shards.vocabulary import Modality

_CANDIDATES_PER_ITEM = 4


@dataclass(frozen=True, slots=True)
class ChosenMedia:
    """Decoded media in the order of corpora and files, and how many of the chosen could not be decoded."""

    media: tuple[Medium, ...]
    num_undecodable: int


@dataclass(frozen=True, slots=True)
class _Candidate:
    rank: int
    corpus: int
    place: int
    raw: RawMedia


def choose_media(
    corpora: Sequence[CorpusConfig], modality: Modality, count: int, *, seed: int, max_s: float
) -> ChosenMedia:
    """At most ``count`` media of one modality, the first ``max_s`` seconds of sounds.

    Raises:
        CorpusError: none is found, or a corpus folder is not there.
    """
    candidates = (
        candidate
        for number, config in enumerate(corpora)
        for candidate in islice(_candidates(number, config, modality, seed), _CANDIDATES_PER_ITEM * count)
    )
    chosen = heapq.nsmallest(count, candidates, key=lambda candidate: candidate.rank)
    chosen.sort(key=lambda candidate: (candidate.corpus, candidate.place))
    media = [medium for medium in _decode(chosen, corpora, max_s) if medium is not None]
    if not media:
        where = ", ".join(str(config.root) for config in corpora)
        raise CorpusError(
            f"{where or 'no corpus'}: expected {modality} to fit a codec on, found none; name other corpora"
        )
    return ChosenMedia(tuple(media), len(chosen) - len(media))


def source_facts(config: CorpusConfig) -> list[tuple[str, int, int]]:
    """(path below the root, inputs, bytes) of each source: what tells one state of a corpus from another."""
    sources = load_corpus(config).sources()
    return [(_relative(source, config), source.num_items, source.path.stat().st_size) for source in sources]


def _candidates(number: int, config: CorpusConfig, modality: Modality, seed: int) -> Iterator[_Candidate]:
    reader = load_corpus(config)
    numbered = enumerate(reader.sources())
    drawn = sorted(numbered, key=lambda pair: _rank(seed, config.dataset_name, _relative(pair[1], config)))
    for source_number, source in drawn:
        for place, (key, raw) in enumerate(_media(reader, source, modality)):
            yield _Candidate(_rank(seed, config.dataset_name, key), number, (source_number << 40) + place, raw)


def _media(reader: BoundReader, source: Source, modality: Modality) -> Iterator[tuple[str, RawMedia]]:
    for result in reader.read(source):
        if isinstance(result, RawSample):
            for position, segment in enumerate(result.segments):
                if isinstance(segment, RawMedia) and segment.modality is modality:
                    yield f"{result.sample_id} {position}", segment


def _decode(chosen: Iterable[_Candidate], corpora: Sequence[CorpusConfig], max_s: float) -> Iterator[Medium | None]:
    """One medium for each candidate, None for what cannot be decoded."""
    decoders = [make_decoder(config.media, config.windows) for config in corpora]
    for candidate in chosen:
        try:
            medium = decoders[candidate.corpus](candidate.raw)[0].medium
        except SampleError:
            yield None
            continue
        yield (
            medium if medium.ndim > 1 else medium[: _longest(corpora[candidate.corpus], candidate.raw.modality, max_s)]
        )


def _longest(config: CorpusConfig, modality: Modality, max_s: float) -> int:
    return max(1, round(max_s * config.media.sound(modality).sample_rate_hz))


def _relative(source: Source, config: CorpusConfig) -> str:
    return (
        source.path.relative_to(config.root).as_posix() if source.path.is_relative_to(config.root) else source.path.name
    )


def _rank(*key: object) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest(), "big")
