"""The folder a training run starts from: config, weights, text tokenizer; are they there, whole, and each other's?

Keys and shapes are read from the headers of the weight files and compared with the network that ``config.json`` describes,
built without memory; 14 GB of values are not read for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from configs.load import load_config
from inference.diagnosis import Check, Diagnosis, Examination, attempt
from inference.doctor_files import safetensors_shapes
from inference.model import VOCABULARY_NAME
from pipeline.tokenizers.codecs import WeightFile
from pipeline.tokenizers.weights import flat_state, read_state
from shards.errors import CheckpointError
from train.config import TrainConfig

_PUBLISHED_AS = "fnlp/AnyGPT-base, a LLaMA-2-7B folder, or checkpoints/final of another run"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_TEXT = ("tokenizer.model", "tokenizer.json")
_SHOWN = 3
# Tables that older versions of transformers stored and newer ones compute.
_COMPUTED = ".rotary_emb.inv_freq"

Shapes = dict[str, tuple[int, ...]]


def diagnose_start(path: Path, overrides: tuple[str, ...], examination: Examination) -> Iterator[Diagnosis]:
    """One diagnosis of ``init.from``.

    Raises:
        ConfigError: the config is wrong.
    """
    folder = load_config(path, TrainConfig, overrides).init.folder
    return iter([_diagnose_folder(folder, path, examination)])


def weight_files_of(folder: Path) -> list[Path]:
    """The files that hold the weights of a Hugging Face folder, in order.

    Raises:
        CheckpointError: there are none, or a file of the index is not there.
    """
    for name in _WHOLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            absent = [one for one in names if not (folder / one).is_file()]
            if absent:
                raise CheckpointError(
                    f"{index}: expected {len(names)} weight files beside it, found {len(names) - len(absent)}; "
                    f"missing: {', '.join(absent[:_SHOWN])}"
                )
            return [folder / one for one in names]
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(f"{folder}: expected {' or '.join(_WHOLE)}, or an index of several, found none")


def check_weights(folder: Path) -> str:
    """Hold the tensors of a folder to the network of its ``config.json``; says what fits.

    Raises:
        CheckpointError: no LLaMA, a missing file, or a tensor that is missing, left over or of another shape.
    """
    path = folder / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("model_type") != "llama":
        raise CheckpointError(f"{path}: expected model_type 'llama', found {fields.get('model_type')!r}")
    found: Shapes = {}
    for file in weight_files_of(folder):
        found |= _shapes(file)
    found = {key: shape for key, shape in found.items() if not key.endswith(_COMPUTED)}
    expected = _expected_shapes(folder)
    if fields.get("tie_word_embeddings") and "lm_head.weight" not in found:
        expected.pop("lm_head.weight", None)
    faults = [
        *(f"{key} is missing" for key in sorted(set(expected) - set(found))),
        *(f"{key} is not known" for key in sorted(set(found) - set(expected))),
        *(
            f"{key} is {found[key]} instead of {shape}"
            for key, shape in sorted(expected.items())
            if found.get(key, shape) != shape
        ),
    ]
    if faults:
        raise CheckpointError(
            f"{folder}: expected the {len(expected)} tensors that its config.json describes, found {len(faults)} faults: "
            f"{'; '.join(faults[:_SHOWN])}{' ...' if len(faults) > _SHOWN else ''}"
        )
    rows = expected["model.embed_tokens.weight"][0]
    return f"{len(found)} tensors as its config.json says; {rows:,} token ids"


def _diagnose_folder(folder: Path | None, source: Path, examination: Examination) -> Diagnosis:
    title = "language model"
    if folder is None:
        check = Check("ok", "init.from", "not set: the run starts from random weights and needs no file")
        return Diagnosis(title, source, "", (), (check,))
    files = examination.files([WeightFile("init.from", folder, "the weights a run starts from", _PUBLISHED_AS)])
    if files[0].stops:
        check = Check("skipped", "keys", "a file is missing or wrong; see above")
        return Diagnosis(title, source, "", files, (check,))
    note, check = attempt("keys", lambda: check_weights(folder))
    keys = check if note is None else Check("ok", "keys", note)
    return Diagnosis(title, source, "", files, (keys, _check_text_tokenizer(folder)))


def _check_text_tokenizer(folder: Path) -> Check:
    there = [name for name in _TEXT if (folder / name).is_file()]
    if there:
        return Check("ok", "text tokenizer", ", ".join(there))
    if (folder / VOCABULARY_NAME).is_file():
        note = f"none in the folder; {VOCABULARY_NAME} says by fingerprint which one it is"
        return Check("skipped", "text tokenizer", note)
    return Check("missing", "text tokenizer", f"expected {' or '.join(_TEXT)} in {folder}, found neither")


def _shapes(file: Path) -> Shapes:
    if file.suffix == ".safetensors":
        return safetensors_shapes(file)
    return {key: tuple(tensor.shape) for key, tensor in flat_state(read_state(file), file).items()}


def _expected_shapes(folder: Path) -> Shapes:
    config = cast(Any, LlamaConfig.from_pretrained(folder, local_files_only=True))
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
