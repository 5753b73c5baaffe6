"""Stage B: sample shards -> templates and text ids -> rows -> packed shards, one dataset folder per config entry.

The work is cut into units (see :mod:`tokenize_jobs.packing_unit`); they run in this process, or on Ray Data's actor
pool with the same code and the same bytes. The manifest is written last, so running again continues where the last run
stopped, and a finished dataset is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.packing import PACKING_VERSION
from pipeline.templates import check_shares
from shards.errors import DatasetError
from shards.manifest import MANIFEST_NAME, Manifest, fingerprint, read_manifest
from shards.packed import FORMAT_VERSION
from tokenize_jobs.packing_config import Language, PackedSource, PackingConfig, pack_with
from tokenize_jobs.packing_report import finish_dataset, summarize, write_report
from tokenize_jobs.packing_unit import (
    VALIDATION_SUFFIX,
    PackingUnit,
    UnitResult,
    plan_slices,
    read_result,
    stale_output,
)


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """One packed dataset to make.

    Attributes:
        done: its manifest is there already.
    """

    folder: Path
    source: Manifest
    units: tuple[PackingUnit, ...]
    fingerprint: str
    config: Mapping[str, Any]
    done: bool


def plan_packing(config: PackingConfig, language: Language, *, limit: int | None = None) -> list[PackingPlan]:
    """What has to be made, from the datasets' manifests alone.

    Raises:
        DatasetError: a source is missing or no sample shards; an output folder holds something else.
        ConfigError: unknown directions, or shares that do not sum to 1.
    """
    plans: list[PackingPlan] = []
    for name, source in config.datasets.items():
        if source.directions is not None:
            check_shares(source.directions, where=f"datasets.{name}.directions")
        manifest = read_manifest(source.path)
        if manifest.kind != "samples":
            raise DatasetError(
                f"{source.path}: expected sample shards, found a dataset of kind {manifest.kind!r}; "
                f"give datasets.{name}.path the output of anygpt-tokenize"
            )
        parts = (False, True) if config.validation_share else (False,)
        plans += [_plan_dataset(name, source, manifest, config, language, limit, validation) for validation in parts]
    return plans


def _plan_dataset(
    name: str,
    source: PackedSource,
    manifest: Manifest,
    config: PackingConfig,
    language: Language,
    limit: int | None,
    validation: bool,
) -> PackingPlan:
    folder = config.output / (name + VALIDATION_SUFFIX * validation)
    facts = _facts(name, source, config, language, limit, validation)
    shards = [(shard.path, shard.num_rows, shard.sha256) for shard in manifest.shards]
    key = fingerprint({"config": facts, "source": manifest.fingerprint, "shards": shards})
    done = (folder / MANIFEST_NAME).is_file()
    if done and (found := read_manifest(folder).fingerprint) != key:
        raise stale_output(folder, found, key)
    slices = plan_slices(manifest, draws=source.draws, unit_documents=config.unit_documents, limit=limit)
    units = tuple(
        PackingUnit(name, number, folder, source.path, part, key, validation) for number, part in enumerate(slices)
    )
    return PackingPlan(folder, manifest, units, key, facts, done)


def _facts(
    name: str, source: PackedSource, config: PackingConfig, language: Language, limit: int | None, validation: bool
) -> dict[str, Any]:
    """Everything that decides the bytes, without a path of any machine."""
    machine = {"output", "datasets", "templates", "vocabulary", "text_tokenizer", "checkpoint", "workers"}
    return {
        "dataset": name,
        "validation": validation,
        "limit": limit,
        "format_version": FORMAT_VERSION,
        "packing_version": PACKING_VERSION,
        "vocabulary": language.vocabulary.fingerprint,
        "templates": language.templates.fingerprint,
        **source.model_dump(mode="json", exclude={"path"}),
        **config.model_dump(mode="json", exclude=machine),
    }


def run_packing(config: PackingConfig, plans: Sequence[PackingPlan], language: Language) -> dict[str, Any]:
    """Do what is left of the plans.

    Returns:
        The report, as ``OUTPUT/report.json`` has it; the stored one when there was nothing to do.
    """
    started = time.monotonic()
    open_plans = [plan for plan in plans if not plan.done]
    results = {unit: result for plan in open_plans for unit in plan.units if (result := read_result(unit)) is not None}
    todo = [unit for plan in open_plans for unit in plan.units if unit not in results]
    total = sum(len(plan.units) for plan in open_plans)
    with tqdm(total=total, initial=len(results), unit="shard", desc="pack", disable=None) as progress:
        for unit, result in _pack_all(todo, config, language):
            results[unit] = result
            progress.update()
    for plan in open_plans:
        finished = [results[unit] for unit in plan.units]
        finish_dataset(plan.folder, _manifest(plan, language), finished, config.reject_budget)
    manifests = {plan.folder.name: read_manifest(plan.folder) for plan in plans}
    return write_report(config.output, summarize(manifests), time.monotonic() - started, changed=bool(open_plans))


def format_plan(plans: Sequence[PackingPlan]) -> str:
    """What a run would do, as a table for a terminal."""
    lines = [f"{'dataset':<28}{'documents':>12}{'shards':>8}  state"]
    for plan in plans:
        documents = sum(part.stop - part.start for unit in plan.units for part in unit.slices)
        finished = sum(read_result(unit) is not None for unit in plan.units)
        state = "done" if plan.done else f"{finished} of {len(plan.units)} shards done"
        lines.append(f"{plan.folder.name:<28}{documents:>12,}{len(plan.units):>8}  {state}")
    return "\n".join(lines)


def _manifest(plan: PackingPlan, language: Language) -> Manifest:
    """The manifest without what only the units know."""
    return Manifest(
        kind="packed",
        name=plan.folder.name,
        fingerprint=plan.fingerprint,
        shards=(),
        format_version=FORMAT_VERSION,
        tokenizers=plan.source.tokenizers,
        vocabulary=language.vocabulary,
        config=plan.config,
    )


def _pack_all(
    units: Sequence[PackingUnit], config: PackingConfig, language: Language
) -> Iterator[tuple[PackingUnit, UnitResult]]:
    if config.workers == 0:
        yield from ((unit, pack_with(unit, config, language)) for unit in units)
        return
    # Ray takes seconds to import and start; packing in this process needs none of it.
    from tokenize_jobs.packing_ray import pack_on_ray

    yield from pack_on_ray(units, config)
