"""What a run needs of a device's memory, term by term, before there is a device.

P parameters, Pt of them trained (all, but for adapters), N processes, b bytes of a weight (2 in bfloat16, 4 in float32);
h hidden, i intermediate size, L layers, H heads, V rows of the embedding, T = micro-batch rows x row length.

Kept all the time (Rajbhandari et al. 2020, arXiv:1910.02054; the engine's own choices in :mod:`train.engine`):

* weights b P, cut by N at ZeRO-3, which then also holds up to ``engine.max_live`` gathered ones;
* gradients b Pt, cut by N from ZeRO-2 on; sums in float32 take 4 Pt instead;
* float32 master weights 4 Pt and Adam's two moments 8 Pt, cut by N at every stage; whole in plain torch, where float32
  weights are their own masters;
* what ``engine.offload`` names is in host memory instead, with the gradients the optimizer reads;
* in a pass, DeepSpeed's bucket of ``engine.reduce_bucket`` gradients, twice where sums overlap the pass.

Kept from forward to backward, as torch saves it for transformers' LLaMA (measured with saved-tensor hooks in the tests):

* RMSNorm, twice a layer and once at the end: its input in float32 and its normalised input, (4 + b) h, and one float32;
* inputs of query, key and value, and of gate and up: b h each;
* attention: query, key, value and output, each b h (keys and values are repeated for all heads), 4 H for the softmax;
* documents kept apart on a CPU: their outputs once more, b h; or, of short ones, H weights for every pair, and queries,
  keys and values twice;
* feed-forward: gate, its activation, up and their product: 4 b i;
* the head: gradients of its inputs, b h, and of its weights, b V h, are made in the forward pass (:mod:`train.loss`).

With activation checkpointing a layer keeps its input, b h, and one such layer at a time is computed again.

Liger's kernels and torch.compile keep less than this; how much less is not counted.

Passing, and never at the same moment: the logits of one chunk of targets with their probabilities and gradient beside the
float32 gradient of the head, before backward; the gradients inside one layer, in backward; and, when all activations
are gone, the gradient that the optimizer reads, 4 Pt / N, beside the flattened one it is made from; in plain torch those of
some parameters at a time, where gradients are in bfloat16 (:mod:`train.torch_engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from train.config import LoraConfig
from train.plan import Shape

GIB = 1 << 30
SHORT_DOCUMENT = 128
"""Ids up to which a document's attention weights are kept on a CPU."""

WIDENED = 500_000_000
"""Gradients in bfloat16 that plain torch widens to float32 at a time: 2 GB."""

RESERVE_GIB = 2.0
"""Context of the device, buffers of its collectives, workspaces of its libraries: no tensor shows them. An estimate."""

USABLE = 0.95
"""Part of the memory that fragmentation leaves to tensors. An estimate."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run is laid out on its processes.

    Attributes:
        zero: None is plain torch.
        bytes_per_weight: 2 or 4.
        bytes_per_gradient: of the sums over the passes of a step.
        checkpointed: part of the layers.
        buckets: numbers in DeepSpeed's buckets, which are laid out whole, however small the model.
        live: weights that ZeRO-3 keeps gathered at most.
        chunk: targets whose logits exist at one time.
        document_length: of the document that an id is in, where they are kept apart; None: those of a row see each other.
        gpu: buckets are memory there; on a CPU nothing touches their pages.
    """

    processes: int
    zero: Literal[1, 2, 3] | None
    bytes_per_weight: int
    bytes_per_gradient: int
    micro_rows: int
    checkpointed: float
    chunk: int
    buckets: int = 0
    live: int = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"
    document_length: float | None = None
    gpu: bool = True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one process: on its device, and what is offloaded to the host."""

    weights: float
    gradients: float
    master: float
    moments: float
    buckets: float
    activations: float
    recomputed: float
    passing: float
    step: float
    host: float

    @property
    def states(self) -> float:
        """What is there all the time."""
        return self.weights + self.gradients + self.master + self.moments

    @property
    def peak(self) -> float:
        """The most at one moment: in a pass, or in the update."""
        return self.states + max(self.buckets + self.activations + self.recomputed + self.passing, self.step)

    def fits(self, memory_gib: float) -> bool:
        """Whether a device of that size has room for it."""
        return self.peak / GIB + RESERVE_GIB <= memory_gib * USABLE


def plan_memory(shape: Shape, length: int, layout: Layout, lora: LoraConfig | None = None) -> MemoryPlan:
    """Memory of one process of a language model's run.

    Args:
        length: ids of a row.
        lora: adapters instead of all weights.
    """
    total, trained = shape.num_parameters, trained_parameters(shape, lora)
    total += trained if lora is not None else 0
    size = layout.bytes_per_weight
    again = round(shape.num_layers * layout.checkpointed)
    layer, ends = layer_activations(shape, length, layout, lora), end_activations(shape, length, layout)
    inputs = layout.micro_rows * length * shape.hidden_size * size
    states, host = _states(total, trained, layout)
    passing = max(_head_passing(shape, length, layout), _layer_passing(shape, length, layout))
    return MemoryPlan(
        **states,
        buckets=layout.buckets * size if layout.zero and layout.gpu else 0,
        activations=again * inputs + (shape.num_layers - again) * layer + ends,
        recomputed=layer if again else 0,
        passing=passing,
        step=_update(trained, layout, largest=shape.vocabulary_size * shape.hidden_size),
        host=host,
    )


def trained_parameters(shape: Shape, lora: LoraConfig | None) -> int:
    """All, or those of the adapters, and of embedding and head if they are trained, too."""
    if lora is None:
        return shape.num_parameters
    key_value = shape.hidden_size // shape.num_heads * shape.num_key_value_heads
    widths = {
        "q_proj": (shape.hidden_size, shape.hidden_size),
        "k_proj": (shape.hidden_size, key_value),
        "v_proj": (shape.hidden_size, key_value),
        "o_proj": (shape.hidden_size, shape.hidden_size),
        "gate_proj": (shape.hidden_size, shape.intermediate_size),
        "up_proj": (shape.hidden_size, shape.intermediate_size),
        "down_proj": (shape.intermediate_size, shape.hidden_size),
    }
    adapters = sum(lora.rank * sum(widths[target]) for target in lora.targets if target in widths)
    embeddings = (1 if shape.tied else 2) * shape.vocabulary_size * shape.hidden_size
    return shape.num_layers * adapters + (embeddings if lora.train_embeddings else 0)


def layer_activations(shape: Shape, length: int, layout: Layout, lora: LoraConfig | None = None) -> float:
    """Bytes that one layer keeps from forward to backward when nothing is checkpointed."""
    size, hidden = layout.bytes_per_weight, shape.hidden_size
    norms = 2 * ((4 + size) * hidden + 4)
    attention = 4 * size * hidden + 4 * shape.num_heads + _apart(shape, layout)
    token = norms + 2 * size * hidden + attention + 4 * size * shape.intermediate_size
    if lora is not None:
        # Frozen norms keep no normalised input; every adapter keeps what is between its two halves.
        token += size * (lora.rank * len(lora.targets) - 2 * hidden)
    return layout.micro_rows * length * token


def end_activations(shape: Shape, length: int, layout: Layout) -> float:
    """Bytes that embedding, last norm and head keep from forward to backward."""
    size, hidden = layout.bytes_per_weight, shape.hidden_size
    rotary = 2 * length * size * hidden // shape.num_heads
    norm = (4 + size) * hidden + 4
    ids = 8 + 1  # input, and where the targets are
    token = norm + size * hidden + ids
    return layout.micro_rows * length * token + size * shape.vocabulary_size * hidden + rotary


def _apart(shape: Shape, layout: Layout) -> float:
    """What a token of a layer keeps besides, when documents are kept apart (:mod:`train.attention`)."""
    if layout.document_length is None or layout.gpu:
        return 0  # kernels for sequences of any length keep what those for rows do
    size = layout.bytes_per_weight
    if layout.document_length > SHORT_DOCUMENT:
        return size * shape.hidden_size  # the output, where documents lie and where their row does
    weights = shape.num_heads * layout.document_length * (4 + size if size < 4 else 4)
    # A document that is alone in its batch is a view of all queries, keys and values; those of others are copies.
    return weights + 3 * size * shape.hidden_size


def _states(total: int, trained: int, layout: Layout) -> tuple[dict[str, float], float]:
    """Bytes that stay, by kind, and those of them that are on the host."""
    size, parts, zero = layout.bytes_per_weight, layout.processes, layout.zero
    states: dict[str, float] = {
        "weights": size * total / (parts if zero == 3 else 1),
        "gradients": layout.bytes_per_gradient * trained / (parts if zero in (2, 3) else 1),
        "master": 4 * trained / (parts if zero else 1),
        "moments": 8 * trained / (parts if zero else 1),
    }
    moved = {"none": (), "optimizer": ("gradients", "master", "moments"), "parameters": tuple(states)}[layout.offload]
    host = sum(states[kind] for kind in moved)
    states |= dict.fromkeys(moved, 0.0)
    if zero is None and size == 4:
        states["master"] = 0.0
    if zero == 3:
        states["weights"] += size * min(total, layout.live) * (1 - 1 / parts)
    return states, host


def _update(trained: int, layout: Layout, *, largest: int) -> float:
    """Float32 gradients of the partition that is updated, beside the flattened ones they are made from.

    Args:
        largest: numbers in the largest parameter.
    """
    if layout.offload != "none":
        return 0.0
    if layout.zero is None:
        return 0.0 if layout.bytes_per_gradient == 4 else 4 * min(trained, WIDENED + largest)
    flattened = layout.bytes_per_gradient
    return trained / layout.processes * (flattened if flattened == 4 else 4 + flattened)


def _head_passing(shape: Shape, length: int, layout: Layout) -> float:
    size, targets = layout.bytes_per_weight, min(layout.chunk, layout.micro_rows * length)
    logits = targets * shape.vocabulary_size * (4 + 2 * size)
    return logits + shape.vocabulary_size * shape.hidden_size * 4


def _layer_passing(shape: Shape, length: int, layout: Layout) -> float:
    token = layout.bytes_per_weight * 3 * shape.intermediate_size + 12 * shape.hidden_size
    return layout.micro_rows * length * token
