"""Everything about a run that can be known before the first tensor exists: data, sizes, arithmetic, refusals.

Cheap on purpose (no torch): a misspelt key or a missing dataset is told in a fraction of a second, and the plan of a
7B run can be read on a laptop.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load_config
from shards.errors import ConfigError, DatasetError, FingerprintMismatch
from shards.manifest import fingerprint
from shards.reader import PackedDataset, open_packed, same_vocabulary
from shards.schedule import Schedule
from shards.shard_cache import ShardCache
from shards.storage import is_remote
from shards.tokenizer_files import check_added_tokens, extends
from shards.vocabulary import MediaBlock, Vocabulary
from shards.windows import Windows
from train.base_weights import weights_fingerprint
from train.config import MixtureConfig, SoundStormConfig, TrainConfig
from train.mix_config import PhasedMixtureConfig, make_schedule
from train.shape import Shape, check_expected_shape, padded, shape_of_folder, shape_of_model

FINAL_FOLDER = "final"
VOCABULARY_NAME = "vocabulary.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run, its data opened and found to fit together.

    Attributes:
        datasets: in the order of ``mixture.names``.
        fingerprints: of everything a resumed run must share with its checkpoint.
    """

    config: TrainConfig
    datasets: tuple[PackedDataset, ...]
    mixture: Schedule
    vocabulary: Vocabulary
    sequence_length: int
    shape: Shape | SoundStormConfig
    fingerprints: dict[str, str]

    @property
    def speech_block(self) -> MediaBlock:
        """The one medium of the vocabulary, with objective ``soundstorm``."""
        (block,) = self.vocabulary.blocks.values()
        return block

    def fingerprints_at(self, step: int) -> dict[str, str]:
        """Of everything that steps up to this one depend on: shares of later steps may change while a run goes on."""
        position = step * self.config.batch_rows
        begun = self.mixture.names_until(position)
        later = {f"dataset {name}" for name in self.mixture.names if name not in begun}
        kept = {name: value for name, value in self.fingerprints.items() if name not in later}
        return kept | {"mixture": self.mixture.fingerprint_until(position)}

    @property
    def checkpoints(self) -> Path:
        """Where the run keeps its states and, at the end, its model."""
        return self.config.output / "checkpoints"

    @property
    def final(self) -> Path:
        """The model in Hugging Face's layout, there when the run is finished."""
        return self.checkpoints / FINAL_FOLDER


def make_plan(config: TrainConfig, *, where: str) -> Plan:
    """Open the data of a run and check that everything fits.

    Args:
        where: the config file, for messages.

    Raises:
        ConfigError: a dataset's folder is missing, shares do not sum to 1, or sizes do not fit each other.
        FingerprintMismatch: datasets, or data and initial weights, have different vocabularies.
    """
    names = load_config(config.mixture, PhasedMixtureConfig)
    cache = ShardCache(config.cache_dir, max_bytes=int(config.cache_gib * (1 << 30)))
    datasets = {name: _open(name, names, config, cache) for name in names.names}
    sizes = {name: dataset.num_rows for name, dataset in datasets.items()}
    run = {"batch_rows": config.batch_rows, "steps": config.steps, "seed": config.seed}
    try:
        mixture = make_schedule(names, sizes, **run, windows=_windows(config, datasets))
    except ConfigError as error:
        raise ConfigError(f"{config.mixture}: {error}") from error
    vocabulary = same_vocabulary(datasets)
    sequence_length = _same_length(datasets, config, where)
    shape = _shape(config, vocabulary) if config.objective == "language_model" else _speech_shape(config, vocabulary)
    micro_rows = config.engine.micro_batch_rows
    if micro_rows and config.batch_rows % micro_rows:
        raise ConfigError(
            f"{where}: key 'engine.micro_batch_rows': expected a divisor of batch_rows {config.batch_rows}, "
            f"found {micro_rows}"
        )
    return Plan(
        config,
        tuple(datasets[name] for name in mixture.names),
        mixture,
        vocabulary,
        sequence_length,
        shape,
        _fingerprints(config, datasets, mixture, vocabulary, shape),
    )


def legal_process_counts(batch_rows: int, micro_batch_rows: int | None) -> list[int]:
    """Numbers of processes over which a global batch divides into whole forward passes."""
    micro_batches = batch_rows // (micro_batch_rows or 1)
    return [count for count in range(1, micro_batches + 1) if micro_batches % count == 0]


def check_process_count(config: TrainConfig, processes: int) -> None:
    """Refuse a number of processes that a global batch does not divide over.

    Raises:
        ConfigError: listing the numbers that work, and the nearest batch that this number divides.
    """
    rows, micro_rows = config.batch_rows, config.engine.micro_batch_rows
    legal = legal_process_counts(rows, micro_rows)
    if processes in legal:
        return
    each = processes * (micro_rows or 1)
    batch = max(1, round(rows / each)) * each
    raise ConfigError(
        f"{config.name}: a batch of {rows:,} rows in forward passes of {micro_rows or 'any number of'} rows does not divide "
        f"over {processes:,} processes, which would get {rows / processes:g} rows each; these numbers work: "
        f"{', '.join(map(str, legal))}; or set batch_rows = {batch} and steps = {round(config.steps * rows / batch)}, which "
        "are as many tokens"
    )


def micro_batch_rows(config: TrainConfig, world_size: int) -> int:
    """Rows of one forward pass on one process.

    Raises:
        ConfigError: if the global batch does not divide; lists the numbers of processes that do.
    """
    check_process_count(config, world_size)
    return config.engine.micro_batch_rows or config.batch_rows // world_size


def config_json(config: TrainConfig) -> str:
    """The resolved config, as it is stored and shown."""
    return json.dumps(config.model_dump(mode="json", by_alias=True), indent=1) + "\n"


def describe(plan: Plan) -> str:
    """The plan, for ``--dry-run``."""
    config, stop = plan.config, plan.config.steps * plan.config.batch_rows
    drawn, epochs = plan.mixture.rows_drawn(stop), plan.mixture.epochs(stop)
    vocabulary = f"{plan.vocabulary.name}: {plan.vocabulary.size:,} ids"
    lines = [
        *describe_run(config, plan.sequence_length, plan.shape, vocabulary=vocabulary),
        *_describe_windows(plan),
        "dataset                   share         rows      to read   epochs",
    ]
    for name in plan.mixture.names:
        lines.append(
            f"  {name:<22} {drawn[name] / stop:>6.3f} {plan.mixture.sizes[name]:>12,} "
            f"{drawn[name]:>12,} {epochs[name]:>8.2f}"
        )
    return "\n".join(lines)


def describe_run(
    config: TrainConfig, sequence_length: int, shape: Shape | SoundStormConfig, *, vocabulary: str
) -> list[str]:
    """The lines that need no data."""
    slots = config.batch_rows * sequence_length
    return [
        f"run          {config.name}: {config.steps:,} steps of {config.batch_rows:,} rows of {sequence_length:,}",
        f"tokens       {config.steps * slots:,} ({slots:,} a step)",
        f"parameters   {shape.num_parameters:,} (vocabulary {vocabulary})",
        f"engine       {config.engine.kind}, ZeRO-{config.engine.zero}, {config.engine.dtype}",
        "processes    " + ", ".join(map(str, legal_process_counts(config.batch_rows, config.engine.micro_batch_rows))),
    ]


def _describe_windows(plan: Plan) -> list[str]:
    names = [name for name in plan.mixture.names if name in plan.mixture.windows]
    caches = [dataset.cache for dataset in plan.datasets if dataset.cache is not None]
    lines = [f"windows      {plan.config.shards_per_window} files at a time of {', '.join(names)}"] if names else []
    return lines + [f"cache        {cache.folder}, at most {plan.config.cache_gib:g} GiB" for cache in caches[:1]]


def _open(name: str, mixture: MixtureConfig, config: TrainConfig, cache: ShardCache) -> PackedDataset:
    folder = mixture.paths.get(name, config.data / name)
    if not folder.is_dir():
        raise ConfigError(
            f"{config.mixture}: key 'shares.{name}': expected a packed dataset in {folder}, found no such folder; "
            "pack it first, or set data or paths"
        )
    return open_packed(folder, verify=config.verify, cache=cache)


def _windows(config: TrainConfig, datasets: dict[str, PackedDataset]) -> dict[str, Windows]:
    """Of the datasets whose files come one after the other."""
    chosen = {name: one for name, one in datasets.items() if config.windows == "all" or is_remote(one.folder)}
    return {
        name: Windows([shard.num_rows for shard in dataset.manifest.shards], config.shards_per_window)
        for name, dataset in chosen.items()
    }


def _same_length(datasets: dict[str, PackedDataset], config: TrainConfig, where: str) -> int:
    lengths = {name: dataset.sequence_length for name, dataset in datasets.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"mixture: expected rows of one length, found {lengths}; pack them again with one length")
    found = next(iter(lengths.values()))
    if config.sequence_length not in (None, found):
        raise ConfigError(
            f"{where}: key 'sequence_length': expected {config.sequence_length:,}, found {found:,} in {config.data}; "
            "pack the data with this length, or correct or remove the key"
        )
    return found


def _shape(config: TrainConfig, vocabulary: Vocabulary) -> Shape:
    if config.init.folder is None:
        return padded(shape_of_model(config.model, vocabulary.size), config.model.pad_vocabulary_to)
    folder = _read_folder(config.init.folder, vocabulary)
    check_expected_shape(config.model, folder, config.init.folder / "config.json")
    return padded(shape_of_folder(folder, vocabulary.size), config.model.pad_vocabulary_to)


def _speech_shape(config: TrainConfig, vocabulary: Vocabulary) -> SoundStormConfig:
    """SoundStorm's sizes, compared with the vocabulary of the data."""
    sizes = config.soundstorm
    found = [(block.levels, block.codebook_size) for block in vocabulary.blocks.values()]
    if found != [(sizes.num_quantizers + 1, sizes.codebook_size)]:
        raise ConfigError(
            f"{config.name}: objective 'soundstorm': expected data of one medium with {sizes.num_quantizers + 1} levels of "
            f"{sizes.codebook_size}, found vocabulary {vocabulary.name} with levels and sizes {found}; pack the speech with "
            "documents = 'codes' (configs/packing/soundstorm-mls.toml), or set soundstorm.num_quantizers and codebook_size"
        )
    return sizes


def _read_folder(folder: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    """``config.json`` of the folder a run starts from, its vocabulary compared with that of the data."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"key 'init.from': expected a model in {folder}, found no {path.name}; "
            "finish the run that makes it, or give another folder"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        raise ConfigError(f"{path}: expected model_type 'llama', found {config.get('model_type')!r}")
    own = folder / VOCABULARY_NAME
    if own.is_file():
        found = Vocabulary.from_json(json.loads(own.read_text(encoding="utf-8")))
        if not extends(vocabulary, found):
            raise FingerprintMismatch(
                f"{own}: the weights speak vocabulary {found.name} ({found.fingerprint}), the data "
                f"{vocabulary.name} ({vocabulary.fingerprint}); pack the data again with the vocabulary of the weights"
            )
    elif (
        not check_added_tokens(folder, vocabulary)
        and config["vocab_size"] < vocabulary.size
        and config["vocab_size"] != vocabulary.text_size
    ):
        raise DatasetError(
            f"{path}: expected a model of the {vocabulary.text_size:,} text ids or of all {vocabulary.size:,} ids of "
            f"{vocabulary.name}, found {config['vocab_size']:,}; pack the data with the tokenizer of this model"
        )
    return config


def _fingerprints(
    config: TrainConfig,
    datasets: dict[str, PackedDataset],
    mixture: Schedule,
    vocabulary: Vocabulary,
    shape: Shape | SoundStormConfig,
) -> dict[str, str]:
    batch: dict[str, Any] = {"rows": config.batch_rows}
    if isinstance(shape, SoundStormConfig):
        start: dict[str, Any] = {"soundstorm": shape.model_dump(mode="json")}
        batch |= {"masks": config.seed}
    else:
        start = {"shape": [getattr(shape, name) for name in shape.__slots__]}
        # The shape has the padding; without this key, runs from before there was one are continued.
        model = config.model.model_dump(mode="json", exclude={"pad_vocabulary_to"})
        start |= {"model": model} if config.init.folder is None else {}
        if config.lora is not None:
            start |= {"lora": config.lora.model_dump(mode="json", exclude={"dropout", "export"})}
            start |= {"base": weights_fingerprint(config.init.folder) if config.init.folder else None}
        batch |= {"attention": config.attention}
    return {
        "vocabulary": vocabulary.fingerprint,
        "mixture": mixture.fingerprint,
        "model": fingerprint(start),
        "batch": fingerprint(batch),
        **{f"dataset {name}": dataset.manifest.fingerprint for name, dataset in datasets.items()},
    }
