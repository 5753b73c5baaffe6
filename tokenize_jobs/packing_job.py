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
from shards.errors import DatasetError, FingerprintMismatch
from shards.manifest import MANIFEST_NAME, Manifest, fingerprint, read_manifest
from shards.packed import FORMAT_VERSION
from tokenize_jobs.ledger import only_writer
from tokenize_jobs.packing_config import Language, PackingConfig, pack_with
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
        tokenizers: modality -> fingerprint of the codec, of all its sources.
        done: its manifest is there already.
    """

    folder: Path
    tokenizers: Mapping[str, str]
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
        manifests = [(path, _read_samples_manifest(path, name)) for path in source.paths]
        parts = (False, True) if config.validation_share else (False,)
        plans += [_plan_dataset(name, manifests, config, language, limit, validation) for validation in parts]
    return plans


def _read_samples_manifest(path: Path, name: str) -> Manifest:
    manifest = read_manifest(path)
    if manifest.kind != "samples":
        raise DatasetError(
            f"{path}: expected sample shards, found a dataset of kind {manifest.kind!r}; "
            f"give datasets.{name}.path the output of anygpt-tokenize"
        )
    return manifest


def _plan_dataset(
    name: str,
    sources: Sequence[tuple[Path, Manifest]],
    config: PackingConfig,
    language: Language,
    limit: int | None,
    validation: bool,
) -> PackingPlan:
    folder = config.output / (name + VALIDATION_SUFFIX * validation)
    facts = _facts(name, config, language, limit, validation)
    inputs = [[m.name, m.fingerprint, [[s.path, s.num_rows, s.sha256] for s in m.shards]] for _, m in sources]
    key = fingerprint({"config": facts, "inputs": inputs})
    done = (folder / MANIFEST_NAME).is_file()
    if done and (found := read_manifest(folder).fingerprint) != key:
        raise stale_output(folder, found, key)
    draws = config.datasets[name].draws
    slices = plan_slices(sources, draws=draws, unit_documents=config.unit_documents, limit=limit)
    units = tuple(PackingUnit(name, number, folder, part, key, validation) for number, part in enumerate(slices))
    return PackingPlan(folder, _same_tokenizers(sources), units, key, facts, done)


def _same_tokenizers(sources: Sequence[tuple[Path, Manifest]]) -> dict[str, str]:
    """Modality -> the one codec fingerprint of all sources: codes of two codecs in one dataset would be noise."""
    tokenizers: dict[str, str] = {}
    for path, manifest in sources:
        for modality, found in manifest.tokenizers.items():
            expected = tokenizers.setdefault(modality, found)
            if found != expected:
                raise FingerprintMismatch(
                    f"{path}: its {modality} codes were made by tokenizer {found}, those of {sources[0][0]} by {expected}; "
                    "tokenize one of them again with the tokenizer of the other"
                )
    return tokenizers


def _facts(name: str, config: PackingConfig, language: Language, limit: int | None, validation: bool) -> dict[str, Any]:
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
        **config.datasets[name].model_dump(mode="json", exclude={"path"}),
        **config.model_dump(mode="json", exclude=machine),
    }


def run_packing(config: PackingConfig, plans: Sequence[PackingPlan], language: Language) -> dict[str, Any]:
    """Do what is left of the plans.

    Returns:
        The report, as ``OUTPUT/report.json`` has it; the stored one when there was nothing to do.
    """
    with only_writer(config.output):
        return _run(config, plans, language)


def _run(config: PackingConfig, plans: Sequence[PackingPlan], language: Language) -> dict[str, Any]:
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
        tokenizers=plan.tokenizers,
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
