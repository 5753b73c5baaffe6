"""A document: one sample written as token ids by a template; what packing joins into rows."""

from __future__ import annotations

from dataclasses import dataclass

from shards.vocabulary import TokenIds


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids of one sample, drawn once.

    Attributes:
        sample_id: of the sample it was drawn from.
        draw: which draw of that sample this is (0, 1, ...).
        direction: what the template asks for: ``image_to_text``, ``text_to_image``, ..., ``interleaved``, ``dialogue``.
        token_ids: (n,) ids in the vocabulary, ``<s>`` first and ``</s>`` last.
        loss_spans: half-open, ordered, disjoint ranges of ``token_ids`` that are trained on.
        borders: ascending positions in (0, n) where a longer-than-a-row document may be split: segment borders only,
            never inside a medium.
        exchanges: of a dialogue, instead of borders: the half-open range of every question with its answer. What lies
            before the first opens every piece that a long dialogue is split into, what lies behind the last closes it;
            what lies between two is white space.
    """

    sample_id: str
    draw: int
    direction: str
    token_ids: TokenIds
    loss_spans: tuple[tuple[int, int], ...]
    borders: tuple[int, ...] = ()
    exchanges: tuple[tuple[int, int], ...] = ()
