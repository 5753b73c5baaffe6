"""The plan before the bill: FLOPs, days, money and memory of a run, before anything is bought.

Days are the run's FLOPs (:mod:`train.flops`, dense convention) over the dense bfloat16 peak times the utilisation one
expects, which is an assumption until somebody has measured it (``--mfu``). Memory is :mod:`train.memory`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

from shards.errors import ConfigError
from train.devices import Device
from train.flops import flops_per_token, matmul_parameters
from train.memory import Layout, MemoryPlan, plan_memory, trained_parameters
from train.outline import Outline
from train.plan import legal_process_counts
from train.shape import Shape

USUAL_MFU = 0.5
HOUR_S, DAY_S = 3600, 86_400
GPUS_OF_A_MACHINE = 8
_MOST_ROWS = 8
"""Of a forward pass that the table of layouts goes to."""

Zero = Literal[1, 2, 3]


@dataclass(frozen=True, slots=True)
class Cost:
    """A run on so many devices of a kind.

    Attributes:
        tokens_per_s: of one device.
        usd: None when no price was given.
    """

    gpus: int
    tokens_per_s: float
    days: float
    gpu_hours: float
    usd: float | None


def model_shape(outline: Outline) -> Shape:
    """The backbone of a language model.

    Raises:
        ConfigError: the run learns something else, whose FLOPs nobody has counted.
    """
    if not isinstance(outline.shape, Shape):
        raise ConfigError(
            f"{outline.config.name}: --gpus and --kind: expected a language model, found objective "
            f"{outline.config.objective!r}, for which there is no bill; leave the options out"
        )
    return outline.shape


def run_flops(outline: Outline) -> float:
    """Of all steps. Frozen weights have no gradient to compute, so adapters save a third of theirs."""
    shape, lora = model_shape(outline), outline.config.lora
    token = flops_per_token(shape, outline.sequence_length)
    if lora is not None:
        token -= 2 * max(0, matmul_parameters(shape) - trained_parameters(shape, lora))
    return outline.tokens * token


def cost(outline: Outline, device: Device, *, gpus: int, mfu: float, usd_per_hour: float | None = None) -> Cost:
    """Days and money.

    Args:
        mfu: part of the device's peak that the model's FLOPs reach.

    Raises:
        ConfigError: a utilisation that cannot be, or a device without bfloat16.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu:g}: expected a part of the peak, more than 0 and at most 1, e.g. 0.5")
    if not device.peak:
        raise ConfigError("--kind: expected a device with bfloat16, found one without; choose another")
    seconds = run_flops(outline) / (device.peak * mfu * gpus)
    hours = seconds / HOUR_S * gpus
    price = None if usd_per_hour is None else usd_per_hour * hours
    return Cost(gpus, outline.tokens / seconds / gpus, seconds / DAY_S, hours, price)


def layout_of(outline: Outline, processes: int, *, gpu: bool = True) -> Layout:
    """How the config lays the run out on so many processes."""
    config, engine = outline.config, outline.config.engine
    length = outline.document_length if config.attention == "document" else None
    if config.attention == "document" and length is None:
        length = float(outline.sequence_length) if gpu else 128.0
    low, deepspeed = engine.dtype == "bf16", engine.kind == "deepspeed"
    overlap = engine.overlap if engine.overlap is not None else gpu and processes > 1
    return Layout(
        processes,
        engine.zero if deepspeed else None,
        bytes_per_weight=2 if low else 4,
        bytes_per_gradient=2 if low and (engine.gradients or ("bf16" if deepspeed else "fp32")) == "bf16" else 4,
        micro_rows=engine.micro_batch_rows or max(1, config.batch_rows // processes),
        checkpointed=float(engine.activation_checkpointing),
        chunk=engine.head_chunk,
        buckets=engine.reduce_bucket * (2 if overlap else 1),
        live=engine.max_live,
        offload=engine.offload,
        document_length=length,
        gpu=gpu,
    )


def memory_of(outline: Outline, layout: Layout) -> MemoryPlan:
    """Memory of one process."""
    return plan_memory(model_shape(outline), outline.sequence_length, layout, outline.config.lora)


def legal_counts(outline: Outline) -> list[int]:
    """Numbers of processes that the batch divides over."""
    return legal_process_counts(outline.config.batch_rows, outline.config.engine.micro_batch_rows)


def machine_counts(outline: Outline, *, most: int = 256) -> list[int]:
    """Those of the legal numbers that are whole machines of eight; all of them for a batch that has none."""
    legal = [count for count in legal_counts(outline) if count <= most]
    return [count for count in legal if count % GPUS_OF_A_MACHINE == 0] or legal


def layouts(outline: Outline, processes: int) -> Iterator[Layout]:
    """All ways to lay the run out on so many processes, the fastest first: what recomputes or sends more comes later."""
    base, rows = layout_of(outline, processes), outline.config.batch_rows
    each = rows // processes
    for checkpointed in (0.0, 1.0):
        for zero in (1, 2, 3):
            for micro_rows in range(1, _MOST_ROWS + 1):
                if each % micro_rows == 0:
                    yield replace(base, zero=cast(Zero, zero), checkpointed=checkpointed, micro_rows=micro_rows)


def first_that_fits(outline: Outline, processes: int, device: Device) -> Layout | None:
    """The fastest layout for which a device has memory."""
    return next(
        (one for one in layouts(outline, processes) if memory_of(outline, one).fits(device.memory_gib)),
        None,
    )
