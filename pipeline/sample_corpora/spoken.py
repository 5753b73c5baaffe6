"""The layouts of the speech corpora: Multilingual LibriSpeech and Common Voice (GigaSpeech has a file of its own).

MLS: ``mls_english/train/audio/<speaker>/<book>/<id>.flac`` at 16 kHz, transcripts in lower case without punctuation.
Common Voice: ``cv-corpus-11.0-2022-09-21/en/clips/*.mp3`` at 32 kHz and one tsv a split, sentences with punctuation.
"""

from __future__ import annotations

from collections import defaultdict

from pipeline.sample_corpora.draws import stable_hex
from pipeline.sample_corpora.encoders import flac_bytes, mp3_bytes
from pipeline.sample_corpora.items import ItemRecord, Task, say, speech_record, spoken_item
from pipeline.sample_corpora.speech import SAMPLE_RATE_HZ, VOICES, Voice

_BOOK_ID = 9001
_CLIP_RATE_HZ = 32_000
_CLIPS_START = {"train": 40_000_000, "heldout": 50_000_000}
_DEV_ONE_IN = 20
_TSV_HEADER = "client_id	path	sentence	up_votes	down_votes	age	gender	accents	locale	segment"
_TSV_FILES = ("train", "dev", "test", "validated", "invalidated", "other")


def write_mls(task: Task) -> list[ItemRecord]:
    """Write the MLS layout; the truth about every utterance."""
    root = task.folder / "mls_english"
    transcripts: list[str] = []
    segments: list[str] = []
    records: list[ItemRecord] = []
    seconds: dict[str, float] = defaultdict(float)
    for index in range(task.count):
        sentence, voice = spoken_item(task, index)
        sound = say(sentence, voice)
        utterance = f"{voice.speaker_id}_{_BOOK_ID}_{index:06d}"
        path = root / "train" / "audio" / str(voice.speaker_id) / str(_BOOK_ID) / f"{utterance}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(flac_bytes(sound, SAMPLE_RATE_HZ))
        duration_s = round(len(sound) / SAMPLE_RATE_HZ, 4)
        seconds[voice.name] += duration_s
        transcripts.append(f"{utterance}\t{sentence.words}\n")
        segments.append(f"{utterance}\thttps://example.org/espeak-ng/{utterance}\t0.0\t{duration_s}\n")
        records.append(speech_record(path.relative_to(task.folder).as_posix(), utterance, sentence, voice))
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "train" / "transcripts.txt").write_text("".join(sorted(transcripts)), encoding="utf-8")
    (root / "train" / "segments.txt").write_text("".join(sorted(segments)), encoding="utf-8")
    (root / "metainfo.txt").write_text(_metainfo(seconds), encoding="utf-8")
    return records


def write_commonvoice(task: Task) -> list[ItemRecord]:
    """Write the Common Voice layout, one clip in twenty in ``dev``; the truth about every clip."""
    root = task.folder / "cv-corpus-11.0-2022-09-21" / "en"
    (root / "clips").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[list[str]]] = {name: [] for name in _TSV_FILES}
    records: list[ItemRecord] = []
    for index in range(task.count):
        sentence, voice = spoken_item(task, index)
        clip = f"common_voice_en_{_CLIPS_START[task.split] + index}.mp3"
        path = root / "clips" / clip
        path.write_bytes(mp3_bytes(say(sentence, voice, sample_rate_hz=_CLIP_RATE_HZ), _CLIP_RATE_HZ))
        row = [_client_id(voice), clip, sentence.written, "2", "0", "", voice.gender, voice.accent, "en", ""]
        rows["dev" if index % _DEV_ONE_IN == _DEV_ONE_IN - 1 else "train"].append(row)
        rows["validated"].append(row)
        records.append(speech_record(path.relative_to(task.folder).as_posix(), clip, sentence, voice))
    for name, lines in rows.items():
        text = "".join(f"{line}\n" for line in (_TSV_HEADER, *("\t".join(cells) for cells in lines)))
        (root / f"{name}.tsv").write_text(text, encoding="utf-8")
    return records


def _metainfo(seconds: dict[str, float]) -> str:
    header = ("SPEAKER", "GENDER", "PARTITION", "MINUTES", "BOOK ID", "TITLE", "CHAPTER")
    lines = [" | ".join(f"{title:^10}" for title in header)]
    for voice in VOICES:
        if voice.name in seconds:
            minutes = f"{seconds[voice.name] / 60:.3f}"
            initial = voice.gender[0].upper()
            cells = (str(voice.speaker_id), initial, "train", minutes, str(_BOOK_ID), "Small sentences", voice.name)
            lines.append(" | ".join(f"{cell:^10}" for cell in cells))
    return "\n".join(lines) + "\n"


def _client_id(voice: Voice) -> str:
    return stable_hex("client", voice.name, digits=128)
