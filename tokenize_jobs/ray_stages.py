"""Two stages on Ray Data: rows through a decoding task, then through an encoding actor.

Ray brings placement, back-pressure between the stages, actors that grow in number with the queue before them, and retries
of whatever a dead worker had in hand. What the stages do is theirs (:mod:`tokenize_jobs.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import ray.data

from tokenize_jobs.plan import ClusterConfig

_MAX_BLOCKS = 4096
Row = dict[str, Any]


def run_rows(
    rows: pa.Table,
    decode: Callable[..., Row],
    encode: type[Any],
    tasks: Sequence[Any],
    *,
    cluster: ClusterConfig,
    workers: int,
) -> Iterator[Row]:
    """Rows as the second stage returns them, in the order they are done.

    Args:
        decode: called with a row and ``tasks``.
        encode: constructed with ``tasks`` once an actor, then called with a row.
        workers: CPUs of this machine, and the number of encoding actors where ``cluster`` gives none.
    """
    # With few units none may queue behind a busy worker while another is idle; with many, queueing hides the round trip.
    in_flight = cluster.encode_threads if len(rows) < 8 * workers else None
    # Ray keeps some kilobytes of each block: with a million units, a block is many of them, done one after another.
    size = -(-len(rows) // _MAX_BLOCKS)
    blocks = [rows.slice(start, size) for start in range(0, len(rows), size)]
    # Ray's annotations know functions of a row alone, neither their keyword arguments nor callable classes. Equal resources
    # let Ray fuse both stages into one process.
    decoded = ray.data.from_arrow(blocks).map(
        cast(Any, decode),
        fn_kwargs={"tasks": tasks},
        num_cpus=cluster.decode_cpus,
        resources=cluster.decode_resources or None,
    )
    encoders = min(cluster.encoders or workers, len(rows))
    encoded = decoded.map(
        cast(Any, encode),
        fn_constructor_args=(tasks,),
        compute=ray.data.ActorPoolStrategy(
            min_size=encoders,
            max_size=max(encoders, cluster.max_encoders),
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=cluster.encode_threads,
            enable_true_multi_threading=cluster.encode_threads > 1,
        ),
        num_cpus=cluster.encode_cpus,
        num_gpus=cluster.encode_gpus or None,
    )
    yield from encoded.iter_rows()
