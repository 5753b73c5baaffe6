"""An engine's state as fragments of named parameters: out to host memory, in from wherever it is kept.

Every engine answers one question, which stretches of which flattened float32 parameters are this process's own: DeepSpeed's
ZeRO-1 and 2 cut the whole model into as many stretches as there are processes, ZeRO-3 cuts every parameter, and plain torch,
where all processes hold everything, takes an even share, so that the writing is spread. The fragments are views of the live
tensors, so they serve for writing and for reading alike, and neither needs a collective.

What is trained has a state; what is frozen comes again from where the run began.

No import of DeepSpeed here; the two functions that know its optimizers' attributes say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed, nn

from shards.errors import CheckpointError
from train.checkpoint import OptimizerState, Shape, StateSource
from train.checkpoint_files import KINDS, MASTER, MOMENTS, Fragment

_BUFFER_VALUES = 1 << 28
"""Pinned memory comes in powers of two: one buffer for all of a process's 10 GB would take 16."""


@dataclass(frozen=True, slots=True)
class LiveFragment:
    """Values ``[start, start + n)`` of a flattened parameter, where the optimizer has them.

    Attributes:
        tensors: by kind, (n,) float32 views on any device.
    """

    name: str
    start: int
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class LocalState:
    """What one process holds of an engine's state.

    Attributes:
        step: how many updates the optimizer has made.
        shapes: of all trained parameters, whoever holds them.
    """

    step: int
    shapes: Mapping[str, Shape]
    fragments: Sequence[LiveFragment]


class Staging:
    """A copy of this process's fragments in host memory, made anew in the same place each time."""

    def __init__(self) -> None:
        self._places: list[torch.Tensor] = []

    def copier(self, state: LocalState) -> Callable[[], list[Fragment]]:
        """What copies all fragments, as they are after the work that is queued now.

        It may run in another thread while passes go on, and must have run before the next update. The fragments it gives
        are overwritten by the next one.
        """
        tensors = [fragment.tensors[kind] for fragment in state.fragments for kind in KINDS]
        gpu = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        updated = torch.cuda.Event() if gpu is not None else None
        if updated is not None:
            updated.record()

        def copy() -> list[Fragment]:
            if gpu is None or updated is None:
                places = self._copy(tensors, pinned=False)
            else:
                # A stream of its own, and this process's GPU: a new thread would begin on the first one.
                stream = torch.cuda.Stream(gpu)
                with torch.cuda.device(gpu), torch.cuda.stream(stream):
                    stream.wait_event(updated)
                    places = self._copy(tensors, pinned=True)
                    stream.synchronize()
            arrays = iter([place.numpy() for place in places])
            return [Fragment(one.name, one.start, {kind: next(arrays) for kind in KINDS}) for one in state.fragments]

        return copy

    def _copy(self, tensors: Sequence[torch.Tensor], *, pinned: bool) -> list[torch.Tensor]:
        sizes = [tensor.numel() for tensor in tensors]
        if [place.numel() for place in self._places] != sizes:
            # Pinned memory is what a GPU can copy into at full speed; it takes seconds to get, so it is kept.
            self._places = _allocate(sizes, pinned=pinned)
        with torch.no_grad():
            for place, tensor in zip(self._places, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
        return self._places


def _allocate(sizes: Sequence[int], *, pinned: bool) -> list[torch.Tensor]:
    """Places for so many values each, side by side in buffers that torch's pinned memory does not round up."""
    places: list[torch.Tensor] = []
    buffer, used = torch.empty(0), 0
    for size in sizes:
        if used + size > buffer.numel():
            buffer, used = torch.empty(max(size, _BUFFER_VALUES), dtype=torch.float32, pin_memory=pinned), 0
        places.append(buffer[used : used + size])
        used += size
    return places


def trained_shapes(parameters: Mapping[str, nn.Parameter]) -> dict[str, Shape]:
    """Whole shapes, also of parameters that ZeRO-3 has cut."""
    return {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in parameters.items()}


def even_share(shapes: Mapping[str, Shape], *, rank: int, world_size: int) -> list[tuple[str, int, int]]:
    """Name, start and stop of the fragments that a process takes of what all of them hold.

    Together they are every value once; two processes' shares differ by at most one value.
    """
    total = sum(math.prod(shape) for shape in shapes.values())
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    share: list[tuple[str, int, int]] = []
    offset = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        start, stop = max(first - offset, 0), min(last - offset, count)
        if start < stop:
            share.append((name, start, stop))
        offset += count
    return share


def partitioned_fragments(parameters: Mapping[str, nn.Parameter]) -> list[LiveFragment]:
    """Of a process under ZeRO-1 or 2, once the moments exist: DeepSpeed maps each parameter to its stretch."""
    fragments: list[LiveFragment] = []
    for name, parameter in parameters.items():
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            moments = {moment: mapping.get_hp_fragment(moment) for moment in MOMENTS}
            tensors = {MASTER: mapping.get_hp_fragment(), **moments}
            fragments.append(LiveFragment(name, mapping.lp_fragment_address.start, tensors))
    return fragments


def sliced_fragments(parameters: Mapping[str, nn.Parameter], zero: Any) -> list[LiveFragment]:
    """Of a process under ZeRO-3: an equal slice of every parameter, the last one padded.

    Args:
        zero: DeepSpeed's stage-3 optimizer.
    """
    fragments: list[LiveFragment] = []
    for name, parameter in parameters.items():
        group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = padded * zero._get_param_partition_rank(parameter)
        count = min(padded, parameter.ds_numel - start)  # pyright: ignore[reportAttributeAccessIssue]
        if count > 0:
            flat = zero.fp32_partitioned_groups_flat[group]
            whole = {MASTER: flat.data, **{moment: zero.optimizer.state[flat][moment] for moment in MOMENTS}}
            tensors = {kind: tensor.narrow(0, offset, count) for kind, tensor in whole.items()}
            fragments.append(LiveFragment(name, start, tensors))
    return fragments


def fill(fragments: Iterable[LiveFragment], source: StateSource) -> None:
    """Read into live tensors what they should hold; nothing else is read."""
    with torch.no_grad():
        for fragment in fragments:
            for kind, tensor in fragment.tensors.items():
                values = source.read(kind, fragment.name, fragment.start, fragment.start + tensor.numel())
                # Arrays in memory may be read-only; they are only copied from.
                tensor.copy_(torch.from_numpy(values if values.flags.writeable else values.copy()))


def check_shapes(expected: Mapping[str, Shape], source: StateSource) -> None:
    """Refuse a state of other parameters.

    Raises:
        CheckpointError: naming the first that differ.
    """
    found = source.shapes
    strange = sorted(set(expected) ^ set(found))
    if strange:
        raise CheckpointError(
            f"expected the {len(expected)} parameters of this model in the checkpoint, found others: {strange[:3]}; "
            "it belongs to another model"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise CheckpointError(
                f"{name}: expected shape {list(shape)} in the checkpoint, found {list(found[name])}; "
                "it belongs to another model"
            )


def whole_state(state: LocalState) -> OptimizerState:
    """A copy in memory of the state of an engine that is alone, or whose processes all hold everything.

    Raises:
        ValueError: this process holds a part; write a checkpoint and read that.
    """
    tensors: dict[str, dict[str, npt.NDArray[np.float32]]] = {kind: {} for kind in KINDS}
    for fragment in Staging().copier(state)():
        shape = state.shapes[fragment.name]
        if fragment.count != math.prod(shape):
            raise ValueError(f"{fragment.name}: expected all of {shape} here, found {fragment.count} values of it")
        for kind in KINDS:
            tensors[kind][fragment.name] = fragment.arrays[kind].reshape(shape)
    return OptimizerState(state.step, **{kind: {n: tensors[kind][n] for n in state.shapes} for kind in KINDS})


def random_states() -> dict[str, npt.NDArray[np.uint8]]:
    """Torch's generators, CPU and this process's GPU.

    Nothing of ours draws from them while a run goes on: there is no dropout, and rows and masks are functions of the seed
    and the position. They are kept for an objective that does.
    """
    states = {"random/cpu": torch.get_rng_state().numpy().copy()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state().numpy().copy()
    return states


def restore_random_states(states: Mapping[str, npt.NDArray[np.uint8]]) -> None:
    """Put back what :func:`random_states` gave; what is not there stays."""
    if "random/cpu" in states:
        torch.set_rng_state(torch.from_numpy(states["random/cpu"]))
    if "random/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(states["random/cuda"]))


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether it holds on any process; the same on all of them."""
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return flag
    total = torch.tensor([int(flag)], dtype=torch.int64, device=device)
    distributed.all_reduce(total)
    return bool(total.item())


def agree(number: int, device: torch.device) -> int:
    """The first process's number, on all of them."""
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return number
    shared = torch.tensor([number], dtype=torch.int64, device=device)
    distributed.broadcast(shared, src=0)
    return int(shared.item())
