"""CLIP scores from a plug: whole batches, in order, noted, and held against a threshold; our plug on a tiny random CLIP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from pipeline.filters.apply import filter_decoded
from pipeline.filters.clip_plug import score
from pipeline.filters.config import FilterConfig, filter_facts
from pipeline.samples import Filtered, Reject
from pipeline.tokenization import Clip, Decoded, DecodedMedia, DecodedSample
from shards.errors import ConfigError
from shards.records import Provenance, Segment
from shards.vocabulary import Modality

WHERE = Provenance("a.tar")
CALLS: list[int] = []


def redness(pictures: np.ndarray, captions: Sequence[str], *, model: str) -> list[float]:
    """A plug whose scores a reader can check: how red a picture is, if its caption says so."""
    assert pictures.dtype == np.uint8 and len(pictures) == len(captions)
    CALLS.append(len(captions))
    return [float(p[..., 0].mean()) / 255 * ("red" in text) for p, text in zip(pictures, captions, strict=True)]


def one_score_for_all(pictures: np.ndarray, captions: Sequence[str], *, model: str) -> float:
    return 1.0


def no_number(pictures: np.ndarray, captions: Sequence[str], *, model: str) -> list[float]:
    return [float("nan")] * len(captions)


def pair(red: int, *captions: str, pictures: int = 1, name: str = "c/1") -> DecodedSample:
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[..., 0] = red
    media = [DecodedMedia("image", Modality.IMAGE, Clip(picture, "0"))] * pictures
    texts = [Segment("caption", Modality.TEXT, text=text) for text in captions]
    return DecodedSample(name, "c", "train", (*media, *texts), WHERE)


def plugged(function: str = "redness", **keys: object) -> FilterConfig:
    return FilterConfig.model_validate({"clip_plug": f"{__name__}:{function}", **keys})


def reason(result: Decoded) -> str:
    return "kept" if isinstance(result, DecodedSample) else result.reason


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["red", "pale", "sound", "filtered", "reject"]), max_size=12), st.integers(1, 5))
def test_batches_change_neither_order_nor_outcome(kinds: list[str], batch: int):
    made = {
        "red": lambda name: pair(255, "a red thing", name=name),
        "pale": lambda name: pair(51, "a red thing", name=name),
        "sound": lambda name: pair(0, name=name, pictures=0),
        "filtered": lambda name: Filtered(name, "c", "garbage_tag", "m", WHERE),
        "reject": lambda name: Reject(name, "c", "text_empty", "m", WHERE),
    }
    items = [made[kind](f"c/{place}") for place, kind in enumerate(kinds)]
    CALLS.clear()
    results = list(filter_decoded(items, plugged(min_clip_score=0.5, clip_batch=batch)))
    assert [result.sample_id for result in results] == [item.sample_id for item in items]
    expected = {"red": "kept", "pale": "clip_score_too_low", "sound": "kept"}
    expected |= {"filtered": "garbage_tag", "reject": "text_empty"}
    assert [reason(result) for result in results] == [expected[kind] for kind in kinds]
    assert sum(CALLS) == sum(kind in ("red", "pale") for kind in kinds)
    assert max(CALLS, default=0) <= batch
    scores = [r.quality.get("clip_score") for r in results if isinstance(r, DecodedSample)]
    assert scores == [1.0 if kind == "red" else None for kind in kinds if kind in ("red", "sound")]


def test_without_a_threshold_scores_are_noted_and_nothing_is_left_out():
    (result,) = filter_decoded([pair(51, "a red thing")], plugged())
    assert isinstance(result, DecodedSample) and result.quality["clip_score"] == 0.2


def test_of_captions_that_are_alternatives_the_worst_counts():
    (result,) = filter_decoded([pair(255, "a red thing", "a thing")], plugged(min_clip_score=0.5))
    assert reason(result) == "clip_score_too_low"


def test_what_is_no_pair_is_of_unknown_score():
    document = pair(255, "red", pictures=2)
    for keep, outcome in ((True, "kept"), (False, "clip_score_too_low")):
        (result,) = filter_decoded([document], plugged(min_clip_score=0.5, keep_unknown=keep))
        assert reason(result) == outcome


def test_the_plug_is_not_asked_about_what_other_rules_leave_out():
    CALLS.clear()
    (result,) = filter_decoded([pair(255, "a red thing")], plugged(min_clip_score=0.5, min_picture_spread=10))
    assert reason(result) == "picture_flat" and CALLS == []


@pytest.mark.parametrize(
    ("plug", "message"),
    [
        ("no_such_module:score", "expected module:function"),
        (f"{__name__}:no_such_function", "expected module:function"),
        (f"{__name__}:WHERE", "expected a function"),
        (f"{__name__}:one_score_for_all", "expected 1 finite scores"),
        (f"{__name__}:no_number", "expected 1 finite scores"),
        ("pipeline.filters.clip_plug:score", "expected a folder of CLIP"),
    ],
)
def test_a_plug_that_is_none_is_an_error_that_names_it(plug: str, message: str):
    with pytest.raises(ConfigError, match=f"filters.clip_.*{message}"):
        list(filter_decoded([pair(255, "red")], FilterConfig(clip_plug=plug)))


def test_a_threshold_without_a_plug_is_an_error():
    with pytest.raises(ValueError, match="min_clip_score needs clip_plug"):
        FilterConfig(min_clip_score=0.3)
    with pytest.raises(ValueError, match="clip_plug"):
        FilterConfig(clip_plug="no function named")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two small layers and an alphabet of letters, as transformers writes it."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config=layers | ends | {"vocab_size": len(words), "max_position_embeddings": 20},
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def pictures(count: int) -> np.ndarray:
    coarse = np.random.default_rng(7).integers(0, 256, (count, 14, 14, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 16, 16, 1), np.uint8))


TEXTS = ["a red circle", "nothing at all", "a very long caption that goes on and on beyond what the model reads", "x"]


def test_scores_are_the_cosines_that_transformers_own_forward_gives(clip_folder: Path):
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        TEXTS, padding=True, truncation=True, max_length=20, return_tensors="pt"
    )
    small = CLIPImageProcessor.from_pretrained(clip_folder)(list(pictures(4)), return_tensors="pt")
    with torch.inference_mode():
        output = model(**tokens, **small)
    expected = (output.image_embeds * output.text_embeds).sum(-1).numpy()
    found = score(pictures(4), TEXTS, model=str(clip_folder))
    # Pillow and torch shrink a picture a little differently.
    assert np.abs(found - expected).max() < 0.02
    assert np.ptp(expected) > 0.1


def test_a_score_does_not_depend_on_its_neighbours(clip_folder: Path):
    together = score(pictures(4), TEXTS, model=str(clip_folder))
    alone = [score(pictures(4)[k : k + 1], TEXTS[k : k + 1], model=str(clip_folder))[0] for k in range(4)]
    assert np.abs(together - alone).max() < 1e-5


def test_pairs_below_the_threshold_are_left_out_and_counted(clip_folder: Path):
    media = [DecodedMedia("image", Modality.IMAGE, Clip(picture, "0")) for picture in pictures(4)]
    texts = [Segment("caption", Modality.TEXT, text=text) for text in TEXTS]
    items = [
        DecodedSample(f"c/{k}", "c", "train", pair_, WHERE) for k, pair_ in enumerate(zip(media, texts, strict=True))
    ]
    keys = {"clip_plug": "pipeline.filters.clip_plug:score", "clip_model": str(clip_folder), "clip_batch": 3}
    scores = [r.quality["clip_score"] for r in filter_decoded(items, FilterConfig.model_validate(keys))]
    threshold = sorted(scores)[2]
    results = list(filter_decoded(items, FilterConfig.model_validate({**keys, "min_clip_score": threshold})))
    assert [reason(r) for r in results].count("clip_score_too_low") == 2
    assert [reason(r) == "kept" for r in results] == [one >= threshold for one in scores]


def test_other_weights_are_another_fact(clip_folder: Path, tmp_path: Path):
    config = FilterConfig(clip_plug="pipeline.filters.clip_plug:score", clip_model=str(clip_folder))
    before = filter_facts(config)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert before != filter_facts(config.model_copy(update={"clip_model": str(tmp_path)}))
    assert filter_facts(FilterConfig()) == {"version": before["version"]}
