"""A model that reads a batch id by id and keeps what it has read.

Prompts of different lengths are padded on the left, and what is padded is neither attended to nor counted in positions.
Rows can be dropped, repeated and reordered between two ids: ended answers leave, hypotheses of a beam branch.

The cache grows with the answers. One of fixed shape is compared in ``benchmarks/decode.py``: on a CPU no gain
could be told from noise, and rows that leave or branch would have to be copied in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from inference.grammar import Rule
from shards.errors import CheckpointError
from shards.vocabulary import TokenIds, Vocabulary


class Stepper:
    """Feeds a causal language model of ``transformers``, in eval mode."""

    def __init__(self, model: Any, vocabulary: Vocabulary, prompts: Sequence[TokenIds]) -> None:
        """Nothing is read yet; the first :meth:`read` takes no ids, and reads the prompts."""
        self._model = model
        self._vocabulary = vocabulary
        self._device = model.device
        self._longest = max(len(prompt) for prompt in prompts)
        self._ids = torch.full((len(prompts), self._longest), vocabulary.pad_id, dtype=torch.long)
        self._mask = torch.zeros((len(prompts), self._longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            self._ids[row, self._longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            self._mask[row, self._longest - len(prompt) :] = 1
        self._ids, self._mask = self._ids.to(self._device), self._mask.to(self._device)
        self._places = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None

    def read(self, ids: Sequence[int] | None = None) -> torch.Tensor:
        """(rows, vocabulary) logits of what comes next.

        Args:
            ids: one more id a row; none the first time.

        Raises:
            CheckpointError: the model's head has fewer rows than the vocabulary.
        """
        if ids is not None:
            self._ids = torch.tensor(ids, device=self._device)[:, None]
            self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
            self._places = self._places[:, -1:] + 1
        output = self._model(
            input_ids=self._ids, attention_mask=self._mask, position_ids=self._places, past_key_values=self._cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self._cache = output.past_key_values
        logits = output.logits[:, -1]
        if logits.shape[-1] < self._vocabulary.size:
            raise CheckpointError(
                f"expected a model with logits for the {self._vocabulary.size} ids of vocabulary "
                f"{self._vocabulary.name}, found {logits.shape[-1]}; grow its embeddings, or choose its own vocabulary"
            )
        # A head may be padded to a round number; what lies above the vocabulary means nothing.
        return logits[:, : self._vocabulary.size]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row may occur more than once."""
        if list(rows) == list(range(len(self._mask))):
            return
        index = torch.tensor(rows, device=self._device)
        self._cache.batch_select_indices(index)
        self._mask, self._places = self._mask[index], self._places[index]


class Columns:
    """The ids of a rule as columns of the logits; a run of ids costs no copy."""

    def __init__(self, rule: Rule, device: torch.device) -> None:
        """Of one rule, on one device."""
        self.modality = rule.modality
        ids = rule.ids
        self._first, self._count = int(ids[0]), len(ids)
        is_run = int(ids[-1]) - self._first + 1 == self._count
        self._index = None if is_run else torch.from_numpy(ids).to(device)

    def __len__(self) -> int:
        """How many ids there are."""
        return self._count

    def take(self, table_BV: torch.Tensor) -> torch.Tensor:
        """(B, K) of the table's columns."""
        if self._index is None:
            return table_BV[:, self._first : self._first + self._count]
        return table_BV.index_select(1, self._index)

    def ids(self, places: torch.Tensor) -> torch.Tensor:
        """Token ids of places among the K."""
        return places + self._first if self._index is None else self._index[places]


class Said:
    """Which ids each answer of a batch has said, markers not counted; nothing is kept where no penalty needs it."""

    def __init__(self, vocabulary: Vocabulary, answers: Sequence[Sequence[int]], device: torch.device) -> None:
        """The answers so far."""
        counted = np.zeros(vocabulary.size, np.bool_)
        counted[: vocabulary.text_size] = True
        for block in vocabulary.blocks.values():
            counted[block.first_id : block.stop_id] = True
        self._counted = torch.from_numpy(counted).to(device)
        table = np.zeros((len(answers), vocabulary.size), np.bool_)
        for row, ids in enumerate(answers):
            table[row, ids] = counted[ids]
        self.table_BV = torch.from_numpy(table).to(device)

    def add(self, ids: Sequence[int]) -> None:
        """One more id a row."""
        index = torch.tensor(ids, device=self.table_BV.device)[:, None]
        self.table_BV.scatter_(1, index, self._counted[index])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        self.table_BV = self.table_BV[torch.tensor(rows, device=self.table_BV.device)]
