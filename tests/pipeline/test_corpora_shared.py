"""Every clean item of the shared corpora is read: texts, times and order are checked against the files themselves.

The files are parsed here a second time, by the shortest route there is, so that a mistake of a reader is not made twice.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.corpus import CorpusConfig, load_corpus
from pipeline.filters.apply import filter_decoded, filter_raw
from pipeline.filters.config import FilterConfig
from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.reading.outcomes import Outcome
from pipeline.samples import Filtered, RawMedia, RawSample, RawText
from pipeline.tokenization import DecodedMedia, DecodedSample, decode_samples

CORPORA = {
    "laion2b": 15,
    "laion_coco": 10,
    "laion_aesthetics": 8,
    "journeydb": 12,
    "mmc4_core_ff": 8,
    "mls": 21,
    "gigaspeech": 37,
    "youtube_music": 8,
    "musiccaps": 4,
    "anyinstruct": 6,
}


def read_all(
    shared_corpora: Path, corpus: str, *, folder: str = "", split: str = "train", **options: Any
) -> list[Outcome]:
    root = shared_corpora / (folder or corpus)
    reader = load_corpus(CorpusConfig(corpus=corpus, root=root, output=Path("unused"), split=split, options=options))
    return [result for source in reader.sources() for result in reader.read(source)]


def samples(results: list[Outcome]) -> list[RawSample]:
    assert all(isinstance(result, RawSample) for result in results), [
        r for r in results if not isinstance(r, RawSample)
    ]
    return [result for result in results if isinstance(result, RawSample)]


def parts(sample: RawSample) -> list[tuple[str, str | bytes]]:
    """(slot, text or bytes) of every segment, in order."""
    return [(s.slot, s.text if isinstance(s, RawText) else s.data) for s in sample.segments]


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_item_is_read_decoded_and_kept_by_the_filters(corpus: str, shared_corpora: Path):
    results = read_all(shared_corpora, corpus)
    assert len(results) == CORPORA[corpus]
    kept = [filter_raw(result, FilterConfig()) if isinstance(result, RawSample) else result for result in results]
    decoded = list(filter_decoded(decode_samples(kept, make_decoder(MediaConfig(), WindowConfig())), FilterConfig()))
    left = [result for result in decoded if not isinstance(result, DecodedSample)]
    assert all(isinstance(result, Filtered) and result.reason == "garbage_tag" for result in left)
    # GigaSpeech labels music, silence and noise; everything else of every corpus is a sample.
    assert len(left) == (9 if corpus == "gigaspeech" else 0)
    for sample in decoded:
        for segment in sample.segments if isinstance(sample, DecodedSample) else ():
            if isinstance(segment, DecodedMedia) and segment.modality == "image":
                assert segment.clip.medium.shape == (224, 224, 3)


@pytest.mark.parametrize("corpus", ["laion2b", "laion_coco", "laion_aesthetics"])
def test_laion_is_the_rows_that_were_downloaded(corpus: str, shared_corpora: Path):
    rows = [
        row for path in sorted((shared_corpora / corpus).glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    rows = [row for row in rows if row["status"] == "success"]
    column = "top_caption" if corpus == "laion_coco" else "caption"
    found = samples(read_all(shared_corpora, corpus))
    for sample, row in zip(found, rows, strict=True):
        assert sample.sample_id.rpartition("/")[2] == row["key"]
        (_, picture), (_, caption) = parts(sample)
        with tarfile.open(shared_corpora / corpus / f"{row['key'][:5]}.tar") as shard:
            member = shard.extractfile(f"{row['key']}.jpg")
            assert member is not None and picture == member.read()
        assert caption == row[column].strip()
        assert sample.provenance.url == row["url"]
        names = ("similarity", "punsafe", "pwatermark", "width", "height")
        assert [sample.quality[name] for name in names] == pytest.approx([row[name] for name in names], rel=1e-6)


def test_journeydb_is_its_captions_and_pictures(shared_corpora: Path):
    folder = shared_corpora / "journeydb" / "data" / "train"
    lines = (folder / "train_anno_realease_repath.jsonl").read_text(encoding="utf-8").splitlines()
    for sample, line in zip(samples(read_all(shared_corpora, "journeydb")), lines, strict=True):
        record = json.loads(line)
        picture = (folder / "imgs" / record["img_path"]).read_bytes()
        assert parts(sample) == [("image", picture), ("caption", record["Task2"]["Caption"])]
    prompts = [parts(s)[1][1] for s in samples(read_all(shared_corpora, "journeydb", text="prompt"))]
    assert all("--" not in str(prompt) for prompt in prompts)


def test_documents_of_mmc4_keep_their_order_with_pictures_before_their_sentences(shared_corpora: Path):
    folder = shared_corpora / "mmc4_core_ff"
    documents = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    for sample, document in zip(samples(read_all(shared_corpora, "mmc4_core_ff")), documents, strict=True):
        expected: list[tuple[str, str | bytes]] = []
        for number, sentence in enumerate(document["text_list"]):
            for info in document["image_info"]:
                if info["matched_text_index"] == number:
                    expected.append(("image", (folder / "images" / info["image_name"]).read_bytes()))
            expected.append(("text", sentence.strip()))
        assert parts(sample) == expected
        assert sample.provenance.url == document["url"]


@pytest.mark.parametrize(("corpus", "folder", "count"), [("mls", "mls", 21), ("mls", "synthetic/speech", 6)])
def test_mls_is_its_transcripts_and_files(corpus: str, folder: str, count: int, shared_corpora: Path):
    expected: list[list[tuple[str, str | bytes]]] = []
    for path in sorted((shared_corpora / folder).glob("mls_*/train/transcripts.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            utterance, text = line.split("\t")
            (sound,) = path.parent.rglob(f"{utterance}.*")
            expected.append([("speech", sound.read_bytes()), ("transcript", text)])
    assert [parts(sample) for sample in samples(read_all(shared_corpora, corpus, folder=folder))] == expected
    assert len(expected) == count


@pytest.mark.parametrize("split", ["train", "dev", "test", "validated"])
def test_common_voice_is_its_rows_and_clips(split: str, shared_corpora: Path):
    expected: list[list[tuple[str, str | bytes]]] = []
    for path in sorted((shared_corpora / "commonvoice").rglob(f"{split}.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                clip = (path.parent / "clips" / row["path"]).read_bytes()
                expected.append([("speech", clip), ("transcript", row["sentence"])])
    assert [parts(sample) for sample in samples(read_all(shared_corpora, "commonvoice", split=split))] == expected
    assert len(expected) == {"train": 21, "dev": 6, "test": 6, "validated": 33}[split]


def test_gigaspeech_is_cut_by_its_times(shared_corpora: Path):
    root = shared_corpora / "gigaspeech"
    marks = {" <COMMA>": ",", " <PERIOD>": ".", " <QUESTIONMARK>": "?", " <EXCLAMATIONPOINT>": "!"}
    expected: list[tuple[str, Path, float, float, str] | str] = []
    for audio in json.loads((root / "GigaSpeech.json").read_text(encoding="utf-8"))["audios"]:
        for segment in audio["segments"]:
            text = segment["text_tn"]
            for tag, mark in marks.items():
                text = text.replace(tag, mark)
            if "<" in text:
                expected.append("garbage_tag")
                continue
            times = (segment["begin_time"], segment["end_time"])
            expected.append((segment["sid"], root / audio["path"], *times, text.lower()))
    found: list[tuple[str, Path, float, float, str] | str] = []
    for result in read_all(shared_corpora, "gigaspeech"):
        if not isinstance(result, RawSample):
            found.append(result.reason)
            continue
        speech, text = result.segments
        assert isinstance(speech, RawMedia) and isinstance(text, RawText)
        assert speech.path is not None and speech.begin_s is not None and speech.end_s is not None
        sid = result.sample_id.rpartition("/")[2]
        found.append((sid, speech.path, speech.begin_s, speech.end_s, text.text))
    assert found == expected


def test_a_cut_of_a_recording_is_that_part_of_its_samples(shared_corpora: Path):
    """The long opus at 16 kHz needs no resampling, so a segment is exactly a slice."""
    results = read_all(shared_corpora, "gigaspeech")
    decoded = decode_samples(results, make_decoder(MediaConfig(), WindowConfig()))
    by_id = {result.sample_id: result for result in decoded}
    recordings: dict[Path, Any] = {}
    for result in samples([r for r in results if isinstance(r, RawSample)]):
        speech = result.segments[0]
        sample = by_id[result.sample_id]
        assert isinstance(speech, RawMedia) and isinstance(sample, DecodedSample) and speech.path is not None
        if speech.path not in recordings:
            recordings[speech.path] = soundfile.read(io.BytesIO(speech.path.read_bytes()), dtype="float32")
        whole, rate = recordings[speech.path]
        begin, end = round((speech.begin_s or 0) * rate), round((speech.end_s or 0) * rate)
        segment = sample.segments[0]
        assert isinstance(segment, DecodedMedia)
        assert (segment.clip.medium == whole[begin:end]).all()


@pytest.mark.parametrize(("folder", "count"), [("youtube_music", 8), ("synthetic/music", 3)])
def test_music_is_its_files_and_captions(folder: str, count: int, shared_corpora: Path):
    expected: list[list[tuple[str, str | bytes]]] = []
    for path in sorted((shared_corpora / folder).rglob("*.json"), key=lambda p: (p.parent.as_posix(), p.stem)):
        record = json.loads(path.read_text(encoding="utf-8"))
        expected.append([("music", (path.parent / record["audio"]).read_bytes()), ("caption", record["caption"])])
    assert [parts(sample) for sample in samples(read_all(shared_corpora, "youtube_music", folder=folder))] == expected
    assert len(expected) == count


def test_captions_from_metadata_say_what_it_says_and_nothing_about_rights(shared_corpora: Path):
    results = samples(read_all(shared_corpora, "youtube_music", caption_from="metadata"))
    captions = {str(parts(sample)[1][1]) for sample in results}
    assert '"Vibe Ace" by Kevin MacLeod. Relaxed jazz instrumental.' in {
        c.partition(" Keywords")[0][:55].strip() for c in captions
    }
    assert not any("http" in caption or "icense" in caption for caption in captions)


def test_musiccaps_is_its_rows_and_clips(shared_corpora: Path):
    folder = shared_corpora / "musiccaps"
    with (folder / "musiccaps-public.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for sample, row in zip(samples(read_all(shared_corpora, "musiccaps")), rows, strict=True):
        clip = folder / "wav" / f"[{row['ytid']}]-[{row['start_s']}-{row['end_s']}].wav"
        assert parts(sample) == [("music", clip.read_bytes()), ("caption", row["caption"])]


def test_conversations_keep_words_and_media_where_they_stand(shared_corpora: Path):
    folder = shared_corpora / "anyinstruct"
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    for sample, line in zip(samples(read_all(shared_corpora, "anyinstruct")), lines, strict=True):
        expected: list[tuple[str, str | bytes]] = []
        for message in json.loads(line)["chat"]:
            slot = {"USER": "user", "AnyGPT": "assistant"}[message["role"]]
            files = {f"<image{n}>": folder / "images_224" / m["image_file"] for n, m in enumerate(message["images"], 1)}
            files |= {f"<music{n}>": folder / "music" / m["music_file"] for n, m in enumerate(message["music"], 1)}
            words: list[str] = []
            for word in [*message["message"].split(" "), None]:
                if (word is None or word in files) and words:
                    expected.append((slot, " ".join(words)))
                    words = []
                if word in files:
                    expected.append((slot, files[word].read_bytes()))
                elif word is not None:
                    words.append(word)
        assert parts(sample) == expected


def test_spoken_conversations_have_every_voice(shared_corpora: Path):
    found = samples(read_all(shared_corpora, "anyinstruct", speech="speech"))
    spoken = [s for sample in found for s in sample.segments if isinstance(s, RawMedia) and s.modality == "speech"]
    voices = sorted((shared_corpora / "anyinstruct" / "speech").iterdir())
    assert sorted(s.data for s in spoken) == sorted(voice.read_bytes() for voice in voices)
