"""The inspector's page: complete in itself, truthful about the rows, readable without a codec."""

from __future__ import annotations

import base64
import io
import re
import wave
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.inspection import cut_stretches, shown_rows, spread
from shards.inspector import Decoders, inspect_dataset
from shards.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from shards.media_files import png_bytes, wav_bytes
from shards.packed import FORMAT_VERSION, PackedRow, Placement, write_packed_shard
from shards.reader import open_packed
from shards.records import FORMAT_VERSION as SAMPLES_VERSION
from shards.records import Provenance, Segment, TokenizedSample, samples_to_table
from shards.vocabulary import Modality, Vocabulary
from shards.writer import commit_table


class Grey:
    """A picture as grey as its first code."""

    sample_rate_hz = 0

    def decode(self, batch):
        return [np.full((224, 224, 3), int(codes[0, 0]) % 256, np.uint8) for codes in batch]


class Tone:
    sample_rate_hz = 8000

    def decode(self, batch):
        return [np.zeros(len(codes) * 160, np.float32) for codes in batch]


def decoders(**changes) -> Decoders:
    media = {"image": Grey(), "speech": Tone(), "music": Tone()}
    return replace(Decoders(lambda ids: "".join(chr(97 + token_id % 26) for token_id in ids), media), **changes)


class Elements(HTMLParser):
    """Start tags of a page, and a check that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_nothing_but_itself(packed_folder: Path) -> None:
    page = inspect_dataset(packed_folder, decoders(), rows=7)
    elements = Elements(page)
    assert not elements.open
    assert not re.search(r"https?://|//cdn|@import|<link", page)
    sources = [attributes["src"] for tag in ("img", "audio") for attributes in elements.named(tag)]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "data:audio/wav;base64,")) for source in sources)
    assert all(attributes["alt"] for attributes in elements.named("img"))
    assert all(attributes["aria-label"] for attributes in elements.named("audio"))
    assert len([a for a in elements.named("details") if a.get("class") == "row"]) == 7
    for attributes in [a for a in elements.named("div") if str(a.get("class")).startswith("bar")]:
        assert attributes["aria-label"]


def test_what_is_shown_is_what_the_row_holds(tmp_path: Path, vocabulary: Vocabulary) -> None:
    codes = np.arange(32, dtype=np.uint16).reshape(32, 1) + 77
    image = vocabulary.media_token_ids("image", codes)
    ids = np.concatenate([[1, vocabulary.marker("[Human]"), 10, 11, 12], image, [13, 2]])
    spans = ((4, len(ids)),)
    row = PackedRow(ids, len(ids), (0,), spans, (Placement("cat<1>", "d", 2, "text_to_image", 0, len(ids)),))
    entry = write_packed_shard(tmp_path / "a.arrow", [row], vocabulary=vocabulary, sequence_length=len(ids))
    extra = {"sequence_length": len(ids), "fill": 1.0, "cut": 0, "tokens_by_direction": {"text_to_image": len(ids)}}
    write_manifest(
        tmp_path, Manifest("packed", "one", "f", (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    )
    page = inspect_dataset(tmp_path, decoders(text=lambda ids: f"({','.join(str(i) for i in ids)})"))
    assert '<span class="masked">(10,11)</span><span class="say">(12)</span>' in page
    assert '<span class="chip">[Human]</span>' in page
    assert "cat&lt;1&gt;" in page
    assert "draw 2" in page
    assert "text to image" in page
    assert "100.00%" in page
    picture = base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", page)[1])
    assert np.array(Image.open(io.BytesIO(picture)))[0, 0].tolist() == [77, 77, 77]


def test_without_codecs_ids_and_codes_are_shown(packed_folder: Path) -> None:
    page = inspect_dataset(packed_folder, Decoders(), rows=3)
    assert "<img" not in page
    assert "<audio" not in page
    assert re.search(r"<code>\d+( \d+)+ …</code>", page)


def test_no_more_media_are_decoded_than_asked_for(packed_folder: Path) -> None:
    elements = Elements(inspect_dataset(packed_folder, decoders(max_media=2), rows=50))
    assert len(elements.named("img")) == 2
    assert len(elements.named("audio")) == 4


def test_sample_shards_are_shown_too(tmp_path: Path) -> None:
    samples = [
        TokenizedSample(
            f"c/{number}",
            "c",
            "train",
            (
                Segment("caption", Modality.TEXT, text="<script>alert(1)</script>"),
                Segment("image", Modality.IMAGE, codes=np.full((32, 1), 9, np.uint16)),
                Segment("speech", Modality.SPEECH, codes=np.zeros((75, 8), np.uint16), duration_s=1.5),
            ),
            Provenance("00000.tar", "1.jpg", licence="CC0"),
        )
        for number in range(30)
    ]
    entries = []
    for number in range(2):
        path = tmp_path / f"u{number}.parquet"
        sha256 = commit_table(path, samples_to_table(samples[number * 15 : number * 15 + 15]))
        entries.append(ShardEntry(path.name, 15, path.stat().st_size, sha256, {"image": 480, "speech": 1125}))
    counts = {"inputs": 33, "written": 30, "filtered": {"small": 1}, "rejected": {"image_truncated": 2}}
    write_manifest(tmp_path, Manifest("samples", "c", "f", tuple(entries), SAMPLES_VERSION, counts=counts))
    page = inspect_dataset(tmp_path, decoders(), rows=4)
    assert re.findall(r'class="mono">(c/\d+)<', page) == ["c/0", "c/9", "c/19", "c/29"]
    assert "&lt;script&gt;alert(1)" in page
    assert "1.50 s · 75 × 8 codes" in page
    assert "rejected: image truncated" in page
    assert not Elements(page).open


def test_a_broken_medium_is_shown_as_a_fault_and_not_hidden(tmp_path: Path, vocabulary: Vocabulary) -> None:
    music = vocabulary.media_token_ids("music", np.zeros((3, 4), np.uint16))
    ids = np.concatenate([[1], music[:4], music[5:], [2]])
    row = PackedRow(ids, len(ids), (0,), ((0, len(ids)),))
    entry = write_packed_shard(tmp_path / "a.arrow", [row], vocabulary=vocabulary, sequence_length=len(ids))
    extra = {"sequence_length": len(ids)}
    write_manifest(
        tmp_path, Manifest("packed", "one", "f", (entry,), FORMAT_VERSION, vocabulary=vocabulary, extra=extra)
    )
    assert 'class="fault">levels_out_of_order' in inspect_dataset(tmp_path, decoders())


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 300))
def test_rows_are_spread_evenly(total: int, wanted: int) -> None:
    numbers = spread(total, wanted)
    assert len(numbers) == min(total, wanted)
    assert numbers == sorted(set(numbers))
    if wanted > 1 and total:
        assert numbers[0] == 0
        assert numbers[-1] == total - 1


def test_stretches_put_together_are_the_row(packed_folder: Path) -> None:
    dataset = open_packed(packed_folder)
    for row in shown_rows(dataset, spread(dataset.num_rows, 40)):
        together = [token_id for d in row.documents for s in d.stretches for token_id in s.token_ids.tolist()]
        assert together == dataset.gather([row.number])[0, : row.num_tokens].tolist()
        starts = [document.stretches[0].start for document in row.documents]
        assert starts == dataset.document_starts(row.number).tolist()


def test_two_pictures_side_by_side_are_two_stretches(vocabulary: Vocabulary) -> None:
    image = vocabulary.media_token_ids("image", np.zeros((32, 1), np.uint16))
    ids = np.concatenate([image, image, [5]])
    stretches = cut_stretches(ids, np.ones(len(ids), np.bool_), 3, vocabulary)
    assert [(s.modality, s.start, len(s)) for s in stretches] == [("image", 3, 34), ("image", 37, 34), ("text", 71, 1)]
    assert cut_stretches(ids[:0], np.ones(0, np.bool_), 0, vocabulary) == ()


def test_a_dataset_without_sidecars_can_still_be_looked_at(packed_folder: Path) -> None:
    for path in packed_folder.glob("*.samples.parquet"):
        path.unlink()
    assert "(no sidecar)" in inspect_dataset(packed_folder, decoders(), rows=1)
    assert read_manifest(packed_folder).num_rows == 320


def test_pictures_survive_the_png() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (17, 31, 3)).astype(np.uint8)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png_bytes(picture)))), picture)
    with pytest.raises(ValueError, match="RGB"):
        png_bytes(np.zeros((4, 4, 1), np.uint8))


def test_sounds_survive_the_wav() -> None:
    sound = np.array([0.0, 0.5, -1.0, 2.0])
    with wave.open(io.BytesIO(wav_bytes(sound, 16_000))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 16_000, 4)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, -32767, 32767]
