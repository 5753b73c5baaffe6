"""``tokenizer.model`` as a tokenizer that splits as LLaMA's library does, without that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace

from shards.sentencepiece import read_sentencepiece


def open_sentencepiece(path: Path) -> Tokenizer:
    """A tokenizer with the pieces, ids and merges of a ``tokenizer.model``.

    Raises:
        TokenizerError: not such a file, or one of a kind LLaMA does not use.
    """
    model = read_sentencepiece(path)
    tokenizer = Tokenizer(
        BPE(vocab=model.vocab, merges=model.merges, unk_token=model.unknown, fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = cast(
        Any, Metaspace(prepend_scheme="always" if model.dummy_prefix else "never", split=False)
    )
    tokenizer.decoder = cast(Any, Decoders([Replace("▁", " "), ByteFallback(), Fuse()]))
    return tokenizer
