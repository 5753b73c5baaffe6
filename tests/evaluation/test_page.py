"""The report page opens without network, shows truth and answer, and counts what it shows."""

import json
import re

import numpy as np
import pytest

from evaluation.heldout import Generation, TaskResult
from evaluation.page import loss_chart, write_page
from evaluation.report import format_report, read_curves
from shards.errors import DatasetError
from shards.vocabulary import Modality


class FlatPictures:
    name, modality, sample_rate_hz = "flat", Modality.IMAGE, 0

    def decode(self, batch):
        return [np.full((224, 224, 3), int(codes[0, 0]) % 256, np.uint8) for codes in batch]


class Hum:
    name, sample_rate_hz = "hum", 16_000

    def __init__(self, modality):
        self.modality = modality

    def decode(self, batch):
        return [np.sin(np.arange(len(codes) * 320) / 9).astype(np.float32) for codes in batch]


DETOKENIZERS = {
    Modality.IMAGE: FlatPictures(),
    Modality.SPEECH: Hum(Modality.SPEECH),
    Modality.MUSIC: Hum(Modality.MUSIC),
}
CURVES = {"all": [(10, 8.0), (20, 2.0)], "image": [(10, 7.0), (20, 1.0)]}
REPORT = {
    "seconds": {"fit": 30.0, "train": 300.0},
    "peak_rss_gib": 4.5,
    "pack_fill": 0.919,
    "tokens_trained": 1_234_567,
    "loss": {"all": {"first": 8.0, "last": 2.0}},
    "codec": {"image_psnr_db": 31.8},
    "heldout": {"text_to_image_colour": 0.9, "image_to_text_words": 0.95},
    "corpora": {"mls": {"inputs": 5, "written": 3, "filtered": 1, "rejected": 1, "tokens": {"speech": 77}}},
}


def generation(number: int) -> Generation:
    codes = np.full((32, 1), number, np.uint16)
    speech = np.zeros((20, 8), np.uint16)
    media = {"truth": (Modality.IMAGE, codes), "answer": (Modality.IMAGE, codes), "said": (Modality.SPEECH, speech)}
    return Generation(f"s{number}", {"prompt": f"a <red> star {number}"}, media, {"colour": True, "shape": False})


@pytest.fixture(scope="module")
def page() -> str:
    result = TaskResult(
        "text_to_image", "Caption to picture", [generation(n) for n in range(40)], {"text_to_image_colour": 0.5}
    )
    return write_page("A <title>", REPORT, CURVES, [result], DETOKENIZERS)


def test_the_page_needs_no_network(page):
    assert not re.search(r"(?:src|href)=['\"](?!data:)", page) and "@import" not in page and "url(" not in page


def test_text_of_corpora_cannot_break_the_page(page):
    assert "a &lt;red&gt; star" in page and "<red>" not in page and "A &lt;title&gt;" in page


def test_a_dozen_cards_are_chosen_without_looking(page):
    """An even stride once showed three of six compositions, and none of those the model got wrong."""
    shown = [int(number) for number in re.findall(r"star (\d+)", page)]
    assert len(set(shown)) == 12 and len({number % 8 for number in shown}) > 3
    assert page.count("data:image/png") == 24 and page.count("data:audio/wav") == 12
    assert "40 held-out items" in page and page.count("✓ colour") == page.count("✗ shape") == 12


def test_figures_are_on_the_page_and_on_the_terminal(page, tmp_path):
    told = format_report(REPORT, tmp_path)
    assert "1,234,567" in page and "91.9%" in page and "speech 77" in page
    assert "330.0" in told and "4.50" in told and "95.0%" in told and "31.80" in told


def test_every_curve_is_drawn_inside_the_chart():
    chart = loss_chart(CURVES)
    assert chart.count("<polyline") == 2
    for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]+)"', chart))):
        assert 0 <= float(x) <= 900 and 0 <= float(y) <= 300


def test_curves_are_read_from_the_metrics_of_a_run(tmp_path):
    lines = [
        {"step": 10, "loss": 5.0, "loss_by_modality": {"text": 4.0, "music": None}},
        {"step": 20, "loss": 3.0, "loss_by_modality": {"text": 2.0, "music": 6.0}},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert read_curves(path) == {"all": [(10, 5.0), (20, 3.0)], "text": [(10, 4.0), (20, 2.0)], "music": [(20, 6.0)]}
    # Losses of validation and intervals of which nothing was learnt are no part of a curve.
    others = [
        {"kind": "validation", "step": 20, "loss": 9.0, "loss_by_modality": {"text": 9.0}, "targets": {"text": 7}},
        {"step": 30, "loss": None, "loss_by_modality": {}, "targets": {}},
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in others)
    assert read_curves(path) == {"all": [(10, 5.0), (20, 3.0)], "text": [(10, 4.0), (20, 2.0)], "music": [(20, 6.0)]}
    with pytest.raises(DatasetError, match="anygpt-train"):
        read_curves(tmp_path / "none.jsonl")
