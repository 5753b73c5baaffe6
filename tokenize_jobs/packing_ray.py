"""Stage B on a cluster: Ray Data's actor pool around :func:`tokenize_jobs.packing_config.pack_with`.

One Ray Data row per unit. An actor opens the language once and commits whole units, so whatever Ray does with blocks,
retries or dying actors, every unit is there once and the bytes are those of a single process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import ray.data

from tokenize_jobs.packing_config import PackingConfig, load_language, pack_with
from tokenize_jobs.packing_result import UnitResult
from tokenize_jobs.packing_unit import PackingUnit, read_result
from tokenize_jobs.session import ray_session


class _Packer:
    """The actor: packs the unit that a row names."""

    def __init__(self, config: str, units: Sequence[PackingUnit]) -> None:
        self._config = PackingConfig.model_validate_json(config)
        self._language = load_language(self._config)
        self._units = units

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        pack_with(self._units[int(row["unit"])], self._config, self._language)
        return row


def pack_on_ray(units: Sequence[PackingUnit], config: PackingConfig) -> Iterator[tuple[PackingUnit, UnitResult]]:
    """Pack units on ``config.workers`` actors; yields them as they are done, in any order.

    What a unit made is read from its ledger entry, so the output folder must be one that all nodes see.
    """
    if not units:
        return
    with ray_session(workers=config.workers):
        rows = ray.data.from_items([{"unit": number} for number in range(len(units))], override_num_blocks=len(units))
        packed = rows.map(
            cast(Any, _Packer),
            fn_constructor_args=(config.model_dump_json(), list(units)),
            compute=ray.data.ActorPoolStrategy(size=min(config.workers, len(units))),
        )
        for row in packed.iter_rows():
            unit = units[int(row["unit"])]
            result = read_result(unit)
            assert result is not None, (
                f"{unit.ledger}: written by the actor, not seen here; is the output folder shared?"
            )
            yield unit, result
