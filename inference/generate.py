"""Answering tasks: batched by direction, resumable, one file an answer.

Prompts are exactly what packing writes (:mod:`pipeline.rendering`); the instruction is drawn by a hash of the task's key
and the seed, the draws of an answer likewise. So an answer does not depend on the batch it is in, nor on when it is given.

Writes ``OUTPUT/MODALITY/NAME.png|wav|txt`` and ``OUTPUT/results.jsonl`` (:mod:`inference.results`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load_config
from inference.config import InferenceConfig
from inference.decoding import load_decoding
from inference.generation import Request
from inference.media_in import decode_file
from inference.media_out import safe_name, save_medium
from inference.results import RESULTS_NAME, Row, append_results, mend_results, read_results
from inference.runtime import Runtime
from inference.tasks import Task, with_keys
from inference.vocoder import VocoderConfig, weight_files
from pipeline.templates import draw_fractions, load_templates
from pipeline.tokenization import Clip
from pipeline.tokenizers.codecs import codec_weight_files
from pipeline.tokenizers.weights import choose_device
from shards.errors import ConfigError, SampleError, TokenizerError
from shards.lease import exclusive_writer
from shards.manifest import fingerprint
from shards.modality import Modality
from shards.records import Segment
from shards.vocabulary import TokenIds
from shards.writer import commit_bytes

GENERATE_VERSION = 2
"""Raised whenever the same task would be answered otherwise under the same settings."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was given, or was there before.

    Attributes:
        row: its line of ``results.jsonl``.
        output: the folder that ``row["file"]`` is relative to.
    """

    row: Row
    output: Path

    @property
    def text(self) -> str | None:
        """What was written, or None."""
        return self.row.get("text")

    @property
    def path(self) -> Path:
        """The file of the answer."""
        return self.output / self.row["file"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that could not be asked; it is tried again next time."""

    task: Task
    error: SampleError


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be answered.

    Attributes:
        settings: 16 hex digits over all that decides an answer, the task apart.
        done: key -> answer, of those that were answered before.
        pending: those that were not, in the order they were given.
    """

    config: InferenceConfig
    settings: str
    tasks: Sequence[tuple[str, Task]]
    done: Mapping[str, Answer]
    pending: Sequence[tuple[str, Task]]

    def directions(self) -> dict[str, int]:
        """How many of each direction are pending."""
        return dict(sorted(Counter(task.direction for _, task in self.pending).items()))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A task on its way: its prompt and what it was written from."""

    key: str
    task: Task
    instruction: str
    prompt_ids: TokenIds


def plan_tasks(tasks: Sequence[Task], config: InferenceConfig) -> Plan:
    """What of these tasks is not yet answered under these settings; no model is loaded.

    Raises:
        ConfigError: a codec or vocoder that a task needs is not in the config; a file of the config is wrong.
        DatasetError: ``results.jsonl`` is not one.
    """
    for task in tasks:
        _check_needs(task, config)
    settings = settings_of(config)
    there = _answered(config, settings)
    keyed = with_keys([_with_instruction(task, config) for task in tasks])
    done = {key: there[key] for key, _ in keyed if key in there}
    return Plan(config, settings, keyed, done, [(key, task) for key, task in keyed if key not in done])


def answer_tasks(plan: Plan, open_model: Callable[[], Runtime]) -> Iterator[Answer | Failure]:
    """Answer what is pending, a batch at a time; each answer is on disk before it is given out.

    Args:
        open_model: called once, and only if there is anything to answer.

    Raises:
        DatasetError: another run writes to the same output.
    """
    if not plan.pending:
        return
    with exclusive_writer(plan.config.output):
        path = plan.config.output / RESULTS_NAME
        mend_results(path)
        # Another run may have ended since this one was planned.
        done = _answered(plan.config, plan.settings)
        pending = [(key, task) for key, task in plan.pending if key not in done]
        yield from (done[key] for key, _ in plan.pending if key in done)
        runtime = open_model() if pending else None
        for batch in _batches(pending, plan.config.batch_size):
            assert runtime is not None
            asked, failures = _prepare(runtime, batch)
            yield from failures
            rows = _answer(runtime, asked, plan.settings)
            append_results(path, rows)
            yield from (Answer(row, plan.config.output) for row in rows)


def instruction_for(key: str, direction: str, pool: Sequence[str], *, seed: int) -> str:
    """One of the instructions of a direction, by a hash of the task's key and the seed alone."""
    return pool[int(draw_fractions(key, draw=0, seed=seed, count=1)[0] * len(pool))]


def settings_of(config: InferenceConfig) -> str:
    """16 hex digits over what decides answers: model, codecs, templates, decoding, precision, seed, how files are read.

    Weights count by name, size and time, for they are gigabytes.
    """
    overrides = () if config.dialogue_preset is None else (f"preset={config.dialogue_preset}",)
    on_cpu = choose_device(config.device).type == "cpu"
    facts: dict[str, Any] = {
        "version": GENERATE_VERSION,
        "model": _files(sorted(config.model.glob("*")) if config.model.is_dir() else []),
        "text_tokenizer": _files(sorted(config.text_tokenizer.glob("*")) if config.text_tokenizer else []),
        "templates": load_templates(config.templates, overrides).fingerprint,
        "codecs": {str(modality): _codec_files(config.codec(modality)) for modality in sorted(config.codecs)},
        "vocoder": None if config.vocoder is None else _vocoder_files(config.vocoder),
        "decoding": load_decoding(config.decoding).model_dump(mode="json"),
        "dtype": config.dtype if config.dtype != "auto" else ("float32" if on_cpu else "bfloat16"),
        "seed": config.seed,
        "media": config.media.model_dump(mode="json"),
        "windows": config.windows.model_dump(mode="json"),
    }
    return fingerprint(facts)


def _answered(config: InferenceConfig, settings: str) -> dict[str, Answer]:
    rows = read_results(config.output / RESULTS_NAME)
    return {str(row["key"]): Answer(row, config.output) for row in rows if row["settings"] == settings}


def _with_instruction(task: Task, config: InferenceConfig) -> Task:
    if task.instruction is not None or config.instruction is None or task.direction == "text_to_text":
        return task
    return Task(task.source, task.target, task.text, task.path, task.voice, config.instruction, task.name, task.where)


def _check_needs(task: Task, config: InferenceConfig) -> None:
    for modality in (task.source, task.target):
        if modality is not Modality.TEXT and modality not in config.codecs:
            raise ConfigError(
                f"{task.where}: {task.source}|{task.target} needs codecs.{modality}, found none in the config; set it, "
                f"e.g. --set codecs.{modality}=data/tokenizers/compact.safetensors"
            )
    if task.voice is not None and config.vocoder is None:
        raise ConfigError(
            f"{task.where}: a voice prompt needs a vocoder, found none in the config; set vocoder, e.g. "
            "--set vocoder=configs/vocoders/soundstorm.toml, or leave the voice out"
        )


def _batches(pending: Sequence[tuple[str, Task]], size: int) -> Iterator[list[tuple[str, Task]]]:
    """Tasks of one direction at a time, those of the earliest first."""
    by_direction: dict[str, list[tuple[str, Task]]] = {}
    for key, task in pending:
        by_direction.setdefault(task.direction, []).append((key, task))
    for same in by_direction.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _prepare(runtime: Runtime, batch: Sequence[tuple[str, Task]]) -> tuple[list[_Asked], list[Failure]]:
    """Prompts of a batch of one direction, and what cannot be asked."""
    ready: list[tuple[str, Task, Clip | None]] = []
    failures: list[Failure] = []
    config = runtime.config
    for key, task in batch:
        try:
            clip = None
            if task.path is not None:
                _, clip = decode_file(task.path, task.source, media=config.media, windows=config.windows)
            if task.voice is not None:
                runtime.voice(task.voice)
            ready.append((key, task, clip))
        except (SampleError, TokenizerError) as error:
            failures.append(_failure(task, error))
    clips = [clip for _, _, clip in ready if clip is not None]
    segments = iter(runtime.encode_clips(batch[0][1].source, clips) if clips else [])
    asked: list[_Asked] = []
    for key, task, clip in ready:
        medium = None if clip is None else next(segments)
        try:
            asked.append(_ask(runtime, key, task, medium))
        except SampleError as error:
            failures.append(_failure(task, error))
    return asked, failures


def _ask(runtime: Runtime, key: str, task: Task, medium: Segment | None) -> _Asked:
    instruction = task.instruction or ""
    if not instruction and task.direction != "text_to_text":
        pool = runtime.templates.pool(task.direction)
        instruction = instruction_for(key, task.direction, pool, seed=runtime.config.seed)
    ids = runtime.prompt_ids(task.direction, instruction=instruction, text=task.text, medium=medium)
    runtime.budget(task.target, len(ids))  # told now, if an answer has no room
    return _Asked(key, task, instruction, ids)


def _answer(runtime: Runtime, asked: Sequence[_Asked], settings: str) -> list[Row]:
    """Generate, decode and write the files of a batch of one direction."""
    if not asked:
        return []
    target = asked[0].task.target
    requests = [Request(f"{one.task.direction}/{one.key}", one.prompt_ids) for one in asked]
    answers = runtime.answer(target, requests)
    if target is Modality.TEXT:
        return [_write_text(runtime, one, ids, settings) for one, ids in zip(asked, answers, strict=True)]
    rows: list[Row] = []
    for voice in dict.fromkeys(one.task.voice for one in asked):
        chosen = [index for index, one in enumerate(asked) if one.task.voice == voice]
        codes = [runtime.codes_of(target, answers[index]) for index in chosen]
        media = runtime.decode_all(target, codes, voice=voice)
        for index, medium in zip(chosen, media, strict=True):
            rows.append(_write_medium(runtime, asked[index], answers[index], medium, settings))
    return rows


def _write_text(runtime: Runtime, one: _Asked, ids: Sequence[int], settings: str) -> Row:
    text = runtime.text_of(ids)
    path = runtime.config.output / "text" / f"{_file_name(one, settings)}.txt"
    commit_bytes(path, (text + "\n").encode("utf-8"))
    return {**_row(runtime, one, ids, settings, path), "text": text}


def _write_medium(runtime: Runtime, one: _Asked, ids: Sequence[int], medium: Any, settings: str) -> Row:
    target = one.task.target
    folder = runtime.config.output / str(target)
    rate = runtime.sample_rate_hz(target)
    path = save_medium(folder, _file_name(one, settings), target, medium, sample_rate_hz=rate or None)
    row = _row(runtime, one, ids, settings, path)
    return {**row, "duration_s": round(len(medium) / rate, 3)} if rate else row


def _row(runtime: Runtime, one: _Asked, ids: Sequence[int], settings: str, path: Path) -> dict[str, Any]:
    task = one.task
    voice = {} if task.voice is None else {"voice_prompt": str(task.voice)}
    return {
        "key": one.key,
        "settings": settings,
        "source": str(task.source),
        "target": str(task.target),
        "input": task.asked,
        **voice,
        "instruction": one.instruction,
        "file": path.relative_to(runtime.config.output).as_posix(),
        "num_prompt_ids": len(one.prompt_ids),
        "token_ids": list(ids),
    }


def _file_name(one: _Asked, settings: str) -> str:
    readable = one.task.text if one.task.path is None else one.task.path.stem
    return safe_name(readable or "", unique_by=f"{one.key}\x1f{settings}")


def _failure(task: Task, error: SampleError | TokenizerError) -> Failure:
    return Failure(task, error if isinstance(error, SampleError) else SampleError("voice_unreadable", str(error)))


def _codec_files(path: Path) -> list[tuple[str, int, int]]:
    files = [path, *(file.path for file in codec_weight_files(path) if file.path is not None)]
    return _files(sorted(set(files)))


def _vocoder_files(path: Path) -> list[tuple[str, int, int]]:
    files = weight_files(load_config(path, VocoderConfig))
    return _files([path, *sorted({file.path for file in files if file.path is not None})])


def _files(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    statuses = [(path.name, path.stat()) for path in paths if path.is_file()]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in statuses]
