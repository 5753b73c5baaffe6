"""Templates: which way a sample is told, and in which words; read from ``configs/templates``.

Source: AnyGPT's released stage 1 (anygpt-compat 3.2) for the frame; the instruction pools are our own wording.

Templates are drawn late. Draw ``d`` of a sample takes its direction and its instruction from a hash of (seed, sample id,
d): the same on every machine and in every order, different from draw to draw, so an oversampled corpus is not the same
strings again and again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load import Config, load_config
from shards.errors import ConfigError
from shards.manifest import fingerprint
from shards.records import TokenizedSample
from shards.vocabulary import Modality

Shares = Mapping[str, float]

INTERLEAVED = "interleaved"
DIALOGUE = "dialogue"
DIALOGUE_SLOTS = frozenset({"user", "assistant"})
# The running text of a document; captions and transcripts have slots of their own.
DOCUMENT_SLOT = "text"
MIN_POOL = 100
# What a corpus without a line of its own gets.
DEFAULT = "default"
_SPECIAL = re.compile(r"[<>{}\[\]]|[^\x20-\x7e]|\s\s|^\s|\s$")


class InstructionPools(Config):
    """Sentences that ask for one direction; each one ends in ``.`` or ``?``."""

    x_to_text: tuple[str, ...]
    text_to_x: tuple[str, ...]


class MediumTemplate(Config):
    """``image.toml``, ``speech.toml``, ...: one for every medium."""

    modality: Modality
    instructions: InstructionPools
    directions: dict[str, dict[str, float]]
    """Corpus -> direction -> share."""


class InterleavedTemplate(Config):
    """``interleaved.toml``."""

    directions: dict[str, dict[str, float]]


class DialoguePreset(Config):
    """The strings of one stage-2 conversation form."""

    user: str
    assistant: str
    user_end: str
    assistant_end: str
    system: str
    text_markers: tuple[str, ...] = ()
    """Markers that may be spelled out as text where the vocabulary lacks them."""


class DialogueTemplate(Config):
    """``dialogue.toml``."""

    preset: str
    presets: dict[str, DialoguePreset]
    tasks: dict[str, str]
    directions: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Templates:
    """All templates of a run.

    Attributes:
        media: by modality.
        fingerprint: 16 hex digits over everything above; part of a packed dataset's fingerprint.
    """

    media: Mapping[Modality, MediumTemplate]
    interleaved: InterleavedTemplate
    dialogue: DialogueTemplate
    fingerprint: str

    @property
    def preset(self) -> DialoguePreset:
        """The conversation form that dialogues are written in."""
        return self.dialogue.presets[self.dialogue.preset]

    def pool(self, direction: str) -> tuple[str, ...]:
        """Instructions of a direction between text and one medium."""
        modality, to_text = split_direction(direction)
        instructions = self.media[modality].instructions
        return instructions.x_to_text if to_text else instructions.text_to_x


def load_templates(folder: Path, overrides: Sequence[str] = ()) -> Templates:
    """Read and check the ``.toml`` of every medium, ``interleaved`` and ``dialogue``, in a folder.

    Args:
        overrides: ``--set`` strings for ``dialogue.toml``, e.g. ``preset=AnyGPT``.

    Raises:
        ConfigError: a file is missing or wrong; a pool is too small, has doubles or special strings; shares do not sum to 1.
    """
    media: dict[Modality, MediumTemplate] = {}
    for modality in Modality:
        if modality != Modality.TEXT:
            media[modality] = _load_medium(folder / f"{modality}.toml", modality)
    interleaved_path, dialogue_path = folder / "interleaved.toml", folder / "dialogue.toml"
    interleaved = load_config(interleaved_path, InterleavedTemplate)
    dialogue = load_config(dialogue_path, DialogueTemplate, overrides)
    _check_directions(interleaved.directions, {INTERLEAVED}, str(interleaved_path))
    _check_directions(dialogue.directions, {DIALOGUE}, str(dialogue_path))
    if dialogue.preset not in dialogue.presets:
        raise ConfigError(
            f"{dialogue_path}: key 'preset': expected one of {sorted(dialogue.presets)}, found {dialogue.preset!r}"
        )
    facts = {
        "media": {str(modality): template.model_dump(mode="json") for modality, template in media.items()},
        "interleaved": interleaved.model_dump(mode="json"),
        "dialogue": dialogue.model_dump(mode="json"),
    }
    return Templates(media, interleaved, dialogue, fingerprint(facts))


def split_direction(direction: str) -> tuple[Modality, bool]:
    """``speech_to_text`` -> (speech, True); ``text_to_image`` -> (image, False).

    Raises:
        ConfigError: neither form, or no such medium.
    """
    left, _, right = direction.partition("_to_")
    media = {str(modality): modality for modality in Modality if modality != Modality.TEXT}
    if right == "text" and left in media:
        return media[left], True
    if left == "text" and right in media:
        return media[right], False
    raise ConfigError(f"expected a direction of {sorted(all_directions())}, found {direction!r}; correct its spelling")


def all_directions() -> set[str]:
    """Every direction a config may name."""
    media = [modality for modality in Modality if modality != Modality.TEXT]
    pairs = {f"{modality}_to_text" for modality in media} | {f"text_to_{modality}" for modality in media}
    return pairs | {INTERLEAVED, DIALOGUE}


def directions_of(sample: TokenizedSample, templates: Templates) -> Shares:
    """The configured direction shares of a sample: by its corpus, else the default of what it is made of."""
    table = _table_for(sample, templates)
    return table.get(sample.corpus, table[DEFAULT])


def check_shares(shares: Shares, *, where: str) -> Shares:
    """Directions exist and shares sum to 1.

    Raises:
        ConfigError: naming ``where``.
    """
    if unknown := sorted(set(shares) - all_directions()):
        raise ConfigError(f"{where}: expected directions of {sorted(all_directions())}, found {unknown[0]!r}")
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ConfigError(f"{where}: expected shares >= 0 that sum to 1, found {dict(shares)}; correct them")
    return shares


def draw_fractions(sample_id: str, *, draw: int, seed: int, count: int) -> list[float]:
    """``count`` numbers in [0, 1) that depend on (seed, sample id, draw) alone; ``count`` at most 8."""
    key = f"{seed}\x1f{draw}\x1f{sample_id}".encode()
    digest = hashlib.blake2b(key, digest_size=8 * count).digest()
    # 53 bits are what a float holds without rounding up to 1.
    return [(int.from_bytes(digest[8 * i : 8 * i + 8]) >> 11) / (1 << 53) for i in range(count)]


def draw_direction(shares: Shares, fraction: float) -> str:
    """The direction that ``fraction`` of [0, 1) falls on, directions in order of name."""
    reached = 0.0
    names = [name for name in sorted(shares) if shares[name] > 0]
    for name in names:
        reached += shares[name]
        if fraction < reached:
            return name
    # Shares may sum to a hair less than 1.
    return names[-1]


def _table_for(sample: TokenizedSample, templates: Templates) -> Mapping[str, Shares]:
    media = [segment.modality for segment in sample.segments if segment.codes is not None]
    if any(segment.slot in DIALOGUE_SLOTS for segment in sample.segments):
        return templates.dialogue.directions
    is_document = any(segment.slot == DOCUMENT_SLOT for segment in sample.segments)
    if is_document or sample.corpus in templates.interleaved.directions or len(media) != 1:
        return templates.interleaved.directions
    return templates.media[media[0]].directions


def _load_medium(path: Path, modality: Modality) -> MediumTemplate:
    template = load_config(path, MediumTemplate)
    if template.modality != modality:
        raise ConfigError(f"{path}: key 'modality': expected {str(modality)!r}, found {str(template.modality)!r}")
    _check_directions(template.directions, {f"{modality}_to_text", f"text_to_{modality}"}, str(path))
    for name in ("x_to_text", "text_to_x"):
        _check_pool(getattr(template.instructions, name), where=f"{path}: key 'instructions.{name}'")
    return template


def _check_directions(table: Mapping[str, Shares], allowed: set[str], where: str) -> None:
    if DEFAULT not in table:
        raise ConfigError(f"{where}: key 'directions.{DEFAULT}' is required and missing; add it")
    for corpus, shares in table.items():
        key = f"{where}: key 'directions.{corpus}'"
        check_shares(shares, where=key)
        if strange := sorted(set(shares) - allowed):
            raise ConfigError(f"{key}: expected only {sorted(allowed)}, found {strange[0]!r}")


def _check_pool(pool: Sequence[str], *, where: str) -> None:
    if len(pool) < MIN_POOL:
        raise ConfigError(f"{where}: expected at least {MIN_POOL} instructions, found {len(pool)}; write more")
    folded = [text.lower() for text in pool]
    if twice := sorted({text for text in folded if folded.count(text) > 1}):
        raise ConfigError(f"{where}: expected distinct instructions, found {twice[0]!r} again; reword one")
    for text in pool:
        if _SPECIAL.search(text) or not text.endswith((".", "?")):
            raise ConfigError(
                f"{where}: expected plain ASCII that ends in '.' or '?' and has no brackets or placeholders, found {text!r}"
            )
