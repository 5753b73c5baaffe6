"""A bill as text, for ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from train.bill import (
    USUAL_MFU,
    Cost,
    cost,
    first_that_fits,
    layout_of,
    layouts,
    machine_counts,
    memory_of,
    model_shape,
    run_flops,
)
from train.devices import CPU, Device, find_device, read_devices
from train.flops import flops_per_token
from train.memory import GIB, RESERVE_GIB, USABLE, Layout, MemoryPlan, trained_parameters
from train.outline import Outline
from train.plan import check_process_count, describe_run
from train.shape import Shape

_COLUMNS = 6
"""Numbers of GPUs in the table of days."""


def format_outline(outline: Outline) -> str:
    """What :func:`train.plan.describe` says, as far as it can be said without data; and what is not there."""
    vocabulary = f"{outline.vocabulary}: {outline.vocabulary_size:,} ids"
    lines = describe_run(outline.config, outline.sequence_length, outline.shape, vocabulary=vocabulary)
    return "\n".join([*lines, *(f"not there    {line}" for line in outline.missing)])


def format_bill(
    outline: Outline,
    *,
    gpus: int | None = None,
    kind: str | None = None,
    mfu: float = USUAL_MFU,
    usd_per_hour: float | None = None,
) -> str:
    """FLOPs, days, cost and memory; the empty string for what is no language model and nobody asked about.

    Args:
        gpus: None shows several numbers, and memory on the fewest machines of eight.
        kind: None compares all kinds.

    Raises:
        ConfigError: an unknown kind, or a number of GPUs that the batch does not divide over.
    """
    if not isinstance(outline.shape, Shape) and gpus is None and kind is None:
        return ""
    model_shape(outline)
    if gpus is not None:
        check_process_count(outline.config, gpus)
    named = find_device(kind) if kind is not None and kind.lower() != CPU else None
    counts = [gpus] if gpus else _columns(machine_counts(outline))
    lines = [*_flops(outline)]
    if kind is None or named is not None:
        devices = dict([named]) if named else {name: one for name, one in read_devices().items() if one.peak}
        lines += _days(outline, devices, counts, mfu, usd_per_hour)
    lines += _memory(outline, gpus or (1 if kind == CPU else counts[0]), named, gpu=(kind or "").lower() != CPU)
    return "\n".join(lines)


def format_sum(
    outlines: Sequence[Outline], *, gpus: int | None, kind: str | None, mfu: float, usd_per_hour: float | None
) -> str:
    """All stages of a curriculum in a line; on what they take together, if the devices are named."""
    tokens = sum(outline.tokens for outline in outlines)
    line = f"all {len(outlines)} stages: {tokens / 1e9:.2f} G tokens"
    if gpus is None or kind is None or kind.lower() == CPU:
        return line
    name, device = find_device(kind)
    costs = [cost(outline, device, gpus=gpus, mfu=mfu, usd_per_hour=usd_per_hour) for outline in outlines]
    hours, days = sum(one.gpu_hours for one in costs), sum(one.days for one in costs)
    line += f", {hours:,.0f} GPU-hours, {days:,.1f} days on {gpus} {name}"
    return line if usd_per_hour is None else line + f", ${sum(one.usd or 0 for one in costs):,.0f}"


def _flops(outline: Outline) -> Iterator[str]:
    shape, length = model_shape(outline), outline.sequence_length
    dense, causal = flops_per_token(shape, length), flops_per_token(shape, length, causal=True)
    billions = f"{shape.num_parameters / 1e9:.2f} G parameters"
    if outline.config.lora is not None:
        billions += f", {trained_parameters(shape, outline.config.lora) / 1e6:.1f} M of them trained"
    yield f"model        {billions}"
    yield f"FLOPs/token  {dense / 1e9:.2f} G as PaLM counts, attention whole; {causal / 1e9:.2f} G with its causal half"
    yield f"FLOPs        {run_flops(outline):.3g} for {outline.tokens / 1e9:.2f} G tokens"


def _days(
    outline: Outline, devices: dict[str, Device], counts: list[int], mfu: float, usd_per_hour: float | None
) -> Iterator[str]:
    yield f"days         at {mfu:.0%} of the dense bf16 peak (assumed; --mfu), by kind and number of GPUs"
    yield f"  {'':<11}{'TFLOP/s':>8}{'tokens/s':>10}" + "".join(f"{count:>9}" for count in counts)
    for name, device in devices.items():
        costs = [cost(outline, device, gpus=count, mfu=mfu, usd_per_hour=usd_per_hour) for count in counts]
        days = "".join(f"{_days_of(one):>9}" for one in costs)
        yield f"  {name:<11}{device.bf16_tflops:>8g}{costs[0].tokens_per_s:>10,.0f}{days}"
        if len(devices) == 1:
            yield f"GPU-hours    {costs[0].gpu_hours:,.0f}{_price(costs[0], usd_per_hour)}"


def _memory(outline: Outline, processes: int, named: tuple[str, Device] | None, *, gpu: bool) -> Iterator[str]:
    chosen = layout_of(outline, processes, gpu=gpu)
    plan = memory_of(outline, chosen)
    word = "GPUs" if gpu else "processes"
    yield f"memory       of each of {processes} {word}, GiB: {_name(chosen)}, as configured"
    yield f"  {_parts(plan)}"
    if not gpu:
        return
    devices = [named] if named else [(name, one) for name, one in read_devices().items() if one.peak]
    for name, device in devices:
        yield f"  {name:<11}{device.memory_gib:>6g} GiB: {_verdict(outline, chosen, device)}"
    yield from _table(outline, processes, named)


def _table(outline: Outline, processes: int, named: tuple[str, Device] | None) -> Iterator[str]:
    every = list(layouts(outline, processes))
    columns = sorted({one.micro_rows for one in every})
    room = f"   (- is more than {named[0]} has)" if named else ""
    yield f"  {'rows of a forward pass':<26}" + "".join(f"{rows:>9}" for rows in columns) + room
    for one in dict.fromkeys(replace(one, micro_rows=1) for one in every):
        plans = [memory_of(outline, replace(one, micro_rows=rows)) for rows in columns]
        cells = ["-" if named and not plan.fits(named[1].memory_gib) else f"{plan.peak / GIB:.1f}" for plan in plans]
        yield f"  ZeRO-{one.zero}{', checkpointing' if one.checkpointed else '':<20}" + "".join(
            f"{cell:>9}" for cell in cells
        )


def _verdict(outline: Outline, chosen: Layout, device: Device) -> str:
    room = f"{device.memory_gib * USABLE - RESERVE_GIB:.1f} for tensors"
    if memory_of(outline, chosen).fits(device.memory_gib):
        return f"fits ({room})"
    other = first_that_fits(outline, chosen.processes, device)
    return f"too small ({room}); " + (f"{_name(other)} fits" if other else "nothing fits on so few GPUs")


def _name(layout: Layout) -> str:
    engine = "plain torch" if layout.zero is None else f"ZeRO-{layout.zero}"
    rows = f"{layout.micro_rows} row{'s' if layout.micro_rows > 1 else ''} a pass"
    part = {0.0: "", 1.0: ", checkpointing"}.get(layout.checkpointed, f", {layout.checkpointed:.0%} checkpointed")
    offload = "" if layout.offload == "none" else f", {layout.offload} offloaded"
    return f"{engine}, {rows}{part}{offload}"


def _parts(plan: MemoryPlan) -> str:
    parts = {
        "weights": plan.weights,
        "gradients": plan.gradients,
        "master and moments": plan.master + plan.moments,
        "buckets": plan.buckets,
        "activations": plan.activations + plan.recomputed,
        "passing": plan.passing,
    }
    if plan.host:
        parts["on the host instead"] = plan.host
    return f"{plan.peak / GIB:.2f} at most: " + ", ".join(f"{name} {value / GIB:.2f}" for name, value in parts.items())


def _columns(counts: list[int]) -> list[int]:
    """The smallest, and the largest few."""
    return counts if len(counts) <= _COLUMNS else [counts[0], *counts[1 - _COLUMNS :]]


def _days_of(one: Cost) -> str:
    return f"{one.days:,.1f}" if one.days >= 0.1 else f"{one.days * 24:.2g} h"


def _price(one: Cost, usd_per_hour: float | None) -> str:
    return "" if one.usd is None else f", ${one.usd:,.0f} at ${usd_per_hour:g} an hour"
