"""``anygpt-report``: the proof at the end of ``make pretrain``.

Collects what every stage measured (corpora, packing, codecs, loss, time, memory), lets the trained model answer held-out
questions, and writes ``report.json`` and ``report.html`` into the folder of the run. Running it again on the same model
and figures changes no byte.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.load import Config
from evaluation.heldout_config import HeldoutConfig
from evaluation.route import StageFigures, read_figures
from pipeline.templates import load_templates
from pipeline.tokenizers.base import MediaDetokenizer
from pipeline.tokenizers.codecs import served_modalities
from pipeline.tokenizers.compact import load_codec
from shards.errors import AnyGPTError, DatasetError
from shards.manifest import fingerprint, read_manifest
from shards.tokenizer_files import folder_fingerprint
from shards.vocabulary import Modality
from shards.writer import commit_bytes, file_sha256

if TYPE_CHECKING:
    from evaluation.heldout import TaskResult

REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
REPORT_VERSION = 3
_CODEC_KEYS = ("image_psnr_db", "speech_mel", "speech_mel_shuffled", "music_mel", "music_mel_shuffled")
_LOSS_WINDOW = 3  # logged lines averaged for a modality's first and last loss


class ReportConfig(Config):
    """What a file in ``configs/reports`` holds."""

    title: str
    run: Path
    """Folder of the run; its ``checkpoints/final`` is what answers."""
    corpora: Path
    """Folder whose sub-folders are datasets of sample shards."""
    packing: Path
    """``report.json`` of the packing run."""
    codecs: Path
    """The family file; its report lies beside it."""
    text_tokenizer: Path
    templates: Path = Path("configs/templates")
    heldout: HeldoutConfig


def make_report(config: ReportConfig) -> dict[str, Any]:
    """Write ``report.json`` and ``report.html``; the stored report when nothing has changed.

    Raises:
        AnyGPTError: a stage before this one is not finished.
    """
    key = report_key(config)
    path = config.run / REPORT_NAME
    stored = _read_json(path) if path.is_file() else {}
    if stored.get("key") == key and (config.run / PAGE_NAME).is_file():
        return stored
    started = time.monotonic()
    curves = read_curves(config.run / "metrics.jsonl")
    detokenizers = _detokenizers(config.codecs)
    results = _examine(config, detokenizers)
    report = {"key": key, **_figures(config, curves, results)}
    # Its own time up to here; what is left is writing two files.
    report["seconds"]["report"] = round(time.monotonic() - started, 1)
    from evaluation.page import write_page  # as in _examine

    page = write_page(config.title, report, curves, results, detokenizers)
    commit_bytes(config.run / PAGE_NAME, page.encode())
    commit_bytes(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    return report


def report_key(config: ReportConfig) -> str:
    """16 hex digits over what the report is made from: model, figures, codecs, held-out samples and what is asked.

    Raises:
        AnyGPTError: a stage before this one is not finished.
    """
    model = config.run / "checkpoints" / "final" / "model.safetensors"
    if not model.is_file():
        raise AnyGPTError(f"{model}: expected a finished training run, found none; run anygpt-train first")
    used = [model, config.run / "metrics.jsonl", config.packing, config.codecs, _codec_report(config.codecs)]
    facts = {
        "version": REPORT_VERSION,
        "files": [file_sha256(path) for path in used],
        "heldout": config.heldout.model_dump(mode="json"),
        "asked": [[shard.sha256 for shard in read_manifest(task.dataset).shards] for task in config.heldout.tasks()],
        "text_tokenizer": folder_fingerprint(config.text_tokenizer),
        "templates": load_templates(config.templates).fingerprint,
        "title": config.title,
    }
    return fingerprint(facts)


def _examine(config: ReportConfig, detokenizers: Mapping[Modality, MediaDetokenizer]) -> list[TaskResult]:
    """Every task that the config names, put to the model of the run."""
    # Seconds of imports, which a report that is there should not have to wait for.
    from evaluation.dialogues import examine_dialogues
    from evaluation.heldout import Examiner, examine_media, held_out
    from inference.model import load_model

    loaded = load_model(config.run / "checkpoints" / "final", text_tokenizer=config.text_tokenizer)
    examiner = Examiner(loaded, load_templates(config.templates), detokenizers, config.heldout)
    results = examine_media(examiner)
    if config.heldout.dialogues:
        results.append(examine_dialogues(examiner, held_out(config.heldout.dialogues)))
    return results


def format_report(report: Mapping[str, Any], run: Path) -> str:
    """The figures for a terminal."""
    lines = [f"{'stage':<24}{'seconds':>10}"]
    lines += [f"{name:<24}{seconds:>10.1f}" for name, seconds in report["seconds"].items()]
    lines += [
        f"{'run':<24}{sum(report['seconds'].values()):>10.1f}",
        f"{'peak memory, GiB':<24}{report['peak_rss_gib']:>10.2f}",
    ]
    lines += ["", f"rows are full to {report['pack_fill']:.1%}"]
    lines += [f"loss {name:<19}{one['first']:>10.3f} -> {one['last']:.3f}" for name, one in report["loss"].items()]
    lines += [""] + [f"codec {name:<24}{value:>10.2f}" for name, value in report["codec"].items()]
    lines += [""] + [f"held-out {name:<32}{value:>7.1%}" for name, value in report["heldout"].items()]
    lines += ["", f"page: {run / PAGE_NAME}"]
    return "\n".join(lines)


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Loss over steps: ``all``, then each modality, from a run's ``metrics.jsonl``.

    Raises:
        DatasetError: no such file.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: expected the metrics of a training run, found none; run anygpt-train first")
    curves: dict[str, list[tuple[int, float]]] = {"all": []}
    for entry in _training_lines(path):
        if entry["loss"] is None:  # no step of the interval was learnt from
            continue
        curves["all"].append((entry["step"], entry["loss"]))
        for name, loss in sorted(entry["loss_by_modality"].items()):
            if loss is not None:
                curves.setdefault(name, []).append((entry["step"], loss))
    return curves


def _figures(
    config: ReportConfig, curves: Mapping[str, Sequence[tuple[int, float]]], results: Sequence[TaskResult]
) -> dict[str, Any]:
    route = read_figures(config.run)
    packing = _read_json(config.packing)
    return {
        "seconds": {name: stage.seconds for name, stage in route.items() if name != "report"},
        "peak_rss_gib": _peak(route),
        "pack_fill": packing["fill"],
        "tokens_trained": _tokens_trained(config.run / "metrics.jsonl"),
        "loss": {name: _first_and_last(curve) for name, curve in curves.items() if curve},
        "codec": {
            name: value for name, value in _read_json(_codec_report(config.codecs)).items() if name in _CODEC_KEYS
        },
        "heldout": {name: round(value, 4) for result in results for name, value in result.figures.items()},
        "corpora": _corpora(config.corpora),
    }


def _corpora(folder: Path) -> dict[str, Any]:
    reports = sorted(folder.glob("**/report.json"))
    if not reports:
        raise DatasetError(f"{folder}: expected datasets of sample shards, found none; run anygpt-tokenize first")
    kept = ("inputs", "written", "filtered", "rejected", "tokens")
    found: dict[str, Any] = {}
    for path in reports:
        report = _read_json(path)
        one = {key: report[key] for key in kept}
        one |= {key: sum(one[key].values()) for key in ("filtered", "rejected")}
        found[str(path.parent.relative_to(folder))] = one
    return found


def _first_and_last(curve: Sequence[tuple[int, float]]) -> dict[str, float]:
    first, last = curve[:_LOSS_WINDOW], curve[-_LOSS_WINDOW:]
    return {
        "first": round(sum(loss for _, loss in first) / len(first), 4),
        "last": round(sum(loss for _, loss in last) / len(last), 4),
    }


def _tokens_trained(path: Path) -> int:
    """Ids that had a loss, over the whole run; a line counts those since the line before."""
    return sum(sum(line["targets"].values()) for line in _training_lines(path))


def _training_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Intervals of training; lines of another kind are losses of validation."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get("kind", "train") == "train":
            yield entry


def _peak(route: Mapping[str, StageFigures]) -> float:
    return max((stage.peak_rss_gib for name, stage in route.items() if name != "report"), default=0.0)


def _detokenizers(codecs: Path) -> dict[Modality, MediaDetokenizer]:
    return {modality: load_codec(codecs, modality) for modality in served_modalities(codecs)}


def _codec_report(codecs: Path) -> Path:
    return codecs.with_suffix(".report.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: expected a report of an earlier stage, found none; run the stage that writes it"
        ) from error
