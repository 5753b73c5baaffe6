"""The tokenizer beside an exported model: the text tokenizer of the run, extended by the tokens of the vocabulary.

Writes what the published AnyGPT folders hold (anygpt-compat 1.2, 1.3): ``added_tokens.json`` (sorted, indented by two)
and ``tokenizer_config.json`` with every added token, none of them special, the source's ``tokenizer.model`` if it has
one; and ``tokenizer.json``, so that nothing needs the SentencePiece library.

White space around added tokens decides ids (anygpt-compat 1.4), and transformers 5 has changed its mind once more. What
is written gives the ids our documents are made of, for ``<document text>`` behind the opening of the text tokenizer (one
space for LLaMA with ``legacy = false``, nothing otherwise):

* ``legacy = false`` stays a ``LlamaTokenizer``: a space in front of the first text of a document, none after a token;
* ``legacy = true`` becomes a plain fast tokenizer with LLaMA's old rule, a space in front of every text, spelled out,
  because transformers 5 leaves it out where the text begins with a space itself;
* a byte-level tokenizer (ours) is left as it is.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, FingerprintMismatch
from shards.sentencepiece import read_sentencepiece
from shards.tokenizer_files import added_tokens, check_added_tokens, folder_fingerprint, has_tokenizer, read_json
from shards.vocabulary import Vocabulary
from train.plan import Plan

_COPIED = ("tokenizer.model", "special_tokens_map.json", "chat_template.jinja")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}
_SPACE = "▁"


def tokenizer_source(plan: Plan) -> Path | None:
    """The folder whose tokenizer an export extends: the config's ``tokenizer``, else that of ``init.from``.

    Returns:
        None if neither is there; a run can do without, its rows are ids already.

    Raises:
        ConfigError: ``tokenizer`` names a folder without one.
        FingerprintMismatch: the data was packed with another text tokenizer.
        DatasetError: the folder has added tokens, under other ids than the data.
    """
    config, vocabulary = plan.config, plan.vocabulary
    if config.tokenizer is not None and not has_tokenizer(config.tokenizer):
        raise ConfigError(
            f"key 'tokenizer': expected tokenizer.json or tokenizer.model in {config.tokenizer}, found neither; give the "
            "folder the data was packed with, or remove the key"
        )
    folder = config.tokenizer or config.init.folder
    if folder is None or not has_tokenizer(folder):
        return None
    if not check_added_tokens(folder, vocabulary) and folder_fingerprint(folder) != vocabulary.text_fingerprint:
        raise FingerprintMismatch(
            f"{folder}: expected the text tokenizer {vocabulary.text_fingerprint} that the data was packed with, found "
            f"{folder_fingerprint(folder)}; set tokenizer to the folder it was packed with"
        )
    return folder


def export_tokenizer(source: Path, vocabulary: Vocabulary, folder: Path) -> None:
    """Write the source's tokenizer with the vocabulary's tokens as ``AutoTokenizer`` loads it."""
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    config = read_json(source / "tokenizer_config.json")
    state = read_json(source / "tokenizer.json") or _state_of_sentencepiece(source / "tokenizer.model")
    if str(config.get("tokenizer_class", "Llama")).startswith("Llama"):
        _spell_out_llama(state, config)
    special, tokens = _special_tokens(state, vocabulary), added_tokens(vocabulary)
    # As published; but a normalizer that puts spaces in front of texts would put one in front of the token's string, too.
    flags = {**_FLAGS, "normalized": state.get("normalizer") is None, "special": False}
    entries = [*special.values(), *({"id": token_id, "content": token, **flags} for token, token_id in tokens.items())]
    state["added_tokens"] = entries
    state["post_processor"] = _begin_with(special[vocabulary.bos_id])
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": special[vocabulary.bos_id]["content"],
        "eos_token": special[vocabulary.eos_id]["content"],
        "pad_token": special[vocabulary.pad_id]["content"],
        **{key: value for key, value in config.items() if value is not None},
        "added_tokens_decoder": {str(entry["id"]): _without_id(entry) for entry in entries},
    }
    _write(folder / "tokenizer.json", state, indent=None, sort_keys=False)
    _write(folder / "tokenizer_config.json", config, indent=2, sort_keys=True)
    _write(folder / "added_tokens.json", tokens, indent=2, sort_keys=True)


def _state_of_sentencepiece(path: Path) -> dict[str, Any]:
    """LLaMA's model as ``tokenizer.json`` has it; how it treats spaces comes later."""
    model = read_sentencepiece(path)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "model": {
            "type": "BPE",
            "unk_token": model.unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": model.vocab,
            "merges": [list(pair) for pair in model.merges],
        },
    }


def _spell_out_llama(state: dict[str, Any], config: dict[str, Any]) -> None:
    """Set LLaMA's treatment of spaces by its flag ``legacy`` (absent means true, as for our text tokenizer)."""
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if config.get("legacy") in (None, True):
        prepended = {"type": "Prepend", "prepend": _SPACE}
        state["normalizer"] = {"type": "Sequence", "normalizers": [prepended, replaced]}
        state["pre_tokenizer"] = None
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        state["normalizer"] = None
        metaspace = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
        state["pre_tokenizer"] = metaspace
        config["tokenizer_class"] = "LlamaTokenizer"
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    parts = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    state["decoder"] = {"type": "Sequence", "decoders": parts}


def _special_tokens(state: dict[str, Any], vocabulary: Vocabulary) -> dict[int, dict[str, Any]]:
    """Entries of the source's own added tokens, and of ``<unk>``, ``<s>`` and ``</s>``, by id and in its order."""
    found = {entry["id"]: entry for entry in state.get("added_tokens", []) if entry["id"] < vocabulary.text_size}
    pieces = {token_id: piece for piece, token_id in state["model"]["vocab"].items()}
    for token_id in (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id):
        if token_id not in found:
            flags = {**_FLAGS, "normalized": False, "special": True}
            found[token_id] = {"id": token_id, "content": pieces[token_id], **flags}
    return dict(sorted(found.items()))


def _begin_with(bos: dict[str, Any]) -> dict[str, Any]:
    """Let every text begin with ``<s>``, as documents do."""
    name = bos["content"]
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": name, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + second,
        "special_tokens": {name: {"id": name, "ids": [bos["id"]], "tokens": [name]}},
    }


def _without_id(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "id"}


def _write(path: Path, data: Any, *, indent: int | None, sort_keys: bool) -> None:
    text = json.dumps(data, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
