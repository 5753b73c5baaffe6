"""The report of a dataset: counts by hand equal counts of the page, a sample says that it is one, equal data equal cards."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import DatasetError
from shards.ledger import Entry, unit_name
from shards.manifest import Manifest, ShardEntry, write_manifest
from shards.modality import Modality
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.summary import summarize
from shards.writer import commit_table
from tokenize_jobs.data_card import data_card, filters_in_force, licence_id
from tokenize_jobs.dataset_charts import duration, outcome_bar, progress_chart, short
from tokenize_jobs.dataset_report import (
    CARD_NAME,
    PAGE_NAME,
    TIMED_NAMES,
    dataset_page,
    refresh_dataset_page,
    write_dataset_page,
)
from tokenize_jobs.dataset_statistics import choose_shards, make_distribution, read_statistics
from tokenize_jobs.report import REPORT_NAME, make_manifest, write_report
from tokenize_jobs.timing import DeviceTimes, Times

PICTURES, SOUNDS = 5, 3
CONFIG = {
    "config": {
        "corpus": "laion2b",
        "licence": "CC BY 4.0",
        "split": "train",
        "unit_items": 10,
        "limit": None,
        "filters": {"keep_unknown": True, "max_punsafe": 0.5, "min_side_px": None},
    }
}
TIMES = Times(2, 7200.0, 500.0, 3, (DeviceTimes("NVIDIA H200", 6, 3240.0, 360.0),), ((10.0, 64), (7200.0, 1024)))


def samples(number: int) -> list[TokenizedSample]:
    """A unit of captioned pictures and of spoken sentences, different for every number."""
    noise = np.random.Generator(np.random.PCG64(number))
    made: list[TokenizedSample] = []
    for place in range(PICTURES + SOUNDS):
        text = Segment("caption", Modality.TEXT, text="x" * (place + number + 1))
        if place < PICTURES:
            media = Segment("image", Modality.IMAGE, codes=noise.integers(8192, size=(32, 1)).astype(np.uint16))
        else:
            frames = 50 * (number + 1)
            codes = noise.integers(1024, size=(frames, 8)).astype(np.uint16)
            media = Segment("speech", Modality.SPEECH, codes=codes, duration_s=frames / 50)
        where = Provenance("a.tar", licence="CC0" if place == 0 else "")
        made.append(TokenizedSample(f"x/{number}/{place}", "x", "train", (media, text), where))
    return made


def write_dataset(folder: Path, units: int) -> tuple[Manifest, dict[str, Any]]:
    """Shards as a job commits them, with their manifest and their report."""
    entries: list[Entry] = []
    for number in range(units):
        rows = samples(number)
        path = folder / "shards" / f"{unit_name(number)}.parquet"
        sha256 = commit_table(path, samples_to_table(rows))
        tokens = {"image": 32 * PICTURES, "speech": 50 * (number + 1) * SOUNDS}
        shard = ShardEntry(f"shards/{path.name}", len(rows), path.stat().st_size, sha256, tokens)
        entries.append(
            Entry(
                unit_name(number),
                "f" * 16,
                "a.tar",
                1,
                0,
                11,
                inputs=11,
                written=len(rows),
                filtered={"unsafe": 1},
                rejected={"image_broken": 2} if number else {"<b>odd</b> & sons": 2},
                tokens=tokens,
                seconds={"speech": float((number + 1) * SOUNDS)},
                images=PICTURES,
                shard=shard,
            )
        )
    codecs = {"image": "1" * 16, "speech": "2" * 16}
    manifest = make_manifest("pairs", summarize(entries), fingerprint="f" * 16, facts=CONFIG, tokenizers=codecs)
    return manifest, write_report(folder, summarize(entries).sums, seconds=3.0, times=TIMES, usd_per_hour=2.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pairs")
    manifest, report = write_dataset(folder, 4)
    write_dataset_page(folder, manifest, report, times=TIMES)
    return folder, manifest, report


# Statistics


def test_usage_and_lengths_are_those_counted_by_hand(dataset):
    folder, manifest, _ = dataset
    found = read_statistics(folder, manifest.shards)
    rows = [sample for number in range(4) for sample in samples(number)]
    assert (found.shards_read, found.num_shards, found.rows, found.is_whole) == (4, 4, len(rows), True)
    for modality, levels in (("image", 1), ("speech", 8)):
        assert len(found.usage[modality]) == levels
        for level in range(levels):
            codes = Counter(
                code
                for sample in rows
                for segment in sample.segments
                if segment.codes is not None and segment.modality == modality
                for code in segment.codes[:, level].tolist()
            )
            assert found.usage[modality][level].counts == tuple(sorted(codes.values(), reverse=True))
    lengths = {one.name: one for one in found.lengths}
    assert lengths["speech"].num_observed == 4 * SOUNDS
    assert (lengths["speech"].shortest, lengths["speech"].longest, lengths["speech"].mean) == (1.0, 4.0, 2.5)
    texts = [len(sample.segments[1].text or "") for sample in rows]
    assert (lengths["caption"].num_observed, lengths["caption"].mean) == (len(texts), pytest.approx(np.mean(texts)))
    assert lengths["pictures of a sample"].counts == (4 * SOUNDS, 4 * PICTURES)
    assert found.licences == {"": 4 * (PICTURES + SOUNDS - 1), "CC0": 4}


@given(st.integers(0, 5000), st.integers(1, 300))
def test_a_sample_of_shards_is_spread_evenly_in_order_and_no_larger_than_asked(count: int, most: int):
    shards = [ShardEntry(str(number), 1, 1, "") for number in range(count)]
    places = [int(shard.path) for shard in choose_shards(shards, most=most)]
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    if places:
        steps = np.diff([*places, count])
        assert places[0] == 0
        assert steps.max() - steps.min() <= 1


def test_a_sample_reads_no_other_shard_and_says_so(dataset, tmp_path: Path):
    _, manifest, report = dataset
    smaller, _ = write_dataset(tmp_path, 4)
    for number in (1, 3):
        (tmp_path / "shards" / f"{unit_name(number)}.parquet").unlink()
    found = read_statistics(tmp_path, smaller.shards, most=2)
    assert (found.shards_read, found.num_shards, found.is_whole) == (2, 4, False)
    words = "2 of 4 shards, spread evenly over the dataset"
    assert words in data_card(manifest, report, found)
    assert dataset_page(manifest, report, found).count(words) == 3


@given(st.lists(st.one_of(st.integers(0, 10**6), st.floats(0, 1e6)), min_size=1, max_size=200))
def test_a_distribution_counts_every_value_once(values: list[float]):
    found = make_distribution("x", "s", np.array(values, np.float64))
    assert found.num_observed == len(values)
    assert list(found.edges) == sorted(set(found.edges))
    assert len(found.edges) == len(found.counts) + 1
    assert found.shortest == min(values) == found.edges[0]
    assert found.longest == max(values)


def test_a_shard_that_is_missing_or_wrong_is_named(tmp_path: Path):
    manifest, _ = write_dataset(tmp_path, 1)
    path = tmp_path / manifest.shards[0].path
    segment = Segment("image", Modality.IMAGE, codes=np.full((32, 1), 9000, np.uint16))
    commit_table(path, samples_to_table([TokenizedSample("a", "x", "train", (segment,), Provenance("a"))]))
    with pytest.raises(DatasetError, match=r"unit-000000\.parquet: expected image codes below 8192, found 9000"):
        read_statistics(tmp_path, manifest.shards)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"expected a Parquet shard, found .* run anygpt-verify"):
        read_statistics(tmp_path, manifest.shards)
    path.unlink()
    with pytest.raises(DatasetError, match="expected a Parquet shard"):
        read_statistics(tmp_path, manifest.shards)


def test_a_dataset_of_which_nothing_was_kept_has_a_page_too(tmp_path: Path):
    manifest, report = write_dataset(tmp_path, 0)
    statistics = write_dataset_page(tmp_path, manifest, report)
    assert (statistics.rows, statistics.usage, statistics.lengths) == (0, {}, ())
    assert "size_categories:\n- n<1K" in (tmp_path / CARD_NAME).read_text(encoding="utf-8")


def test_card_and_page_come_back_when_they_were_removed(dataset, tmp_path: Path):
    folder, _, _ = dataset
    manifest, _ = write_dataset(tmp_path, 4)
    with pytest.raises(DatasetError, match="expected a dataset's manifest"):
        refresh_dataset_page(tmp_path)
    write_manifest(tmp_path, manifest)
    assert refresh_dataset_page(tmp_path)
    assert (tmp_path / CARD_NAME).read_bytes() == (folder / CARD_NAME).read_bytes()
    assert not refresh_dataset_page(tmp_path)
    (tmp_path / PAGE_NAME).unlink()
    assert refresh_dataset_page(tmp_path)
    assert (tmp_path / PAGE_NAME).is_file()


# Report


def test_the_report_prices_a_billion_tokens_and_keeps_its_fixed_keys(dataset):
    folder, _, report = dataset
    assert report == json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    assert report["seconds"] == 3.0
    assert report["tokens_per_s"] == round(sum(report["tokens"].values()) / 3, 1)
    times, tokens = report["times"], sum(report["tokens"].values())
    assert (times["busy_share"], times["gpu_hours"], times["wall_hours"], times["runs"]) == (0.9, 1.0, 2.0, 2)
    assert times["usd"] == 2.0
    assert times["usd_per_billion_tokens"] == pytest.approx(2.0 / tokens * 1e9, abs=0.01)
    assert times["device_hours_per_billion_tokens"] == pytest.approx(1e9 / tokens, rel=1e-4)


def test_without_a_rate_there_is_no_price_and_a_shared_gpu_counts_in_part(dataset, tmp_path: Path):
    _, _, report = dataset
    summary = {key: value for key, value in report.items() if key != "times"}
    shared = write_report(tmp_path, summary, seconds=1.0, times=TIMES, gpus_per_encoder=0.25)
    assert shared["times"]["gpu_hours"] == 0.25
    assert "usd" not in shared["times"]
    assert "times" not in write_report(tmp_path, summary, seconds=1.0)


# Card


def front_matter(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    return yaml.safe_load(header)


def test_the_card_is_a_dataset_card(dataset):
    folder, manifest, report = dataset
    card = (folder / CARD_NAME).read_text(encoding="utf-8")
    header = front_matter(card)
    assert header["license"] == ["cc0-1.0", "unknown"]
    assert header["size_categories"] == ["n<1K"]
    assert {"image-to-text", "text-to-image", "automatic-speech-recognition", "any-to-any"} <= set(
        header["task_categories"]
    )
    assert header["configs"] == [{"config_name": "default", "data_files": "shards/*.parquet"}]
    sections = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    assert sections == ["How it was made", "Counts", "Filters", "Licence", "Known gaps"]
    assert f"| inputs | {report['inputs']:,} |" in card
    assert "| filtered: unsafe | 4 |" in card
    assert "| rejected: image_broken | 6 |" in card
    assert "| `max_punsafe` | `0.5` |" in card
    assert manifest.fingerprint in card
    assert "12 inputs" not in card
    assert f"{8:,} inputs ({8 / 44:.2%}) could not be read" in card


def test_equal_datasets_have_equal_cards_whatever_they_took(dataset, tmp_path: Path):
    folder, _, _ = dataset
    manifest, report = write_dataset(tmp_path, 4)
    slower = {**report, "seconds": 99.0, "tokens_per_s": 1.0, "times": {**report["times"], "wall_s": 1e6}}
    write_dataset_page(tmp_path, manifest, slower, times=Times())
    assert (tmp_path / CARD_NAME).read_bytes() == (folder / CARD_NAME).read_bytes()
    assert set(TIMED_NAMES) == {REPORT_NAME, PAGE_NAME}
    write_report(
        tmp_path, {k: v for k, v in report.items() if k != "times"}, seconds=3.0, times=TIMES, usd_per_hour=2.0
    )
    write_dataset_page(tmp_path, manifest, report, times=TIMES)
    for name in TIMED_NAMES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC BY 4.0", "cc-by-4.0"),
        ("CC-BY-NC-SA 4.0", "cc-by-nc-sa-4.0"),
        ("CC0", "cc0-1.0"),
        ("Apache-2.0", "apache-2.0"),
        ("", "unknown"),
        ("see https://example.com", "other"),
    ],
)
def test_licences_get_the_hubs_names(licence: str, expected: str):
    assert licence_id(licence) == expected


def test_filters_in_force_are_those_that_are_set():
    config = {
        "filters": {"keep_unknown": True, "a": None, "b": 0, "c": {"d": 2, "e": False}},
        "leave_out": {"lists": ["x.parquet"]},
        "workers": 3,
    }
    assert filters_in_force(config) == {"b": 0, "c.d": 2, "leave_out.lists": ["x.parquet"]}


# Page


class Page(HTMLParser):
    """What a page is made of: text, tags that are open, and everything it would fetch."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: Counter[str] = Counter()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1

    def handle_data(self, data: str) -> None:
        self.text += data


def drawings(html: str) -> Iterator[ElementTree.Element]:
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        yield ElementTree.fromstring(svg)


def test_the_page_is_whole_fetches_nothing_and_shows_every_figure(dataset):
    folder, manifest, report = dataset
    html = (folder / PAGE_NAME).read_text(encoding="utf-8")
    page = Page(html)
    assert (page.open, page.fetched, page.seen["script"]) == ([], [], 0)
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    # The outcome, one curve, 1 + 8 levels, and three distributions.
    assert len(list(drawings(html))) == 1 + 1 + 9 + 3 == page.seen["svg"]
    for words in (
        f"{report['written']:,}",
        "unsafe",
        "<b>odd</b> & sons",
        "90.0%",
        manifest.tokenizers["image"],
        "CC0",
        "max_punsafe",
        "NVIDIA H200",
        "price of a billion tokens",
        "all 4 shards (32 rows)",
    ):
        assert words in page.text, words


def test_bars_of_a_chart_are_as_long_as_their_counts():
    bars = list(ElementTree.fromstring(outcome_bar({"kept": 60, "filtered": 0, "rejected": 20})))
    assert [bar.get("class") for bar in bars] == ["kept", "rejected"]
    widths = [float(bar.get("width", "0")) for bar in bars]
    assert widths[0] / widths[1] == pytest.approx(3, rel=0.01)
    assert progress_chart([(1.0, 5), (2.0, 10)]).count("polyline") == 1


def test_numbers_are_short_and_durations_have_their_unit():
    assert [short(value) for value in (0.5, 999, 15_600, 300e6, 9.6e9)] == ["0.5", "999", "15.6 k", "300 M", "9.6 G"]
    assert [duration(s) for s in (0.25, 90, 7200, 3 * 86400)] == ["0.25 s", "1.5 min", "2.0 h", "3.0 d"]
