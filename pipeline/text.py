"""The text tokenizer: any Hugging Face folder, or a small byte-level BPE trained on the user's own texts.

Only text goes through it. Dialogue markers and media have ids of their own in the :class:`Vocabulary`, so the added
tokens, templates and special tokens of a folder are set aside: ``encode("<s>")`` spells the three characters out.

What a tokenizer does to white space in front of a text decides ids, and libraries changed their minds about it
(anygpt-compat 1.4). Three behaviours cover what is out there, each a rule about one space:

* ``never``: nothing is added (byte-level BPE, ours);
* ``first``: a document begins with one space, texts inside it get none (LLaMA, ``legacy = false``);
* ``always``: every text that follows a token, and not other text, gets one (LLaMA, ``legacy = true``).

The rule is read from the folder and carried out here, on a copy of the tokenizer that adds nothing by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

from pipeline.sentencepiece import open_sentencepiece
from shards.errors import ConfigError, TokenizerError
from shards.tokenizer_files import folder_fingerprint, read_json
from shards.writer import commit_bytes

SPECIALS = ("<unk>", "<s>", "</s>")

# Words with the space before them, digits one by one, runs of signs, white space. No piece reaches over the front of a
# space, which is what lets a prompt end anywhere before one (see pieces.py).
_WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Text to ids in ``[0, size)`` and back.

    Attributes:
        size: number of ids of the text alone, special tokens included, added media tokens not.
        dummy_space: ``never``, ``first`` or ``always``, as the module docstring has it.
        fingerprint: 16 hex digits over the folder's tokenizer files.
    """

    size: int
    bos_id: int
    eos_id: int
    pad_id: int
    dummy_space: str
    fingerprint: str
    _raw: Tokenizer

    @property
    def opening(self) -> str:
        """Text in front of every document."""
        return " " if self.dummy_space == "first" else ""

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text, none of them special.

        Args:
            continues: other text stands right before this one, with no marker or medium between.
        """
        lead = " " if self.dummy_space == "always" and not continues else ""
        return self._raw.encode(lead + text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Inverse of :meth:`encode` for a text that does not continue another; special ids are dropped.

        Raises:
            TokenizerError: an id outside ``[0, size)``; media and markers are not text.
        """
        if outside := [token_id for token_id in ids if not 0 <= token_id < self.size]:
            raise TokenizerError(f"expected text ids in [0, {self.size}), found {outside[0]}; take media out first")
        special = {self.bos_id, self.eos_id, self.pad_id}
        text = self._raw.decode([token_id for token_id in ids if token_id not in special], skip_special_tokens=False)
        return text[1:] if self.dummy_space == "always" and text.startswith(" ") else text


def load_text_tokenizer(folder: Path) -> TextTokenizer:
    """Open a Hugging Face folder: ``tokenizer.json``, or LLaMA's ``tokenizer.model``.

    Raises:
        TokenizerError: no tokenizer files there, or files that do not open.
    """
    backend = _open_backend(folder)
    state = json.loads(backend.to_str())
    config = read_json(folder / "tokenizer_config.json")
    raw = Tokenizer.from_str(json.dumps(_without_additions(state)))
    size = raw.get_vocab_size(with_added_tokens=False)
    names = _special_names(config)
    special = {role: found for role, name in names.items() if (found := backend.token_to_id(name)) is not None}
    if "bos" not in special or "eos" not in special:
        raise TokenizerError(
            f"{folder}: expected ids for {names}, found {special}; name the special tokens in tokenizer_config.json"
        )
    # Some folders keep their special tokens behind the model's own pieces.
    size = max(size, *(token_id + 1 for token_id in special.values()))
    pad_id = special.get("pad", special.get("unk", 0))
    dummy_space = _dummy_space(state, config)
    return TextTokenizer(size, special["bos"], special["eos"], pad_id, dummy_space, folder_fingerprint(folder), raw)


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int, folder: Path, *, words: Sequence[str] = ()
) -> TextTokenizer:
    """Train a byte-level BPE and save it as a Hugging Face folder; equal texts in any order give equal bytes.

    Args:
        vocab_size: ids wanted, 3 specials and 256 bytes included; fewer come out if the texts have no more pairs.
        words: words that must end as one piece (with the space before them), whatever their share of the texts.

    Raises:
        ConfigError: ``vocab_size`` too small for the bytes, or for the words asked for.
    """
    least = len(SPECIALS) + len(ByteLevel.alphabet())
    if vocab_size < least:
        raise ConfigError(f"vocab_size: expected at least {least} (specials and bytes), found {vocab_size}; raise it")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = cast(
        Any, PreTokenizers([Split(Regex(_WORDS), "isolated"), ByteLevel(False, use_regex=False)])
    )
    tokenizer.decoder = cast(Any, ByteLevelDecoder())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_words(texts, words), trainer)
    commit_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    commit_bytes(folder / "tokenizer_config.json", _config_bytes())
    trained = load_text_tokenizer(folder)
    if split := [word for word in words if len(trained.encode(f" {word}")) != 1]:
        raise ConfigError(
            f"vocab_size: {vocab_size} ids leave {len(split)} wanted words in pieces, {split[:5]}; raise it"
        )
    return trained


def _with_words(texts: Iterable[str], words: Sequence[str]) -> Iterator[str]:
    """The texts, then the wanted words once for every time the commonest word was seen, so that they merge first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.split())
        yield text
    often = max(counts.values(), default=1)
    line = "".join(f" {word}" for word in words)
    for _ in range(often if words else 0):
        yield line


def _config_bytes() -> bytes:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
    }
    return (json.dumps(config, indent=2) + "\n").encode()


def _open_backend(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            return Tokenizer.from_file(str(path))
        if (folder / "tokenizer.model").is_file():
            return open_sentencepiece(folder / "tokenizer.model")
    except TokenizerError:
        raise
    # tokenizers raises whatever its parser raises, bare Exception among it; the folder and the fix are what helps.
    except Exception as error:
        raise TokenizerError(f"{folder}: expected a tokenizer that opens, found {error!r}; copy it again") from error
    raise TokenizerError(
        f"{folder}: expected tokenizer.json or tokenizer.model, found neither; run anygpt-text, or give the folder of a "
        "checkpoint that holds its tokenizer"
    )


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    for role in ("bos", "eos", "unk", "pad"):
        value = config.get(f"{role}_token")
        text = cast(Mapping[str, Any], value).get("content") if isinstance(value, Mapping) else value
        if text:
            names[role] = str(text)
    return names


def _dummy_space(state: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The rule for LLaMA classes is their flag ``legacy``, absent means true; for others what their own file does."""
    if str(config.get("tokenizer_class", "")).startswith("Llama"):
        return "always" if config.get("legacy") in (None, True) else "first"
    parts = [*_parts(state.get("normalizer")), *_parts(state.get("pre_tokenizer"))]
    if any(part["type"] == "Prepend" for part in parts):
        return "always"
    schemes = [str(part.get("prepend_scheme", "always")) for part in parts if part["type"] == "Metaspace"]
    return schemes[0] if schemes else "never"


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """A component of ``tokenizer.json``, or each one of a sequence of them."""
    if not isinstance(component, dict):
        return
    table = cast(dict[str, Any], component)
    inner = next((table[key] for key in ("normalizers", "pretokenizers", "decoders") if key in table), None)
    if inner is None:
        yield table
    else:
        for part in inner:
            yield from _parts(part)


def _without_additions(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same model with nothing that adds, finds or strips anything around a text."""
    plain = json.loads(json.dumps(state))
    plain |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    for place in ("normalizer", "pre_tokenizer", "decoder"):
        kept = [part for part in _parts(plain.get(place)) if part["type"] not in ("Prepend", "Strip")]
        for part in kept:
            if part["type"] == "Metaspace":
                part["prepend_scheme"] = "never"
            if part["type"] == "ByteLevel":
                part["add_prefix_space"] = False
        plain[place] = _sequence(place, kept)
    return plain


def _sequence(place: str, parts: list[dict[str, Any]]) -> dict[str, Any] | None:
    key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[place]
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"type": "Sequence", key: parts}
