"""Pages of one sample, of some rows and of all rows: complete, linked, and safe whatever the data say."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError, DatasetError
from shards.inspector import Decoders, inspect_dataset, inspect_rows, inspect_sample, write_pages
from shards.inspector_samples import read_left_out
from shards.left_out import REJECT_SCHEMA
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.packed import FORMAT_VERSION as PACKED_VERSION
from shards.packed import PackedRow, Placement, sidecar_path, write_packed_shard
from shards.records import FORMAT_VERSION, Provenance, Segment, TokenizedSample, samples_to_table
from shards.storage import open_path
from shards.vocabulary import Modality, Vocabulary
from shards.writer import commit_bytes, commit_table
from tests.fixtures.s3_server import make_bucket, pointed_at, s3_server

NASTY = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Elements of a page; every one is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(text: str) -> Page:
    """What holds for every page: one known script, and nothing that points outside."""
    page = Page(text)
    [script] = page.scripts
    [policy] = [
        meta["content"] for meta in page.named("meta") if "content" in meta and "default-src" in meta["content"]
    ]
    assert f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}" in policy
    assert "default-src 'none'" in policy
    names = {attributes.get("id") for _, attributes in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert str(attributes.get("src", "data:")).startswith("data:")
        if (link := attributes.get("href")) is not None:
            assert link[1:] in names if link.startswith("#") else re.fullmatch(r"(index|page-\d{4})\.html", link)
        assert tag != "link"
    return page


def make_sample(number: int, text: str = "a cat") -> TokenizedSample:
    segments = (
        Segment("caption", Modality.TEXT, text=text),
        Segment("image", Modality.IMAGE, codes=np.full((32, 1), number, np.uint16), media_sha256="ab" * 32),
    )
    source = Provenance(f"{number:05d}.tar", "1.jpg", 17, "u", "CC BY")
    return TokenizedSample(f"cats/{number}", "cats", "train", segments, source, {"clip_score": number / 100})


def write_samples(folder: Path, samples: list[TokenizedSample]) -> Path:
    entries = []
    for number in range(0, len(samples), 20):
        table = samples_to_table(samples[number : number + 20])
        path = folder / f"u{number}.parquet"
        entries.append(ShardEntry(path.name, len(table), 1, commit_table(path, table), {"image": 32 * len(table)}))
    write_manifest(folder, Manifest("samples", "cats", "f", tuple(entries), FORMAT_VERSION))
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples", [make_sample(number) for number in range(50)])


@pytest.fixture
def packed(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    """30 rows of two documents; ``cats/7`` is in rows 3 and 18, told twice."""
    rows = []
    for number in range(30):
        ids: list[int] = []
        placements = []
        for position in range(2):
            sample = 7 if (number, position) in ((3, 0), (18, 1)) else 100 + 2 * number + position
            media = vocabulary.media_token_ids("image", np.full((32, 1), sample, np.uint16)).tolist()
            document = [vocabulary.bos_id, 10, *media, vocabulary.eos_id]
            place = (len(ids), len(ids) + len(document))
            placements.append(Placement(f"cats/{sample}", "cats", number // 10, "text_to_image", *place))
            ids += document
        padded = np.full(96, vocabulary.pad_id)
        padded[: len(ids)] = ids
        rows.append(PackedRow(padded, len(ids), (0, len(ids) // 2), ((1, len(ids)),), tuple(placements)))
    folder = tmp_path / "packed"
    entry = write_packed_shard(folder / "a.arrow", rows, vocabulary=vocabulary, sequence_length=96)
    extra = {
        "sequence_length": 96,
        "sources": {"cats": 2160},
        "tokens_by_source": {"cats": {"image": 2040, "text": 180}},
    }
    write_manifest(
        folder, Manifest("packed", "rows", "f", (entry,), PACKED_VERSION, vocabulary=vocabulary, extra=extra)
    )
    return folder


def test_a_sample_is_found_in_samples_and_in_every_row_that_has_it(packed: Path, samples: Path) -> None:
    text = inspect_sample(packed, "cats/7", Decoders(), samples=[samples])
    page = check_page(text)
    assert [a["id"] for a in page.named("details") if a.get("class") == "row"] == ["row-3", "row-18"]
    wanted = [a for a in page.named("article") if a.get("class") == "document wanted"]
    assert len(wanted) == 2
    assert len([a for a in page.named("article") if a.get("class") == "document"]) == 2
    # Marked in the bar: ids 0 to 37 of row 3, 37 to 74 of row 18.
    assert [a["style"] for a in page.named("u")] == ["left:0.000%;width:38.542%", "left:38.542%;width:38.542%"]
    assert "2 places in 2 of 30 rows" in text
    assert text.count("7 7 7 7 7 7 7 7 …") == 3
    assert "a cat" in text
    assert "ab" * 32 in text
    assert "clip score</dt><dd>0.07</dd>" in text


def test_a_sample_of_sample_shards_is_shown_whole(samples: Path) -> None:
    story = "long " * 2000
    write_samples(samples, [make_sample(0), make_sample(1, story)])
    assert story in inspect_sample(samples, "cats/1", Decoders())
    assert "… and 6,000 more characters" in inspect_dataset(samples, Decoders())


def test_an_unknown_sample_is_an_error_that_names_near_ones(packed: Path, samples: Path) -> None:
    for folder in (packed, samples):
        with pytest.raises(DatasetError, match=r"expected the id 'cats/7x', found none .* nearest are cats/7"):
            inspect_sample(folder, "cats/7x", Decoders())


def test_of_a_sample_in_many_rows_some_are_shown_and_all_are_listed(packed: Path) -> None:
    sidecar = sidecar_path(packed / "a.arrow")
    table = pq.read_table(sidecar)
    ids = pa.array(["cats/7"] * len(table), pa.string())
    pq.write_table(table.set_column(2, table.schema.field("sample_id"), ids), sidecar)
    text = inspect_sample(packed, "cats/7", Decoders(), rows=4)
    page = check_page(text)
    assert len([a for a in page.named("details") if a.get("class") == "row"]) == 4
    assert "4 of 30 rows are shown; the table has the others" in text
    assert text.count("<tr><td") == 60


@pytest.mark.parametrize("kind", ["packed", "samples"])
def test_pages_of_all_rows_lead_to_each_other(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    output = tmp_path / "pages"
    paths = write_pages(folder, output, Decoders(), per_page=7, max_pages=100)
    total = read_manifest(folder).num_rows
    assert [path.name for path in paths[1:]] == [f"page-{number:04d}.html" for number in range(1, -(-total // 7) + 1)]
    assert sorted(paths) == sorted(output.iterdir())
    # From the first to the last by "next", and back.
    for relation, expected in (("next", paths[1:]), ("prev", paths[:0:-1])):
        path, walked = expected[0], []
        while path:
            walked.append(path)
            page = check_page(path.read_text(encoding="utf-8"))
            links = {a["href"] for a in page.named("a") if a.get("rel") == relation}
            path = output / links.pop() if links else None
        assert walked == expected
    index = check_page(paths[0].read_text(encoding="utf-8"))
    assert [a["href"] for a in index.named("a") if "page-" in str(a["href"])] == [path.name for path in paths[1:]]
    assert index.named("svg")
    everything = "".join(path.read_text(encoding="utf-8") for path in paths[1:])
    if kind == "packed":
        assert re.findall(r'id="row-(\d+)"', everything) == [str(number) for number in range(total)]
    else:
        assert re.findall(r'class="mono">cats/(\d+)<', everything) == [str(number) for number in range(total)]


def test_pages_have_a_limit_and_then_a_selection(samples: Path, tmp_path: Path) -> None:
    output = tmp_path / "pages"
    write_pages(samples, output, Decoders(), per_page=5, max_pages=10)
    paths = write_pages(samples, output, Decoders(), per_page=5, max_pages=2)
    assert sorted(output.iterdir()) == sorted(paths)
    everything = "".join(path.read_text(encoding="utf-8") for path in paths[1:])
    shown = [int(number) for number in re.findall(r'class="mono">cats/(\d+)<', everything)]
    assert (len(shown), shown[0], shown[-1]) == (10, 0, 49)
    assert "2 pages, 10 of 50 samples" in paths[0].read_text(encoding="utf-8")


def test_rows_are_chosen_by_number(packed: Path, samples: Path) -> None:
    assert re.findall(r'id="row-(\d+)"', inspect_rows(packed, Decoders(), start=4, stop=6)) == ["4", "5"]
    text = inspect_rows(samples, Decoders(), start=18, stop=22)
    assert re.findall(r'class="mono">cats/(\d+)<', text) == ["18", "19", "20", "21"]
    assert "samples 48 to 49 of 50" in inspect_rows(samples, Decoders(), start=48, stop=90)
    with pytest.raises(ConfigError, match="expected rows from 0 to 29, found 30 to 39 asked for"):
        inspect_rows(packed, Decoders(), start=30, stop=40)


def test_a_page_has_a_limit_and_says_how_to_write_several(samples: Path, tmp_path: Path) -> None:
    write_samples(samples, [make_sample(number) for number in range(600)])
    with pytest.raises(ConfigError, match=r"at most 500 .* found 600; write several pages with --pages all"):
        inspect_rows(samples, Decoders(), start=0, stop=600)
    with pytest.raises(ConfigError, match="at most 500"):
        inspect_dataset(samples, Decoders(), rows=501)
    with pytest.raises(ConfigError, match="at most 500"):
        write_pages(samples, tmp_path / "pages", Decoders(), per_page=501, max_pages=2)


def test_what_was_left_out_is_listed_by_reason(samples: Path) -> None:
    write_left_out(samples / "rejects.parquet", ["image_truncated"] * 30 + ["too_large"] * 2)
    write_left_out(samples / "filtered.parquet", ["unsafe"])
    counts = {
        "inputs": 83,
        "written": 50,
        "filtered": {"unsafe": 1},
        "rejected": {"image_truncated": 30, "too_large": 2},
    }
    write_manifest(samples, replace(read_manifest(samples), counts=counts))
    text = inspect_dataset(samples, Decoders())
    check_page(text)
    summaries = re.findall(r'<details class="fold"><summary>(.*?)</summary>', text)
    assert summaries == [
        "rejected: image truncated · 30, 10 shown",
        "rejected: too large · 2, 2 shown",
        "filtered: unsafe · 1, 1 shown",
    ]
    assert "found 31 &lt;bytes&gt;" in text
    assert "00031.tar · unit-000000 · offset 31" in text


def test_of_a_long_list_of_what_was_left_out_some_row_groups_are_read(tmp_path: Path) -> None:
    write_left_out(tmp_path / "rejects.parquet", ["cut"] * 1000, row_group=20)
    [found] = read_left_out(tmp_path, each=3)
    assert (found.total, found.looked_at) == (1000, 8 * 20)
    assert [row["sample_id"] for row in found.by_reason["cut"]] == ["c/0", "c/1", "c/2"]


def write_left_out(path: Path, reasons: list[str], row_group: int = 1 << 16) -> None:
    rows = [
        {"sample_id": f"c/{n}", "corpus": "c", "reason": reason, "error": f"found {n} <bytes>", "member": ""}
        | {"source_file": f"{n:05d}.tar", "offset": n, "unit": "unit-000000"}
        for n, reason in enumerate(reasons)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=REJECT_SCHEMA), path, row_group_size=row_group)


def test_nothing_the_data_say_becomes_part_of_the_page(tmp_path: Path, vocabulary: Vocabulary) -> None:
    sample = make_sample(1, NASTY)
    first = replace(sample.segments[0], slot=NASTY)
    where = Provenance(NASTY, NASTY, 0, NASTY, NASTY)
    nasty = replace(sample, sample_id=NASTY, corpus=NASTY, split=NASTY, segments=(first, sample.segments[1]))
    folder = write_samples(tmp_path / "s", [replace(nasty, provenance=where, quality={NASTY: 1.0})])
    write_manifest(folder, replace(read_manifest(folder), name=NASTY, fingerprint=NASTY))
    ids = np.full(96, vocabulary.pad_id)
    ids[:3] = (1, 10, 2)
    row = PackedRow(ids, 3, (0,), ((0, 3),), (Placement(NASTY, NASTY, 1, NASTY, 0, 3),))
    packed = tmp_path / "p"
    entry = write_packed_shard(packed / "a.arrow", [row], vocabulary=vocabulary, sequence_length=96)
    extra = {"sequence_length": 96, "sources": {NASTY: 3}, "tokens_by_direction": {NASTY: 3}}
    counts = {"inputs": 1, "written": 1, "rejected": {NASTY: 1}, "filtered": {}}
    manifest = Manifest("packed", NASTY, NASTY, (entry,), PACKED_VERSION, vocabulary=vocabulary)
    write_manifest(packed, replace(manifest, extra=extra, counts=counts))
    write_left_out(packed / "rejects.parquet", [NASTY])
    decoders = Decoders(text=lambda ids: NASTY)
    pages = [inspect_dataset(path, decoders) for path in (folder, packed)]
    pages += [inspect_sample(path, NASTY, decoders, samples=[folder]) for path in (folder, packed)]
    pages += [
        path.read_text(encoding="utf-8")
        for path in write_pages(packed, tmp_path / "o", decoders, per_page=1, max_pages=1)
    ]
    for text in pages:
        assert not check_page(text).named("img")
        assert "alert" in text


@pytest.fixture(scope="module")
def bucket() -> Iterator[Path]:
    with s3_server() as url, pointed_at(url):
        make_bucket("bucket")
        yield open_path("s3://bucket/cats")


def test_samples_in_an_object_store_are_shown_as_local_ones(bucket: Path, samples: Path) -> None:
    write_left_out(samples / "rejects.parquet", ["cut"])
    for path in samples.iterdir():
        commit_bytes(bucket / path.name, path.read_bytes())
    assert inspect_dataset(bucket, Decoders(), rows=5) == inspect_dataset(samples, Decoders(), rows=5)
    there = inspect_sample(bucket, "cats/33", Decoders())
    assert there == inspect_sample(samples, "cats/33", Decoders()).replace(str(samples), "s3://bucket/cats")
