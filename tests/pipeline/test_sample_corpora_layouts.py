"""The folders as a reader of the real corpora would find them, and the line between training and held-out items."""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.signal import resample_poly

from pipeline.sample_corpora import music, pictures
from pipeline.sample_corpora.build import build, plan_build
from pipeline.sample_corpora.config import SampleCorporaConfig, Split
from pipeline.sample_corpora.dialogues import draw_dialogue
from pipeline.sample_corpora.draws import generator
from pipeline.sample_corpora.items import Task, picture_attributes, themed_attributes
from pipeline.sample_corpora.pictures import HELD_OUT_PAIRS, PictureAttributes
from pipeline.sample_corpora.sentences import all_sentences, names_held_out_pair
from pipeline.sample_corpora.speech import synthesize, voice_by_name

LIMIT = 24


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("sample-corpora") / "set"
    config = SampleCorporaConfig.model_validate(
        {"output": output, "workers": 1, "pictures": {"samples_per_shard": 10, "failed_share": 0.2}}
    )
    build(plan_build(config, limit=LIMIT))
    return output


def records(corpora: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpora / "attributes.jsonl").read_text(encoding="utf-8").splitlines()]


def task(split: Split, corpus: str = "laion_coco", seed: int = 0) -> Task:
    return Task(corpus, split, 10, Path(), SampleCorporaConfig(output=Path(), seed=seed))


# --- the line between training and held-out ---------------------------------------------------------------------------


def texts_of(path: Path) -> Iterator[str]:
    """Every string a corpus file holds, one thing said at a time."""
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                if not member.name.endswith(".jpg"):
                    yield from strings_in(content.read().decode())
    elif path.suffix == ".parquet":
        yield from strings_in(json.dumps(pq.read_table(path).to_pylist()))
    elif path.suffix in (".jsonl", ".json", ".txt", ".tsv", ".csv"):
        text = path.read_text(encoding="utf-8")
        for line in [text] if path.suffix == ".json" else text.splitlines():
            yield from strings_in(line)
    elif path.suffix == ".gz":
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            yield from strings_in(line)


def strings_in(text: str) -> Iterator[str]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        yield text
        return
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str):
            yield value


def test_no_text_on_the_training_side_names_a_held_out_pair(corpora):
    seen = 0
    for path in sorted(corpora.rglob("*")):
        if "heldout" in path.relative_to(corpora).parts or path.parent == corpora or not path.is_file():
            continue
        for text in texts_of(path):
            seen += 1
            assert not names_held_out_pair(text), (path, text)
            named = {(shape, colour) for shape, colour in HELD_OUT_PAIRS if re.search(rf"{colour} {shape}", text, re.I)}
            assert not named, (path, text)
    assert seen > 1000


def test_the_scan_would_see_a_held_out_pair(corpora):
    """The same scan finds them on the other side, so it can fail."""
    found = sum(
        names_held_out_pair(text)
        for path in (corpora / "heldout").rglob("*")
        if path.is_file()
        for text in texts_of(path)
    )
    assert found > 3 * LIMIT


def test_attributes_keep_to_their_side(corpora):
    for record in records(corpora):
        words = record["attributes"]
        if record["modality"] == "image":
            assert PictureAttributes(**words).held_out == (record["split"] == "heldout")
        elif record["modality"] == "music":
            assert music.MusicAttributes(**words).held_out == (record["split"] == "heldout")


def test_held_out_sentences_are_never_said_in_training(corpora):
    said: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for record in records(corpora):
        if record["modality"] == "speech" and record["corpus"] != "anyinstruct":
            said[record["split"]].add(record["text"])
    assert len(said["train"]) > LIMIT
    assert len(said["heldout"]) == LIMIT
    assert not said["train"] & said["heldout"]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_dialogues_keep_to_their_side(seed, held_out, is_spoken):
    """Whatever the draws: pictures, music and words of a dialogue, follow-up changes included."""
    rounds = draw_dialogue(generator(seed), held_out=held_out, is_spoken=is_spoken)
    assert 1 <= len(rounds) <= 3
    for message in (message for one in rounds for message in (one.request, one.answer)):
        if message.shown is not None:
            assert message.shown.held_out == held_out
            assert message.text.count("<") == 1
            parse = pictures.parse_caption if isinstance(message.shown, PictureAttributes) else music.parse_caption
            assert parse(message.caption) == message.shown.as_dict()
        if not held_out:
            assert not names_held_out_pair(message.text)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(list(Split)), st.integers(0, 100))
def test_pictures_keep_to_their_side_at_any_index(index, split, seed):
    assert picture_attributes(task(split, seed=seed), index).held_out == (split is Split.HELDOUT)


@given(st.integers(0, 2**32), st.integers(2, 3))
def test_the_pictures_of_a_document_differ_and_share_its_word(seed, count):
    word, shown = themed_attributes(task(Split.TRAIN), generator(seed), count)
    assert len(set(shown)) == count
    assert all(word in one.as_dict().values() and not one.held_out for one in shown)


def test_held_out_pictures_are_balanced():
    drawn = [picture_attributes(task(Split.HELDOUT), index) for index in range(96)]
    assert len(set(drawn)) == 96
    assert {(one.shape, one.colour): 16 for one in drawn} == dict.fromkeys(HELD_OUT_PAIRS, 16)
    assert all(sum((d.shape, d.colour) == pair for d in drawn) == 16 for pair in HELD_OUT_PAIRS)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", ["laion2b", "laion_coco", "laion_aesthetics", "heldout/laion_coco"])
def test_laion_members_stand_in_order_and_agree_with_the_parquet(corpora, corpus):
    folder = corpora / corpus
    num_pictures = num_failed = 0
    for shard, tar in enumerate(sorted(folder.glob("*.tar"))):
        rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
        stats = json.loads((folder / f"{shard:05d}_stats.json").read_text(encoding="utf-8"))
        wanted = [row for row in rows if row["status"] == "success"]
        with tarfile.open(tar) as archive:
            contents = [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
        keys = [row["key"] for row in wanted]
        assert [name for name, _ in contents] == [f"{key}.{kind}" for key in keys for kind in ("jpg", "txt", "json")]
        for row, (_, jpeg), (_, text), (_, meta) in zip(
            wanted, contents[::3], contents[1::3], contents[2::3], strict=True
        ):
            assert json.loads(meta)["caption"] == row["caption"] == text.decode()
            assert hashlib.sha256(jpeg).hexdigest() == row["sha256"]
            assert Image.open(io.BytesIO(jpeg)).size == (224, 224)
        assert [row["key"] for row in rows] == [f"{shard:05d}{place:04d}" for place in range(len(rows))]
        assert (stats["count"], stats["successes"]) == (len(rows), len(wanted))
        num_pictures, num_failed = num_pictures + len(wanted), num_failed + len(rows) - len(wanted)
    assert num_pictures == LIMIT
    assert num_failed > 0


def test_laion_columns_are_those_of_img2dataset(corpora):
    base = ["similarity", "hash", "punsafe", "pwatermark"]
    last = ["caption", "url", "key", "status", "error_message", "width", "height", "original_width", "original_height"]
    own = {"laion2b": [], "laion_aesthetics": ["aesthetic"]}
    own["laion_coco"] = ["top_caption", "all_captions", "all_similarities"]
    for corpus, columns in own.items():
        schema = pq.read_schema(corpora / corpus / "00000.parquet")
        assert schema.names == [*base, *columns, *last, "exif", "sha256"]


@pytest.mark.parametrize("corpus", ["laion2b", "laion_coco"])
def test_laion_layouts_equal_those_of_the_real_ones(corpora, shared_corpora, corpus):
    """Column names, their order and their types, field for field, and the fields of the JSON beside each picture."""
    ours, real = (pq.read_schema(root / corpus / "00000.parquet") for root in (corpora, shared_corpora))
    assert [(one.name, one.type) for one in ours] == [(one.name, one.type) for one in real]
    fields = []
    for root in (corpora, shared_corpora):
        with tarfile.open(root / corpus / "00000.tar") as archive:
            member = next(one for one in archive if one.name.endswith(".json"))
            fields.append(list(json.loads(archive.extractfile(member).read())))  # type: ignore[union-attr]
    assert fields[0] == fields[1]


def test_journeydb_names_its_pictures(corpora):
    root = corpora / "journeydb" / "data" / "train"
    lines = (root / "train_anno_realease_repath.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == LIMIT
    for line in map(json.loads, lines):
        assert (root / "imgs" / line["img_path"]).is_file()
        assert line["prompt"].split(" --")[0] != line["prompt"]
        assert len(pictures.parse_caption(line["Task2"]["Caption"])) == 4
        content = line["Task3"]["Content"][0]
        assert f"{content['Answer']}: {line['Task1']['Subject'][0]}" in content["Options"]


def test_mmc4_pictures_stand_at_the_sentence_that_describes_them(corpora):
    root = corpora / "mmc4_core_ff"
    truth = {record["key"]: record["attributes"] for record in records(corpora) if record["corpus"] == "mmc4_core_ff"}
    (shard,) = root.glob("docs_no_face_shard_*_v3.jsonl.gz")
    documents = [json.loads(line) for line in gzip.decompress(shard.read_bytes()).decode().splitlines()]
    assert len(documents) == LIMIT
    for document in documents:
        assert 3 <= len(document["text_list"]) <= 6
        assert 2 <= len(document["image_info"]) <= 3
        for image, row in zip(document["image_info"], document["similarity_matrix"], strict=True):
            position = image["matched_text_index"]
            assert image["matched_sim"] == row[position] == max(row)
            assert (root / "images" / image["image_name"]).is_file()
            assert pictures.parse_caption(document["text_list"][position]) == truth[image["image_name"]]


# --- speech -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", ["mls", "heldout/mls"])
def test_mls_transcripts_segments_and_files_agree(corpora, corpus):
    root = corpora / corpus / "mls_english" / "train"
    transcripts = dict(line.split("\t") for line in (root / "transcripts.txt").read_text().splitlines())
    segments = {line.split("\t")[0]: line.split("\t")[1:] for line in (root / "segments.txt").read_text().splitlines()}
    assert len(transcripts) == LIMIT
    assert list(transcripts) == sorted(transcripts) == list(segments)
    for utterance, text in transcripts.items():
        assert re.fullmatch(r"[a-z ]+", text)
        speaker, book, _ = utterance.split("_")
        sound, rate_hz = soundfile.read(root / "audio" / speaker / book / f"{utterance}.flac")
        assert rate_hz == 16_000
        assert float(segments[utterance][2]) == pytest.approx(len(sound) / rate_hz, abs=1e-4)
        assert np.abs(sound).max() < 0.7
        assert np.sqrt(np.mean(sound**2)) > 0.03
    header = (root.parent / "metainfo.txt").read_text().splitlines()[0]
    assert [cell.strip() for cell in header.split("|")][:3] == ["SPEAKER", "GENDER", "PARTITION"]


def test_commonvoice_tables_have_the_header_and_name_every_clip_once(corpora):
    root = corpora / "commonvoice" / "cv-corpus-11.0-2022-09-21" / "en"
    tables = {}
    for name in ("train", "dev", "test", "validated", "invalidated", "other"):
        with (root / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            tables[name] = list(csv.DictReader(file, delimiter="\t"))
        header = (root / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[0]
        assert header == "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment"
    named = [row["path"] for name in ("train", "dev", "test") for row in tables[name]]
    assert sorted(named) == sorted(path.name for path in (root / "clips").iterdir())
    assert sorted(named) == sorted(row["path"] for row in tables["validated"])
    assert len(tables["dev"]) == LIMIT // 20
    for row in tables["validated"]:
        assert re.fullmatch(r"[0-9a-f]{128}", row["client_id"])
        assert re.fullmatch(r"[A-Z][a-z ]+[.?]", row["sentence"])
    assert soundfile.info(root / "clips" / named[0]).samplerate == 32_000


def test_gigaspeech_segments_cut_what_they_say_out_of_the_recording(corpora):
    """The sound between begin and end is the sentence, spoken by the voice of its record."""
    root = corpora / "gigaspeech"
    manifest = json.loads((root / "GigaSpeech.json").read_text(encoding="utf-8"))
    truth = {record["key"]: record for record in records(corpora) if record["corpus"] == "gigaspeech"}
    tags = set()
    checked = 0
    for audio in manifest["audios"]:
        assert hashlib.md5((root / audio["path"]).read_bytes()).hexdigest() == audio["md5"]
        sound, rate_hz = soundfile.read(root / audio["path"])
        assert len(sound) / rate_hz == pytest.approx(audio["duration"], abs=1e-3)
        previous_end = 0.0
        for segment in audio["segments"]:
            assert previous_end <= segment["begin_time"] < segment["end_time"] <= audio["duration"]
            previous_end = segment["end_time"]
            if segment["text_tn"].startswith("<"):
                tags.add(segment["text_tn"])
                continue
            record = truth[segment["sid"]]
            begin, end = (round(segment[edge] * rate_hz) for edge in ("begin_time", "end_time"))
            words, _, mark = segment["text_tn"].rpartition(" ")
            written = words.capitalize() + {"<PERIOD>": ".", "<QUESTIONMARK>": "?"}[mark]
            spoken = synthesize(written, voice_by_name(record["attributes"]["voice"]))
            cut = resample_poly(sound[begin:end], 16_000, rate_hz)[: len(spoken)]
            assert np.corrcoef(cut, spoken[: len(cut)])[0, 1] > 0.9
            checked += 1
    assert checked == LIMIT
    assert tags == {"<MUSIC>", "<NOISE>", "<SIL>"}


# --- music and dialogues ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corpus", ["youtube_music", "heldout/youtube_music"])
def test_youtube_music_has_metadata_beside_each_clip(corpora, corpus):
    folders = corpora / corpus
    metadata = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folders.glob("*/*.json"))]
    assert len(metadata) == LIMIT
    for one in metadata:
        sound, rate_hz = soundfile.read(folders / one["id"][0].lower() / one["audio"])
        assert (rate_hz, len(sound)) == (32_000, round(one["duration"] * 32_000))
        assert 0.4 < np.abs(sound).max() < 0.7
        assert len(music.parse_caption(one["caption"])) == 4
        assert music.parse_caption(one["title"]) == music.parse_caption(one["caption"])


def test_musiccaps_rows_name_their_clips(corpora):
    root = corpora / "musiccaps"
    with (root / "musiccaps-public.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == LIMIT
    for row in rows:
        info = soundfile.info(root / "wav" / f"[{row['ytid']}]-[{row['start_s']}-{row['end_s']}].wav")
        assert info.duration == int(row["end_s"]) - int(row["start_s"])
        aspects = ast.literal_eval(row["aspect_list"])
        assert music.parse_caption(row["caption"]).items() <= music.parse_caption(", ".join(aspects)).items()


@pytest.mark.parametrize("corpus", ["anyinstruct", "heldout/anyinstruct"])
def test_dialogues_alternate_and_their_media_exist(corpora, corpus):
    root = corpora / corpus
    dialogues = [json.loads(line) for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(dialogues) == LIMIT
    named = set()
    for dialogue in dialogues:
        assert [turn["role"] for turn in dialogue["chat"]] == ["USER", "AnyGPT"] * (len(dialogue["chat"]) // 2)
        for turn in dialogue["chat"]:
            assert turn["message"].count("<image1>") == len(turn["images"])
            assert turn["message"].count("<music1>") == len(turn["music"])
            named |= {f"images_224/{one['image_file']}" for one in turn["images"]}
            named |= {f"music/{one['music_file']}" for one in turn["music"]}
            named |= {f"speech/{turn['speech']}"} if turn["speech"] else set()
    assert named == {path.relative_to(root).as_posix() for path in root.glob("*/*")}
    assert any(path.startswith("speech/") for path in named)
    assert any(path.startswith("music/") for path in named)


def test_every_picture_and_sound_has_its_line_of_truth(corpora):
    """Nothing without attributes, nothing twice, and the words fit the attributes."""
    lines = records(corpora)
    assert len({(line["corpus"], line["split"], line["path"], line["key"]) for line in lines}) == len(lines)
    for line in lines:
        root = corpora / ("heldout" if line["split"] == "heldout" else "") / line["corpus"]
        assert (root / line["path"]).is_file()
        parse = {"image": pictures.parse_caption, "music": music.parse_caption}.get(line["modality"])
        assert parse is None or parse(line["text"]) == line["attributes"]
    assert len({line["text"] for line in lines if line["modality"] == "speech"}) <= len(all_sentences()) + 2 * LIMIT
