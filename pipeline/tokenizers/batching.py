"""How a codec cuts what it is given into forward passes, and how these reach the device.

Sounds of one length cost nothing but themselves in a batch; of different lengths, the padding too. So batches are made
of neighbours in length, and limited by what they cost when padded, not by how many they are. Since no code depends on
its neighbours (tokenizers sheet 5), the order is free; results go back to where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")
MAX_WASTE = 0.25
"""A batch is closed before more than so much of it would be padding."""


def plan_batches(
    lengths: Sequence[int], *, max_items: int, max_total: int, max_waste: float = MAX_WASTE
) -> list[list[int]]:
    """Indices of every item exactly once, in batches of neighbours in length, the longest first.

    The longest first, so that memory that does not suffice shows at once.

    Args:
        lengths: what an item costs, e.g. in samples.
        max_items: of a batch.
        max_total: of items times the longest; a single longer item is a batch of its own.
        max_waste: share of a batch that may be padding; 1 for any.
    """
    batches: list[list[int]] = []
    filled = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        batch = batches[-1] if batches else []
        padded = (len(batch) + 1) * lengths[batch[0]] if batch else 0
        waste = padded - filled - lengths[index]
        if batch and len(batch) < max_items and padded <= max_total and waste <= max_waste * padded:
            batch.append(index)
            filled += lengths[index]
        else:
            batches.append([index])
            filled = lengths[index]
    return batches


def run_batches(
    batches: Sequence[Sequence[int]],
    collate: Callable[[Sequence[int]], torch.Tensor],
    forward: Callable[[torch.Tensor, Sequence[int]], Sequence[Result]],
    *,
    device: torch.device,
) -> list[Result]:
    """Run every batch and put the results back in the order of the items.

    On a GPU the next batch is collated into pinned memory and copied while the current one is computed.

    Args:
        batches: of :func:`plan_batches`.
        collate: indices to one tensor on the CPU.
        forward: that tensor, on the device, and its indices to one result an item.
    """
    results: dict[int, Result] = {}
    for indices, tensor in _on_device(batches, collate, device):
        results.update(zip(indices, forward(tensor, indices), strict=True))
    return [results[index] for index in range(len(results))]


def _on_device(
    batches: Sequence[Sequence[int]], collate: Callable[[Sequence[int]], torch.Tensor], device: torch.device
) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    if device.type != "cuda":
        yield from ((indices, collate(indices).to(device)) for indices in batches)
        return
    stream = torch.cuda.Stream(device)

    def fetch(indices: Sequence[int]) -> tuple[torch.Tensor, torch.cuda.Event]:
        pinned = collate(indices).pin_memory()
        with torch.cuda.stream(stream):
            tensor = pinned.to(device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        return tensor, copied

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as thread:
        ahead = thread.submit(fetch, batches[0]) if batches else None
        for number, indices in enumerate(batches):
            assert ahead is not None
            tensor, copied = ahead.result()
            if number + 1 < len(batches):
                ahead = thread.submit(fetch, batches[number + 1])
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            # Made on the other stream: its memory must not be given away while this one still reads it.
            tensor.record_stream(current)
            yield indices, tensor
