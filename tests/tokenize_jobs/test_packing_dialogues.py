"""The instruction stage packed by its own command: what is counted, what a row holds, what the trainer makes of it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.load import load_config
from pipeline.dialogues import turns_of
from pipeline.rendering import render_document
from pipeline.text import train_text_tokenizer
from shards.errors import ConfigError
from shards.manifest import read_manifest
from shards.reader import PackedDataset, open_packed
from shards.records import Provenance, Segment, TokenizedSample
from shards.verify import verify_dataset
from shards.vocabulary import Modality
from tests.fixtures.llama_stand_in import write_llama_stand_in
from tests.tokenize_jobs.test_packing_job import write_samples
from tokenize_jobs import packing_cli as cli
from tokenize_jobs.packing_config import Language, PackingConfig, load_language
from train.collate import document_positions, mark_targets

LENGTH = 384
RATES = {Modality.IMAGE: (8192, 1), Modality.SPEECH: (1024, 8), Modality.MUSIC: (2048, 4)}


def say(slot: str, words: str) -> Segment:
    return Segment(slot, Modality.TEXT, words)


def show(slot: str, modality: Modality, frames: int, number: int) -> Segment:
    codebook, levels = RATES[modality]
    codes = np.random.default_rng(number).integers(0, codebook, (frames, levels)).astype(np.uint16)
    return Segment(slot, modality, codes=codes, duration_s=frames / 50)


def exchange(number: int, frames: int) -> list[Segment]:
    modality = list(RATES)[number % 3]
    frames = 32 if modality == Modality.IMAGE else frames
    asked, shown = say("user", f"show {number}"), show("assistant", modality, frames, number)
    return [asked, say("assistant", f"here {number}"), shown]


def sample(name: str, *segments: Segment) -> TokenizedSample:
    return TokenizedSample(name, "anyinstruct", "train", segments, Provenance("metadata.jsonl"))


def dialogues() -> list[TokenizedSample]:
    rng = np.random.default_rng(5)
    found: list[TokenizedSample] = []
    for number in range(40):
        rounds = [exchange(number + nth, int(rng.integers(5, 20))) for nth in range(int(rng.integers(1, 3)))]
        found.append(sample(f"short/{number}", *(part for one in rounds for part in one)))
    found += [
        sample("text", say("user", "hello"), say("assistant", "good day"), say("user", "bye"), say("assistant", "bye")),
        sample("long", *(part for number in range(9) for part in exchange(number, 12))),
        sample("answer too long", say("user", "sing"), show("assistant", Modality.MUSIC, 100, 1)),
        sample("unanswered", say("user", "hello")),
        sample("last unanswered", say("user", "hello"), say("assistant", "hi"), say("user", "and?")),
        sample("empty", say("user", " "), say("assistant", "hi")),
    ]
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    train_text_tokenizer(["show here hello good day bye You are an AI assistant 0 1 2"] * 3, 300, folder / "text")
    write_samples(folder / "anyinstruct", dialogues(), shard_rows=30)
    path = folder / "config.toml"
    path.write_text(
        f"""
output = {str(folder / "out")!r}
text_tokenizer = {str(folder / "text")!r}
templates = "configs/templates"
vocabulary = "configs/vocabulary/tiny.toml"
sequence_length = {LENGTH}
reject_budget = 0.2

[datasets.anyinstruct]
path = {str(folder / "anyinstruct")!r}
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def language(config: Path, repository: Path) -> Language:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        return load_language(load_config(config, PackingConfig))


@pytest.fixture(scope="module")
def packed(config: Path, language: Language, repository: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        assert cli.pack([str(config)]) == 0
    return config.parent / "out"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.chdir(repository)


def documents_in(dataset: PackedDataset) -> list[tuple[list[int], list[bool]]]:
    """Ids and targets of every document of every row, as the trainer sees them with ``attention = "document"``."""
    found: list[tuple[list[int], list[bool]]] = []
    for row in range(dataset.num_rows):
        starts, num_tokens = dataset.document_starts(row), int(dataset.num_tokens([row])[0])
        token_ids = dataset.gather([row])[0]
        target = np.zeros(LENGTH, bool)
        mark_targets(target, dataset.loss_spans(row), starts)
        assert not target[num_tokens:].any()
        positions = document_positions(starts, LENGTH)
        for start, stop in itertools.pairwise([*starts.tolist(), num_tokens]):
            assert positions[start:stop].tolist() == list(range(stop - start))
            found.append((token_ids[start:stop].tolist(), target[start:stop].tolist()))
    return found


def test_what_is_split_and_what_is_refused_is_counted(packed: Path):
    report = json.loads((packed / "report.json").read_text(encoding="utf-8"))
    assert (report["inputs"], report["written"], report["split"], report["cut"]) == (46, 43, 1, 0)
    assert report["rejected"] == {"dialogue_empty": 1, "dialogue_unanswered": 1, "exchange_longer_than_row": 1}
    assert report["documents_by_direction"] == {"dialogue": 43}
    assert report["rows"] < 43, "no row holds two dialogues, so document attention is not looked at"
    assert not verify_dataset(packed / "anyinstruct").faults


def test_every_document_is_a_dialogue_and_every_answer_a_target_once(packed: Path, language: Language):
    """Whatever row it is in, and however long it was: system message first, ``</s>`` last, each reply trained once."""
    assert language.templates and language.text_tokenizer
    vocabulary, text = language.vocabulary, language.text_tokenizer
    opening = [1, *text.encode(f"{language.templates.preset.system}\n"), vocabulary.marker("[Human]")]
    trained: Counter[tuple[int, ...]] = Counter()
    for ids, target in documents_in(open_packed(packed / "anyinstruct")):
        assert ids[: len(opening)] == opening
        assert ids[-2:] == [vocabulary.marker("<eos>"), vocabulary.eos_id]
        assert target[-2:] == [True, True]
        ends = [place for place, token_id in enumerate(ids) if token_id == vocabulary.marker("<eos>") and target[place]]
        begins = [place for place in range(1, len(ids)) if target[place] and not target[place - 1]]
        assert len(begins) == len(ends)
        trained.update(tuple(ids[begin : end + 1]) for begin, end in zip(begins, ends, strict=True))
    expected: Counter[tuple[int, ...]] = Counter()
    refused = {"answer too long", "unanswered", "empty"}
    for one in dialogues():
        if one.sample_id in refused:
            continue
        document = render_document(one, language.templates, vocabulary, text, draw=0, seed=0)
        replies = [document.token_ids[begin:end].tolist() for begin, end in document.loss_spans]
        assert len(replies) == len(turns_of(one)) // 2
        expected.update(tuple(reply[:-1] if reply[-1] == vocabulary.eos_id else reply) for reply in replies)
    assert trained == expected


def test_a_later_piece_knows_the_exchange_before_it(packed: Path, language: Language):
    """One exchange, untrained, in every piece of the long dialogue but the first."""
    found = documents_in(open_packed(packed / "anyinstruct"))
    eos = language.vocabulary.marker("<eos>")
    known = [sum(token_id == eos and not on for token_id, on in zip(ids, target, strict=True)) for ids, target in found]
    assert sum(known) == len(found) - 43 > 0
    assert max(known) == 1


def test_the_policy_can_be_to_refuse(config: Path, tmp_path: Path):
    settings = ["--set", f"output={tmp_path}", "--set", "long_documents=reject"]
    assert cli.pack([str(config), *settings]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["split"], report["rejected"]["longer_than_row"]) == (0, 2)


def test_another_chat_form_is_another_dataset(config: Path, packed: Path, tmp_path: Path):
    """Nothing packed with one template is taken for the other's (anygpt-compat U-11)."""
    again = ["--set", "dialogue_preset=AnyGPT"]
    assert cli.pack([str(config), *again]) == 1
    assert cli.pack([str(config), *again, "--set", f"output={tmp_path}"]) == 0
    one, other = (read_manifest(folder / "anyinstruct") for folder in (packed, tmp_path))
    assert one.fingerprint != other.fingerprint
    with pytest.raises(ConfigError, match="MMGPT"):
        load_language(load_config(config, PackingConfig, ["dialogue_preset=ChatGPT"]))


def test_no_validation_dialogue_is_trained_on(config: Path, tmp_path: Path):
    """The released first stage leaves its validation rows in the training set (anygpt-compat U-10)."""
    settings = ["--set", f"output={tmp_path}", "--set", "validation_share=0.3"]
    assert cli.pack([str(config), *settings]) == 0
    parts = [
        {sample for path in sorted((tmp_path / name).glob("*.samples.parquet")) for sample in _samples_in(path)}
        for name in ("anyinstruct", "anyinstruct-validation")
    ]
    assert len(parts[0] | parts[1]) == 43
    assert not parts[0] & parts[1]
    assert min(map(len, parts)) > 0


def _samples_in(sidecar: Path) -> list[str]:
    return pq.read_table(sidecar, columns=["sample_id"]).column("sample_id").to_pylist()


MEDIA_TOKENS = [
    *(f"<\U0001f440{code}>" for code in range(8192)),
    *("<soim>", "<eoim>"),
    *(f"<\U0001f5e3\ufe0f{code}>" for code in range(1024)),
    *("<sosp>", "<eosp>"),
    *(f"<\U0001f3b6{code}>" for code in range(8192)),
    *("<somu>", "<eomu>"),
    *(f"<\U0001f442{code}>" for code in range(4096)),
    *("<soau>", "<eoau>"),
]
NAMES, MARKS, ENDS = ["[Human]", "[MMGPT]", "<eoh>", "<eos>"], ["<-Res->", "<-Ins->"], ["<eom>", "<eot>"]


@pytest.mark.parametrize(
    "added", [[*NAMES, *MEDIA_TOKENS, *MARKS, *ENDS], [*NAMES, *ENDS, *MEDIA_TOKENS, *MARKS]], ids=["A", "B"]
)
def test_published_weights_bring_their_own_ids_and_the_marks_of_a_spoken_answer(
    repository: Path, tmp_path: Path, added: list[str]
):
    """Both layouts the published chat model may have (anygpt-compat 1.3), 53,520 ids, packed by the shipped config."""
    folder = write_llama_stand_in(tmp_path / "chat", legacy=False)
    numbers = {token: 32000 + place for place, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
    voice = Segment("user", Modality.SPEECH, codes=np.full((3, 8), 7, np.uint16), duration_s=0.06)
    spoken = [voice, say("transcript", "she is"), say("assistant", "a home."), show("assistant", Modality.MUSIC, 1, 0)]
    write_samples(tmp_path / "anyinstruct", [sample("spoken", *spoken)], shard_rows=1)
    settings = [
        f"output={tmp_path / 'out'}",
        f"checkpoint={folder}",
        f"datasets.anyinstruct.path={tmp_path / 'anyinstruct'}",
    ]
    settings += ["workers=0", "validation_share=0.0"]
    config = str(repository / "configs/packing/anygpt-chat-sft.toml")
    assert cli.pack([config, *(part for setting in settings for part in ("--set", setting))]) == 0
    dataset = open_packed(tmp_path / "out" / "anyinstruct")
    assert dataset.vocabulary.size == 53520
    ((begin, end),) = dataset.loss_spans(0).tolist()
    trained = dataset.gather([0])[0][begin:end].tolist()
    codes = spoken[-1].codes
    assert codes is not None
    music = [numbers[f"<\U0001f3b6{code + 2048 * level}>"] for level, code in enumerate(codes[0].tolist())]
    heard, told = [29871, numbers["<-Ins->"], 1183, 338, 13, 29871], [numbers["<-Res->"], 263, 3271, 29889, 29871]
    assert trained == [*heard, *told, numbers["<somu>"], *music, numbers["<eomu>"], numbers["<eos>"], 2]


@pytest.mark.parametrize("name", ["anygpt-7b-sft", "anygpt-chat-sft"])
def test_the_configs_of_the_real_route_are_whole(repository: Path, name: str):
    config = load_config(repository / f"configs/packing/{name}.toml", PackingConfig)
    assert (config.dialogue_preset, config.sequence_length, config.long_documents) == ("MMGPT", 4500, "split")
    assert (config.text_tokenizer is None) == (config.checkpoint is not None)
    assert set(config.datasets) == {"anyinstruct"}
    assert config.validation_share > 0
