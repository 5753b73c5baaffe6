"""A bill for a terminal: a line a corpus, the total, and what every figure rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shards.modality import Modality
from tokenize_jobs.bill import Bill, BillLine
from tokenize_jobs.dataset_charts import duration, short
from tokenize_jobs.timing import CPU, HOUR_S


def format_bill(bill: Bill) -> str:
    """The whole bill; equal bills give equal text."""
    lines = [_head(bill), *(_row(line, bill) for line in bill.lines)]
    if len(bill.lines) > 1:
        lines.append(_total(bill))
    lines += ["", *_tokens(bill), *_machines(bill), *_training(bill), *_bases(bill)]
    return "\n".join(lines)


def _head(bill: Bill) -> str:
    unit = "core" if bill.kind.lower() == CPU else "GPU"
    return (
        f"{'corpus':<24}{'units':>10}{'inputs':>14}{'bytes':>10}  {'expected':<22}{'tokens':<34}{f'{unit}-hours':>11}"
        f"{f'on {bill.gpus:,}':>12}{'USD':>13}"
    )


def _row(line: BillLine, bill: Bill) -> str:
    plan = line.plan
    expected = ", ".join(amount(medium.modality, medium.amount) for medium in plan.media) or "nothing"
    tokens = ", ".join(f"{medium.modality} {codes(medium.tokens)}" for medium in plan.media) or "none"
    return (
        f"{plan.name:<24}{plan.units:>10,}{plan.inputs:>14,}{_bytes(plan.num_bytes):>10}  {expected:<22}{tokens:<34}"
        f"{_hours(line.device_hours):>11}{_wall(line.device_hours / bill.gpus):>12}"
        f"{_usd(line.device_hours, bill):>13}"
    )


def _total(bill: Bill) -> str:
    units, inputs = (sum(getattr(line.plan, name) for line in bill.lines) for name in ("units", "inputs"))
    size = sum(line.plan.num_bytes for line in bill.lines)
    return (
        f"{'total':<24}{units:>10,}{inputs:>14,}{_bytes(size):>10}  {'':<22}{codes(sum(bill.tokens().values())):<34}"
        f"{_hours(bill.device_hours):>11}{_wall(bill.wall_hours):>12}{_usd(bill.device_hours, bill):>13}"
    )


def _tokens(bill: Bill) -> Iterator[str]:
    for modality, tokens in bill.tokens().items():
        media = [
            (line.plan.name, medium) for line in bill.lines for medium in line.plan.media if medium.modality is modality
        ]
        total = sum(medium.amount for _, medium in media)
        of = "codes" if modality.rate.levels_read == 1 else f"codes of {modality.rate.levels_read} levels"
        yield f"{modality}: {codes(tokens)} {of} from {amount(modality, total)}"
        if len(media) > 1:
            yield from (
                f"  {codes(one.tokens)} {of} from {amount(modality, one.amount)} ({name})" for name, one in media
            )
    stored = sum(medium.stored_bytes for line in bill.lines for medium in line.plan.media)
    yield f"at rest: {_bytes(stored)} of codes, all levels, before compression"


def _machines(bill: Bill) -> Iterator[str]:
    if bill.kind.lower() == CPU:
        yield f"{bill.gpus:,} cores decode and encode: {_hours(bill.device_hours)} core-hours"
        return
    if not bill.device_hours or math.isnan(bill.device_hours):
        return
    cores = bill.core_hours / bill.device_hours
    yield (
        f"decoding: {_hours(bill.core_hours)} core-hours; one {bill.kind} is kept busy by {cores:,.1f} cores on average, "
        f"{bill.gpus:,} by {cores * bill.gpus:,.0f}"
    )


def _training(bill: Bill) -> Iterator[str]:
    if bill.training is not None:
        one = bill.training
        yield (
            f"training: {one.slots / 1e9:,.2f} G (about {one.slots / 1e9:,.0f} G) token slots, {one.steps:,} steps x "
            f"{one.batch_rows:,} x {one.sequence_length:,}: {one.num_bytes / 1e9:,.1f} GB "
            f"(about {one.num_bytes / 1e9:,.0f} GB) of {8 * one.id_bytes}-bit ids"
        )


def _bases(bill: Bill) -> Iterator[str]:
    """What the figures rest on, every sentence once."""
    yield ""
    corpora: dict[str, list[str]] = {}
    for line in bill.lines:
        if line.plan.basis:
            corpora.setdefault(line.plan.basis, []).append(line.plan.name)
    seen = {f"amounts of {', '.join(names)}: {basis}": None for basis, names in corpora.items()}
    for line in bill.lines:
        for medium, speed in zip(line.plan.media, line.speeds, strict=True):
            per = " x real time" if medium.modality.is_sound else " pictures/s"
            rate = "" if math.isnan(speed.encode_rate) else f"{speed.encode_rate:,.4g}{per}, "
            sentence = f"speed of {medium.codec} on {bill.kind}: {rate}{speed.basis}"
            seen[sentence] = None
    if bill.usd_per_hour is not None:
        seen[f"price: {bill.usd_per_hour:,.2f} USD for an hour of one device, devices busy all the time"] = None
    yield from seen


def amount(modality: Modality, value: float) -> str:
    """Pictures, or hours of sound."""
    if modality.is_sound:
        hours = value / HOUR_S
        return f"{_hours(hours)} h {modality}"
    return f"{short(value)} pictures"


def codes(count: int) -> str:
    """A number of codes in at most four figures, with G for a milliard: 10.26 G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return f"{count:,}"


def _wall(hours: float) -> str:
    return "?" if math.isnan(hours) else duration(hours * HOUR_S)


def _hours(hours: float) -> str:
    """Whole ones are plain, small ones keep three figures, and what nobody knows is a question mark."""
    if math.isnan(hours):
        return "?"
    return f"{hours:,.1f}".removesuffix(".0") if hours >= 10 else f"{hours:.3g}"


def _usd(device_hours: float, bill: Bill) -> str:
    if bill.usd_per_hour is None:
        return "-"
    return "?" if math.isnan(device_hours) else f"{device_hours * bill.usd_per_hour:,.2f}"


def _bytes(count: int) -> str:
    return f"{short(count)}B" if count >= 1000 else f"{count} B"
