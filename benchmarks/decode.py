"""Decoding under the grammar: what it forbids, and what it costs.

``answers``: thousands of answers from random logits, each modality and whole turns, under the grammar and free of it; how
many of each can be decoded, judged by the vocabulary's own reading of codes and not by the grammar.

``cost``: the same number of ids with and without the grammar, by two models with random weights: the shape of
``make pretrain`` and one of 28 million parameters, heads padded to a multiple of 128. Loops take turns; a figure is the
median over rounds of the ratio of two neighbouring ones. ``bare`` is a loop by hand that takes the likeliest id and knows
no grammar, no keys and no end; ``static`` is ``bare`` with a cache of fixed shape. ``constraint_overhead`` is the largest
of the medians of grammar to free: 0.05 is five per cent slower. Draws (top-p 0.7) are cheaper under a grammar, for
fewer ids are sorted, so that the largest is that of taking the likeliest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache, StaticCache

from inference.generation import Request, generate
from inference.grammar import AnswerGrammar, FreeGrammar, Grammar, LengthBudget, Stop, TurnGrammar
from inference.sampling import GREEDY, SamplingConfig
from shards.errors import SampleError
from shards.vocabulary import Modality, Vocabulary, lay_out

MEDIA = [
    {"name": "image", "prefix": "👀", "start": "<soim>", "end": "<eoim>", "codebook_size": 8192, "levels": 1},
    {"name": "speech", "prefix": "🗣️", "start": "<sosp>", "end": "<eosp>", "codebook_size": 1024, "levels": 1},
    {"name": "music", "prefix": "🎶", "start": "<somu>", "end": "<eomu>", "codebook_size": 2048, "levels": 4},
]
MARKERS = ["[Human]", "[MMGPT]", "<eoh>", "<eos>", "<-Res->", "<-Ins->"]
SHAPES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 512},
    "28m": {"hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 1376},
}
SAMPLINGS = {"likeliest": GREEDY, "top-p": SamplingConfig(top_p=0.7)}
BUDGETS = {
    Modality.IMAGE: LengthBudget(32, 32),
    Modality.SPEECH: LengthBudget(10, 50),
    Modality.MUSIC: LengthBudget(3, 12),
}
TEXT_BUDGET = LengthBudget(1, 32)
COST_IDS, WARM_UP = 32, 1
# Figure, and the loops whose seconds it divides; of both, what a busy machine disturbs, and what it hardly does.
COMPARED = (
    ("constraint_overhead", "grammar", "free"), ("loop_overhead", "grammar", "bare"), ("static_cache", "static", "bare"),
)  # fmt: skip
CLOCKS = {"": time.perf_counter, "_cpu": time.process_time}


class RandomLogits:
    """Logits of nothing: slices of a table of normal numbers, drawn anew for every id of every answer."""

    device = torch.device("cpu")

    def __init__(self, size: int, *, seed: int, scale: float = 3.0) -> None:
        """``scale`` is the standard deviation; the larger, the fewer ids an answer is likely to take."""
        self._random = np.random.default_rng(seed)
        self._noise = torch.from_numpy(self._random.normal(0.0, scale, 8 * size).astype(np.float32))
        self._size = size

    def __call__(self, *, input_ids: torch.Tensor, **rest: Any) -> SimpleNamespace:
        """As a model of ``transformers`` that remembers nothing."""
        del rest
        offsets = torch.from_numpy(self._random.integers(0, 7 * self._size, len(input_ids)))
        logits = self._noise.unfold(0, self._size, 1)[offsets]
        return SimpleNamespace(logits=logits[:, None], past_key_values=SimpleNamespace(batch_select_indices=len_of))


def len_of(index: torch.Tensor) -> int:
    """A cache that holds nothing keeps whatever rows it is told to."""
    return len(index)


def main(argv: Sequence[str] = ()) -> None:
    """Print both tables, then the figures as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16, help="answers at a time where the cost is measured")
    args = parser.parse_args(list(argv))
    vocabulary = lay_out("tiny", text_size=1024, markers=MARKERS, media=MEDIA)
    figures = {**measure_answers(vocabulary, args.answers), **measure_cost(vocabulary, args.rounds, args.batch)}
    print(json.dumps(figures))


def measure_answers(vocabulary: Vocabulary, count: int, *, batch_size: int = 250) -> Mapping[str, float]:
    """Shares of answers that can be decoded, under the grammar and free."""
    modalities = [Modality.TEXT, *BUDGETS]
    grammars: dict[str, Grammar] = {
        modality: AnswerGrammar(vocabulary, modality, BUDGETS.get(modality, TEXT_BUDGET)) for modality in modalities
    }
    grammars["turn"] = TurnGrammar(vocabulary, BUDGETS, max_ids=40)
    right = {"grammar": 0, "free": 0}
    asked = count // len(grammars)
    print(f"{'answers':>10} {'asked':>6} {'grammar':>8} {'free':>8}   (share that can be decoded)")
    for number, (name, grammar) in enumerate(grammars.items()):
        free = FreeGrammar(vocabulary, Modality.TEXT, max_ids=grammar.max_ids, end_ids=grammar.end_ids)
        shares = {}
        for kind, one in (("grammar", grammar), ("free", free)):
            model = RandomLogits(vocabulary.size, seed=number)
            requests = [Request(f"{name}/{index}", np.array([1])) for index in range(asked)]
            answers = generate(model, requests, one, SamplingConfig(), seed=number, batch_size=batch_size)
            good = sum(is_decodable(ids, name, vocabulary, BUDGETS) for ids in answers)
            right[kind] += good
            shares[kind] = good / asked
        print(f"{name:>10} {asked:>6} {shares['grammar']:>8.4f} {shares['free']:>8.4f}", flush=True)
    total = asked * len(grammars)
    return {"answers": total, "decodable": right["grammar"] / total, "decodable_free": right["free"] / total}


def is_decodable(
    ids: Sequence[int], name: str, vocabulary: Vocabulary, budgets: Mapping[Modality, LengthBudget]
) -> bool:
    """Whether an answer can be decoded and is as long as it may be; ``name`` is a modality or ``turn``."""
    if name == "turn":
        return _is_turn(list(ids), vocabulary, budgets)
    if name == Modality.TEXT:
        special = {vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id}
        return len(ids) > 0 and all(one < vocabulary.text_size and one not in special for one in ids)
    try:
        codes = vocabulary.block(name).to_codes(np.array(ids, np.int64))
    except SampleError:
        return False
    budget = budgets[Modality(name)]
    return budget.least <= len(codes) <= budget.most


def _is_turn(ids: list[int], vocabulary: Vocabulary, budgets: Mapping[Modality, LengthBudget]) -> bool:
    starts = {vocabulary.block(modality).start_id: modality for modality in budgets}
    words: list[int] = []
    media = 0
    while ids:
        modality = starts.get(ids[0])
        if modality is None:
            words.append(ids.pop(0))
            continue
        end_id = vocabulary.block(modality).end_id
        if end_id not in ids or not is_decodable(ids[1 : ids.index(end_id)], modality, vocabulary, budgets):
            return False
        ids, media = ids[ids.index(end_id) + 1 :], media + 1
    return is_decodable(words, Modality.TEXT, vocabulary, budgets) if words else media > 0


@dataclass(frozen=True, slots=True)
class Case:
    """What is decoded: ``COST_IDS`` ids of one modality."""

    modality: Modality
    sampling: str

    def grammar(self, vocabulary: Vocabulary) -> Grammar:
        """An answer of just so many ids; its end follows without asking the model."""
        if self.modality == Modality.TEXT:
            budget = LengthBudget(COST_IDS, COST_IDS)
            return AnswerGrammar(vocabulary, self.modality, budget, stop_on=frozenset({Stop.ASSISTANT_END}))
        frames = COST_IDS // vocabulary.block(self.modality).levels
        return AnswerGrammar(vocabulary, self.modality, LengthBudget(frames, frames))


CASES = [Case(modality, sampling) for sampling in SAMPLINGS for modality in (Modality.TEXT, *BUDGETS)]


def measure_cost(vocabulary: Vocabulary, rounds: int, batch: int) -> Mapping[str, float]:
    """Largest median of each ratio over the cases of both models, by the clock and by the CPU time of the process."""
    print(f"\n{'model':>6} {'ids':>9} {'modality':>8} {'ms an id':>9}   (then by the clock, and by CPU time)")
    print(f"{'':>35} {'to free':>17} {'to bare':>17} {'static to bare':>17}")
    figures: dict[str, float] = {}
    for name, shape in SHAPES.items():
        model, parameters = _model(vocabulary, shape)
        figures[f"parameters_{name}"] = parameters
        prompts = np.random.default_rng(0).integers(3, 1000, (batch, 24))
        requests = [Request(f"r{row}", prompt) for row, prompt in enumerate(prompts)]
        bare = {"bare": _bare_loop(model, prompts, static=False), "static": _bare_loop(model, prompts, static=True)}
        for case in CASES:
            loops = _loops(model, requests, case, vocabulary)
            if case.sampling == "likeliest":
                loops |= bare
            seconds = _in_turns(loops, rounds)
            new: dict[str, float] = {}
            cells = ""
            for title, ours, theirs in COMPARED:
                if ours in seconds and theirs in seconds:
                    ratios = {clock: _median_ratio(seconds[ours], seconds[theirs], clock) for clock in CLOCKS}
                    cells += "".join(f" {ratio:>+8.3f}" for ratio in ratios.values())
                    new |= {f"{title}{clock}_{name}": ratio for clock, ratio in ratios.items()}
            ms = 1000 * statistics.median(one[""] for one in seconds["grammar"]) / COST_IDS
            print(f"{name:>6} {case.sampling:>9} {case.modality:>8} {ms:>9.2f}{cells}", flush=True)
            figures |= {key: max(value, figures.get(key, value)) for key, value in new.items()}
    for clock in CLOCKS:
        key = f"constraint_overhead{clock}"
        figures[key] = max(figures[f"{key}_{name}"] for name in SHAPES)
    return {key: round(value, 4) for key, value in figures.items()}


def _model(vocabulary: Vocabulary, shape: Mapping[str, int]) -> tuple[Any, int]:
    torch.manual_seed(0)
    padded = -(-vocabulary.size // 128) * 128
    model = LlamaForCausalLM(LlamaConfig(vocab_size=padded, max_position_embeddings=512, **shape)).eval()
    return model, sum(one.numel() for one in model.parameters())


def _loops(
    model: Any, requests: Sequence[Request], case: Case, vocabulary: Vocabulary
) -> dict[str, Callable[[], object]]:
    sampling, grammar = SAMPLINGS[case.sampling], case.grammar(vocabulary)
    free = FreeGrammar(vocabulary, case.modality, max_ids=COST_IDS)
    return {
        "grammar": lambda: generate(model, requests, grammar, sampling, seed=0),
        "free": lambda: generate(model, requests, free, sampling, seed=0),
    }


def _bare_loop(model: Any, prompts: np.ndarray, *, static: bool) -> Callable[[], object]:
    @torch.inference_mode()
    def loop() -> None:
        ids, length = torch.from_numpy(prompts), prompts.shape[1]
        cache = StaticCache(config=model.config, max_cache_len=length + COST_IDS) if static else DynamicCache()
        places = torch.arange(length)[None]
        for _ in range(COST_IDS):
            output = model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, places = output.logits[:, -1].argmax(-1)[:, None], places[:, -1:] + 1

    return loop


def _in_turns(loops: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[dict[str, float]]]:
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for number in range(WARM_UP + rounds):
        for name in sorted(loops, reverse=bool(number % 2)):  # nobody always goes first
            started = {clock: read() for clock, read in CLOCKS.items()}
            loops[name]()
            if number >= WARM_UP:
                seconds[name].append({clock: read() - started[clock] for clock, read in CLOCKS.items()})
    return seconds


def _median_ratio(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], clock: str) -> float:
    return statistics.median(one[clock] / other[clock] for one, other in zip(ours, theirs, strict=True)) - 1


if __name__ == "__main__":
    main()
