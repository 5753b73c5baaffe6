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
from shards.errors import ConfigError, DatasetError, FingerprintMismatch
from shards.lineage import packing_fingerprint
from shards.manifest import MANIFEST_NAME, Manifest, read_manifest
from shards.output_lock import only_writer
from shards.packed import BLOCK_ROWS, FORMAT_VERSION, sidecar_path
from tokenize_jobs.packing_config import Language, PackingConfig, Source, pack_with
from tokenize_jobs.packing_log import packing_log
from tokenize_jobs.packing_report import finish_dataset, read_report, summarize, write_report
from tokenize_jobs.packing_result import UnitResult
from tokenize_jobs.packing_slices import Sources, deal_slices, num_documents, plan_slices
from tokenize_jobs.packing_unit import VALIDATION_SUFFIX, PackingUnit, read_result, stale_output


@dataclass(frozen=True, slots=True)
class PackingPlan:
    """One packed dataset to make.

    Attributes:
        tokenizers: modality -> fingerprint of the codec, of all its sources.
        sources: names of the datasets of samples it is made of, its filler's among them.
        done: its manifest and all its shards are there already.
    """

    folder: Path
    tokenizers: Mapping[str, str]
    units: tuple[PackingUnit, ...]
    fingerprint: str
    config: Mapping[str, Any]
    sources: tuple[str, ...]
    done: bool


def plan_packing(config: PackingConfig, language: Language, *, limit: int | None = None) -> list[PackingPlan]:
    """What has to be made, from the datasets' manifests alone.

    Args:
        limit: of every dataset and of its filler, use the first so many samples only.

    Raises:
        DatasetError: a source is missing or no sample shards; an output folder holds something else.
        ConfigError: unknown directions, shares that do not sum to 1, or a dataset that is its own filler.
    """
    plans: list[PackingPlan] = []
    for name, source in config.datasets.items():
        main = _open_samples(source, f"datasets.{name}")
        filler = _open_samples(source.filler, f"datasets.{name}.filler") if source.filler else []
        _check_apart(main, filler, name)
        parts = (False, True) if config.validation_share else (False,)
        plans += [_plan_dataset(name, main, filler, config, language, limit, validation) for validation in parts]
    return plans


def _open_samples(source: Source, where: str) -> list[tuple[Path, Manifest]]:
    if source.directions is not None:
        check_shares(source.directions, where=f"{where}.directions")
    return [(path, _read_samples_manifest(path, where)) for path in source.paths]


def _check_apart(main: Sources, filler: Sources, name: str) -> None:
    """A row's tokens are told apart by the name of their dataset."""
    if twice := sorted({found.name for _, found in main} & {found.name for _, found in filler}):
        raise ConfigError(
            f"datasets.{name}.filler: expected other datasets than datasets.{name}.path, found {twice[0]!r} in both; "
            "remove it from one of them"
        )


def _read_samples_manifest(path: Path, where: str) -> Manifest:
    manifest = read_manifest(path)
    if manifest.kind != "samples":
        raise DatasetError(
            f"{path}: expected sample shards, found a dataset of kind {manifest.kind!r}; "
            f"give {where}.path the output of anygpt-tokenize"
        )
    return manifest


def _plan_dataset(
    name: str,
    main: Sources,
    filler: Sources,
    config: PackingConfig,
    language: Language,
    limit: int | None,
    validation: bool,
) -> PackingPlan:
    folder = config.output / (name + VALIDATION_SUFFIX * validation)
    facts = _facts(name, config, language, limit, validation)
    sources = [*main, *filler]
    key = packing_fingerprint(facts, [manifest for _, manifest in sources])
    draws = config.datasets[name].draws
    slices = plan_slices(main, draws=draws, unit_documents=config.unit_documents, limit=limit)
    dealt = deal_slices(filler, num_units=len(slices), limit=limit)
    units = tuple(
        PackingUnit(name, number, folder, part, key, validation, spare)
        for number, (part, spare) in enumerate(zip(slices, dealt, strict=True))
    )
    names = tuple(sorted({manifest.name for _, manifest in sources}))
    return PackingPlan(folder, _same_tokenizers(sources), units, key, facts, names, _is_done(folder, key))


def _is_done(folder: Path, key: str) -> bool:
    """Whether the dataset is there with all its shards; one that lost a shard gets it back."""
    if not (folder / MANIFEST_NAME).is_file():
        return False
    found = read_manifest(folder)
    if found.fingerprint != key:
        raise stale_output(folder, found.fingerprint, key)
    paths = [(folder / shard.path, shard.num_bytes) for shard in found.shards]
    return all(path.is_file() and path.stat().st_size == size and sidecar_path(path).is_file() for path, size in paths)


def _same_tokenizers(sources: Sources) -> dict[str, str]:
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
    machine = {
        "output",
        "datasets",
        "templates",
        "vocabulary",
        "text_tokenizer",
        "checkpoint",
        "dialogue_preset",  # the templates' fingerprint covers it
        "workers",
        "reject_budget",
        "documents",
    }
    return {
        "dataset": name,
        "validation": validation,
        "limit": limit,
        "format_version": FORMAT_VERSION,
        "block_rows": BLOCK_ROWS,
        "packing_version": PACKING_VERSION,
        "vocabulary": language.vocabulary.fingerprint,
        "templates": language.templates.fingerprint if language.templates else config.documents,
        **config.datasets[name].model_dump(mode="json", exclude={"path": True, "filler": {"path"}}),
        **config.model_dump(mode="json", exclude=machine),
    }


def run_packing(config: PackingConfig, plans: Sequence[PackingPlan], language: Language) -> dict[str, Any]:
    """Do what is left of the plans.

    Returns:
        The report, as ``OUTPUT/report.json`` has it; the stored one when there was nothing to do.
    """
    if all(plan.done for plan in plans) and (stored := read_report(config.output)) is not None:
        return stored
    started = time.monotonic()
    with only_writer(config.output), packing_log(config.output) as log:
        results = _pack_missing(config, [plan for plan in plans if not plan.done], language, log)
        for plan, found in results:
            manifest = finish_dataset(plan.folder, _manifest(plan, language), found, config.reject_budget)
            log.info("dataset_done", dataset=manifest.name, rows=manifest.num_rows, **manifest.counts)
        report = summarize({plan.folder.name: read_manifest(plan.folder) for plan in plans})
        return write_report(config.output, report, time.monotonic() - started)


def _pack_missing(
    config: PackingConfig, plans: Sequence[PackingPlan], language: Language, log: Any
) -> list[tuple[PackingPlan, list[UnitResult]]]:
    """Results of all units of all plans, in unit order; those with a ledger entry are not packed again."""
    units = [unit for plan in plans for unit in plan.units]
    results = {unit: result for unit in units if (result := read_result(unit)) is not None}
    missing = [unit for unit in units if unit not in results]
    log.info("pack_begun", units=len(units), missing=len(missing))
    with tqdm(total=len(units), initial=len(results), unit="shard", desc="pack", disable=None) as progress:
        for unit, result in _pack_all(missing, config, language):
            results[unit] = result
            log.info(
                "unit_done",
                dataset=unit.folder.name,
                unit=unit.number,
                written=result.written,
                rejected=result.rejected,
            )
            progress.update()
    return [(plan, [results[unit] for unit in plan.units]) for plan in plans]


def format_plan(plans: Sequence[PackingPlan]) -> str:
    """What a run would do, as a table for a terminal."""
    lines = [f"{'dataset':<28}{'documents':>12}{'filler':>12}{'shards':>8}  state"]
    for plan in plans:
        documents = sum(num_documents(unit.slices) for unit in plan.units)
        filler = sum(num_documents(unit.filler) for unit in plan.units)
        finished = sum(read_result(unit) is not None for unit in plan.units)
        state = "done" if plan.done else f"{finished} of {len(plan.units)} shards done"
        lines.append(f"{plan.folder.name:<28}{documents:>12,}{filler:>12,}{len(plan.units):>8}  {state}")
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
        extra={"sources": dict.fromkeys(plan.sources, 0)},
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
