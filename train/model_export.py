"""A trained model as a Hugging Face folder: weights, config, generation config, vocabulary and tokenizer.

From any weights by name: those of an engine, or those of a checkpoint on disk, read one tensor at a time. No network is
built and no engine is needed, so a 7B is exported on a laptop's memory. Rows that pad the vocabulary stay behind: what
is exported has as many ids as the vocabulary, so nothing that decodes with it can draw another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig

from train.backbone import EMBEDDING, HEAD, PREFIX, model_config, token_ids, torch_dtype
from train.checkpoint import Tensors
from train.plan import VOCABULARY_NAME, Plan
from train.tokenizer_export import export_tokenizer, tokenizer_source
from train.weight_files import MAX_SHARD_BYTES, write_weights


def export_model(weights: Tensors, plan: Plan, folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Without a text tokenizer at hand (:func:`train.tokenizer_export.tokenizer_source`) there is none in the folder.

    Args:
        weights: by the backbone's parameter names, in float32; written in the dtype of the run.
    """
    lora = plan.config.lora
    if lora is not None and lora.export == "adapter":
        from train.lora import export_adapter

        export_adapter(weights, plan, folder)
    else:
        write_weights(_exported(weights, plan), folder, max_bytes=max_shard_bytes)
        _write_configs(plan, folder)
    text = json.dumps(plan.vocabulary.to_json(), indent=1, ensure_ascii=False) + "\n"
    (folder / VOCABULARY_NAME).write_text(text, encoding="utf-8")
    source = tokenizer_source(plan)
    if source is not None:
        export_tokenizer(source, plan.vocabulary, folder)


def _exported(weights: Tensors, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Transformers' names and tensors, in the dtype of the run and without padding."""
    if plan.config.lora is not None:
        from train.lora import merged_weights

        pairs = merged_weights(weights, plan)
    else:
        pairs = ((name.removeprefix(PREFIX), torch.from_numpy(weights[name])) for name in weights)
    dtype = torch_dtype(plan.config)
    for name, tensor in pairs:
        rows = plan.vocabulary.size if name in (EMBEDDING, HEAD) else None
        yield name, tensor[:rows].to(dtype)


def _write_configs(plan: Plan, folder: Path) -> None:
    config = model_config(plan)
    config.vocab_size = plan.vocabulary.size
    config.use_cache, config.dtype, config.architectures = True, torch_dtype(plan.config), ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    GenerationConfig(**token_ids(plan.vocabulary)).save_pretrained(folder)
