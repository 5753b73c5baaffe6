"""A runtime's prompts are what packing writes; its codecs are the corpus's own, both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.generation import Request
from inference.grammar import LengthBudget
from inference.runtime import Runtime, open_runtime
from pipeline.rendering import render_document
from pipeline.templates import draw_fractions, split_direction
from shards.errors import ConfigError, SampleError, TokenizerError
from shards.modality import Modality
from shards.records import Provenance, Segment, TokenizedSample
from tests.fixtures.soundstorm_checkpoints import tiny_state, write_checkpoint
from tests.fixtures.tiny_inference import write_config, write_published
from tests.fixtures.tiny_tasks import tiny_config, tiny_model, tiny_runtime

MEDIA = (Modality.IMAGE, Modality.SPEECH, Modality.MUSIC)
DIRECTIONS = [f"{m}_to_text" for m in MEDIA] + [f"text_to_{m}" for m in MEDIA]


def packed_ids(runtime: Runtime, direction: str, medium: Segment, words: str, seed: int) -> tuple[np.ndarray, str]:
    """A document as packing writes it, and the instruction that packing drew for it."""
    caption = Segment("caption", Modality.TEXT, words)
    sample = TokenizedSample("corpus/1", "corpus", "train", (medium, caption), Provenance("f"))
    document = render_document(
        sample,
        runtime.templates,
        runtime.vocabulary,
        runtime.text_tokenizer,
        draw=0,
        seed=seed,
        directions={direction: 1.0},
    )
    pool = runtime.templates.pool(direction)
    drawn = draw_fractions(sample.sample_id, draw=0, seed=seed, count=3)[1]
    return document.token_ids, pool[int(drawn * len(pool))]


@settings(max_examples=20)
@given(
    words=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_prompt_is_the_beginning_of_the_packed_row(direction, words, seed):
    """Whatever the words: special strings in them, white space, bars."""
    runtime = tiny_runtime()
    modality, to_text = split_direction(direction)
    medium = segments()[modality]
    row, instruction = packed_ids(runtime, direction, medium, words, seed)
    asked = {"medium": medium} if to_text else {"text": words}
    ids = runtime.prompt_ids(direction, instruction=instruction, **asked)
    assert ids.tolist() == row[: len(ids)].tolist()
    rest = row[len(ids) :].tolist()
    end = runtime.vocabulary.marker("<eos>")
    if to_text:
        assert rest == [*runtime.text_tokenizer.encode(f" {words}"), end, runtime.vocabulary.eos_id]
    else:
        block = runtime.vocabulary.block(modality)
        assert rest == [*block.to_token_ids(medium.codes), block.end_id, end, runtime.vocabulary.eos_id]


def segments() -> dict[Modality, Segment]:
    return _SEGMENTS or {m: _SEGMENTS.setdefault(m, tiny_runtime().encode(tiny_model().files[m], m)) for m in MEDIA}


_SEGMENTS: dict[Modality, Segment] = {}


def test_media_go_in_and_out_at_the_rates_of_table_1():
    runtime = tiny_runtime()
    for modality, segment in segments().items():
        assert segment.codes is not None
        assert segment.codes.shape[1] == modality.rate.levels_at_rest
        medium = runtime.decode(modality, segment.codes[:, : modality.rate.levels_read])
        if modality is Modality.IMAGE:
            assert medium.shape == (224, 224, 3) and segment.duration_s is None
        else:
            assert len(medium) == len(segment.codes) * modality.rate.samples_per_frame
            assert runtime.sample_rate_hz(modality) == modality.rate.sample_rate_hz
            assert segment.duration_s == pytest.approx(len(segment.codes) / 50, abs=0.02)
    assert runtime.encode(tiny_model().files[Modality.IMAGE]).modality is Modality.IMAGE


def test_what_a_config_lacks_is_told_by_its_key(tmp_path: Path):
    runtime = replace(tiny_runtime(), config=tiny_config().model_copy(update={"codecs": {}}))
    with pytest.raises(ConfigError, match=r"codecs.image: expected a codec"):
        runtime.encode(tiny_model().files[Modality.IMAGE])
    gone = replace(tiny_runtime(), config=tiny_config(f"codecs.image={tmp_path / 'gone'}"))
    with pytest.raises(ConfigError, match=r"codecs.image = .*gone: expected a fitted codec .* set codecs.image"):
        gone.encode(tiny_model().files[Modality.IMAGE])
    with pytest.raises(ConfigError, match="expected a vocoder to speak in its voice"):
        tiny_runtime().decode(Modality.SPEECH, np.zeros((3, 1), np.uint16), voice=tiny_model().files[Modality.SPEECH])
    with pytest.raises(ConfigError, match="expected codecs for image, speech, music, found one for audio"):
        tiny_config("codecs.audio=x.toml")
    with pytest.raises(ConfigError, match="key 'preset'"):
        open_runtime(tiny_config("dialogue_preset=Other"))
    with pytest.raises(SampleError, match="media_missing"):
        tiny_runtime().encode(tmp_path / "absent", Modality.SPEECH)


def test_no_answer_is_longer_than_the_positions_that_are_left():
    """The model has 512; speech has 5 to 12 frames, a picture always 32."""
    runtime = tiny_runtime()
    assert runtime.max_length == 512
    assert runtime.budget(Modality.SPEECH, 100) == LengthBudget(5, 12)
    assert runtime.budget(Modality.SPEECH, 503) == LengthBudget(5, 8)
    assert runtime.budget(Modality.IMAGE, 479) == LengthBudget(32, 32)
    for modality, one_too_many in ((Modality.SPEECH, 507), (Modality.IMAGE, 480), (Modality.TEXT, 511)):
        with pytest.raises(SampleError, match=f"prompt_too_long.*at most {one_too_many - 1} ids.*found {one_too_many}"):
            runtime.budget(modality, one_too_many)
    lengths = (503, 60, 506)
    answers = runtime.answer(Modality.SPEECH, [Request(f"k{n}", np.full(n, 5)) for n in lengths])
    assert len(answers[0]) <= 8 and len(answers[2]) == 5
    assert answers[1] == runtime.answer(Modality.SPEECH, [Request("k60", np.full(60, 5))])[0]


def test_the_presets_of_this_repository_load(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """Each config's own files are there; the models are made by commands, or placed by hand."""
    from configs.load import load_config
    from inference.config import InferenceConfig
    from inference.decoding import load_decoding

    monkeypatch.chdir(repository)
    names = sorted(path.stem for path in (repository / "configs" / "inference").glob("*.toml"))
    assert names >= ["published", "tiny", "tiny-sft"]
    for name in names:
        config = load_config(repository / "configs" / "inference" / f"{name}.toml", InferenceConfig)
        load_decoding(config.decoding)
        assert config.layout.is_file() and config.templates.is_dir()
        assert config.vocoder is None or config.vocoder.is_file()
        assert all(path.is_file() for path in config.codecs.values() if path.suffix == ".toml")


def test_a_published_folder_answers_in_every_modality(tmp_path: Path):
    """LLaMA's tokenizer, ids out of added_tokens.json, a fourth block that stays unused, rows behind the last id."""
    (tmp_path / "model").mkdir()
    vocabulary = write_published(tmp_path / "model", num_rows=53_632)
    path = write_config(
        tmp_path / "c.toml",
        model=tmp_path / "model",
        codecs=tiny_config().codecs[Modality.IMAGE],
        text_tokenizer=None,
        output=tmp_path / "out",
    )
    from configs.load import load_config
    from inference.config import InferenceConfig

    runtime = open_runtime(load_config(path, InferenceConfig))
    assert runtime.vocabulary.block("audio").first_id == vocabulary.block("audio").first_id
    for modality in MEDIA:
        ids = runtime.prompt_ids(f"text_to_{modality}", instruction="Read this.", text="this is a home")
        assert (
            ids[:6].tolist() == [1, 29871, 32000, 29901, 7523, 445] and ids[-1] == vocabulary.block(modality).start_id
        )
        answer = runtime.answer(modality, [Request("k", ids)])[0]
        assert runtime.decode(modality, runtime.codes_of(modality, answer)).size
    ids = runtime.prompt_ids("image_to_text", instruction="Describe this.", medium=segments()[Modality.IMAGE])
    answer = runtime.answer(Modality.TEXT, [Request("k", ids)])[0]
    assert max(answer) < vocabulary.text_size and isinstance(runtime.text_of(answer), str)


def test_a_voice_prompt_changes_the_voice_and_only_of_its_own_answer(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "soundstorm", tiny_state())
    vocoder = tmp_path / "vocoder.toml"
    codec = tiny_config().codecs[Modality.SPEECH]  # the compact one has all eight levels
    vocoder.write_text(f'soundstorm = "{checkpoint}"\ncodec = "{codec}"\ndevice = "cpu"\n', encoding="utf-8")
    runtime = replace(tiny_runtime(), config=tiny_config(f"vocoder={vocoder}"))
    codes = np.arange(40, dtype=np.uint16)[:, None]
    plain = runtime.decode(Modality.SPEECH, codes)
    voiced = runtime.decode(Modality.SPEECH, codes, voice=tiny_model().files[Modality.SPEECH])
    assert plain.shape == voiced.shape and not np.array_equal(plain, voiced)
    assert np.array_equal(runtime.decode(Modality.SPEECH, codes), plain)
    with pytest.raises(TokenizerError, match="expected a voice"):
        runtime.decode(Modality.SPEECH, codes, voice=tiny_model().files[Modality.IMAGE])
