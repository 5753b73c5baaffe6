"""SoundStorm's sampler: seven levels of codes for given first-level codes, in a few passes over all frames at once.

Source: SoundStorm section 3.3 (MaskGIT per level); upstream's rules from the parity fixtures' README, section 4. The frames
of a voice prompt stand before the item's own. The first level above the semantic one takes ``steps + 1`` passes: all its
codes are drawn, the least certain ones hidden again, fewer each time (cosine). Every further level takes one pass and its
likeliest codes. So there are steps + 1 + 6 passes.

Upstream departs from that in ways ``compat`` repeats, for results that equal its own:

    =========================  ===========================================  ======================================
    rule                       here                                         ``compat``
    =========================  ===========================================  ======================================
    certainties are ranked     inside the level, over the item's frames     over all levels and the prompt's too
    to hide after pass i       floor(cos(pi/2 i/steps) frames of the item)  the same of the frames, prompt included
    prompt's higher levels     stay what they are                           are overwritten, level by level
    levels not decided yet     are hidden, as in training                   are what an earlier pass made of them
    =========================  ===========================================  ======================================

In both, a pass ranks every entry by how certain its own draw there is, also where an earlier pass has decided: what a later
look doubts is drawn again.

Noise comes from (seed, the item's key, the pass), so an item has the same in any batch and on any device.

Shapes: B items, N frames with the prompt's, Q levels above the first, K codes a level.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from shards.vocabulary import Codes
from train.soundstorm import SoundStorm

TOP_K_SHARE = 0.3
"""Share of a level's codes, the likeliest, that may be drawn: 308 of 1,024."""
PUBLISHED_STEPS = 4
"""Of AnyGPT's speech config; its ``generate_config.json`` says 3."""

_LARGEST_NOISE = 46.0

Noise = Callable[[int, str, int, tuple[int, ...]], torch.Tensor]
"""From seed, key, pass and shape: what is added to the logits, once they are divided by the temperature."""


@dataclass(frozen=True, slots=True)
class SpeechItem:
    """What to say, and in whose voice.

    Attributes:
        semantic: (frames,) first-level codes.
        key: what its noise depends on, e.g. its sample id.
        prompt: (frames, levels) codes of a voice, first level included; None: whatever voice comes.
    """

    semantic: npt.NDArray[np.integer]
    key: str
    prompt: Codes | None = None


def gumbel_noise(seed: int, key: str, number: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Gumbel noise that turns the argmax into a draw; made on the CPU, so that every device gets the same."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}\x1f{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return -torch.empty(shape).exponential_(generator=generator).log().clamp(min=-_LARGEST_NOISE)


def no_noise(seed: int, key: str, number: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros: the likeliest codes at every temperature."""
    del seed, key, number
    return torch.zeros(shape)


def fill_levels(
    network: SoundStorm,
    semantic: npt.NDArray[np.integer],
    prompt: Codes | None = None,
    *,
    key: str,
    steps: int = PUBLISHED_STEPS,
    seed: int = 0,
    compat: bool = False,
    greedy: bool = True,
    noise: Noise = gumbel_noise,
) -> Codes:
    """Codes of all levels for one item; see :func:`fill_levels_of_all`."""
    item = SpeechItem(semantic, key, prompt)
    return fill_levels_of_all(network, [item], steps=steps, seed=seed, compat=compat, greedy=greedy, noise=noise)[0]


def fill_levels_of_all(
    network: SoundStorm,
    items: Sequence[SpeechItem],
    *,
    steps: int = PUBLISHED_STEPS,
    seed: int = 0,
    compat: bool = False,
    greedy: bool = True,
    noise: Noise = gumbel_noise,
) -> list[Codes]:
    """Codes of all levels for items of any lengths, as one padded batch; each gets what it would get alone.

    Args:
        steps: passes over the first level, less one.
        compat: upstream's own rules; see the module.
        greedy: take the likeliest codes in the pass that hides none any more.

    Returns:
        (frames, Q + 1) uint16 per item, the given semantic codes first.

    Raises:
        ValueError: no step, no frame, or codes that the network does not know.
    """
    if steps < 1:
        raise ValueError(f"soundstorm: expected at least one step, found {steps}")
    if not items:
        return []
    batch = _make_batch(network, items)
    with torch.inference_mode():
        codes_BNQ = _fill_first(network, batch, steps=steps, seed=seed, compat=compat, greedy=greedy, noise=noise)
        codes_BNQ = _fill_others(network, batch, codes_BNQ, compat=compat)
    filled = [codes[target].cpu().numpy() for codes, target in zip(codes_BNQ, batch.target, strict=True)]
    return [
        np.concatenate([item.semantic[:, None], codes], axis=1).astype(np.uint16)
        for item, codes in zip(items, filled, strict=True)
    ]


def hidden_after(number: int, steps: int, entries: torch.Tensor) -> torch.Tensor:
    """How many codes stay hidden after pass ``number``: all after the first, none after the last.

    Args:
        entries: (B,) how many there are.
    """
    share = torch.cos(torch.linspace(0.0, 1.0, steps + 1)[number] * math.pi * 0.5)
    return (share.to(entries.device) * entries).long()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Items padded at the end to one length.

    Attributes:
        semantic: (B, N) first-level codes, the prompt's first.
        codes: (B, N, Q) the prompt's, hidden elsewhere.
        valid: (B, N) not padding.
        target: (B, N) neither padding nor prompt.
    """

    keys: tuple[str, ...]
    semantic: torch.Tensor
    codes: torch.Tensor
    valid: torch.Tensor
    target: torch.Tensor

    def hidden(self, network: SoundStorm, codes_BNQ: torch.Tensor) -> torch.Tensor:
        return network.hidden(self.semantic, codes_BNQ, None if bool(self.valid.all()) else self.valid)


def _make_batch(network: SoundStorm, items: Sequence[SpeechItem]) -> _Batch:
    config = network.config
    device = network.heads.weight.device
    semantics, codes, targets = [], [], []
    for item in items:
        _check(item, network)
        prompt = np.zeros((0, config.num_quantizers + 1)) if item.prompt is None else item.prompt
        semantics.append(torch.from_numpy(np.concatenate([prompt[:, 0], item.semantic]).astype(np.int64)))
        hidden = np.full((len(item.semantic), config.num_quantizers), config.mask_id)
        codes.append(torch.from_numpy(np.concatenate([prompt[:, 1:], hidden]).astype(np.int64)))
        targets.append(torch.arange(len(semantics[-1])) >= len(prompt))
    valid = [torch.ones(len(semantic), dtype=torch.bool) for semantic in semantics]
    return _Batch(
        tuple(item.key for item in items),
        pad_sequence(semantics, batch_first=True).to(device),
        pad_sequence(codes, batch_first=True, padding_value=config.mask_id).to(device),
        pad_sequence(valid, batch_first=True).to(device),
        pad_sequence(targets, batch_first=True).to(device),
    )


def _check(item: SpeechItem, network: SoundStorm) -> None:
    config = network.config
    semantic, width = item.semantic, config.num_quantizers + 1
    if semantic.ndim != 1 or not len(semantic):
        raise ValueError(f"soundstorm: expected first-level codes (frames,), at least one, found {semantic.shape}")
    if not 0 <= int(semantic.min()) <= int(semantic.max()) < config.num_semantic:
        raise ValueError(
            f"soundstorm: expected first-level codes in [0, {config.num_semantic}), found {semantic.max()}"
        )
    prompt = item.prompt
    if prompt is None or prompt.shape == (0, width):
        return
    if prompt.ndim != 2 or prompt.shape[1] != width:
        raise ValueError(f"soundstorm: expected a prompt (frames, {width}), found {prompt.shape}")
    most = max(int(prompt[:, 0].max()) - config.num_semantic, int(prompt[:, 1:].max()) - config.codebook_size)
    if most >= 0 or int(prompt.min()) < 0:
        raise ValueError(f"soundstorm: expected prompt codes in [0, {config.codebook_size}), found {prompt.max()}")


def _fill_first(
    network: SoundStorm, batch: _Batch, *, steps: int, seed: int, compat: bool, greedy: bool, noise: Noise
) -> torch.Tensor:
    """Decide the first of the levels; with ``compat`` the others get a first guess as well."""
    levels = network.config.num_quantizers if compat else 1
    codes_BNQ = batch.codes
    target_BNL = batch.target[..., None].expand(-1, -1, levels)
    ranked_BN = batch.valid if compat else batch.target
    lengths_B = batch.valid.sum(1)
    undecided_BNL = target_BNL
    for number in range(steps + 1):
        hide_B = hidden_after(number, steps, ranked_BN.sum(1))
        logits_BNLK = network.logits_from(batch.hidden(network, codes_BNQ), 0, levels).float()
        kept_BNLK = _likeliest(logits_BNLK)
        drawn_BNL = kept_BNLK.argmax(-1)
        if number:
            shapes = [(int(length), levels, logits_BNLK.shape[-1]) for length in lengths_B]
            rows = [noise(seed, key, number, shape) for key, shape in zip(batch.keys, shapes, strict=True)]
            noise_BNLK = pad_sequence(rows, batch_first=True).to(kept_BNLK.device)
            drawn_BNL = (kept_BNLK / (number / steps) + noise_BNLK).argmax(-1)
        if greedy:
            is_final = (hide_B == 0)[:, None, None]
            drawn_BNL = torch.where(is_final, logits_BNLK.argmax(-1), drawn_BNL)
        first = torch.where(undecided_BNL, drawn_BNL, codes_BNQ[..., :levels])
        certainty_BNL = kept_BNLK.softmax(-1).gather(-1, drawn_BNL[..., None])[..., 0]
        uncertain_BNL = _least_certain(certainty_BNL, ranked_BN, hide_B)
        # Ranked with the rest or not: a level above the one being decided starts anew in every pass.
        uncertain_BNL[..., 1:] = True
        some_B11 = (hide_B > 0)[:, None, None]
        undecided_BNL = torch.where(some_B11, uncertain_BNL & target_BNL, undecided_BNL)
        first = first.masked_fill(undecided_BNL & some_B11, network.config.mask_id)
        codes_BNQ = torch.cat([first, codes_BNQ[..., levels:]], dim=-1)
    return codes_BNQ


def _fill_others(network: SoundStorm, batch: _Batch, codes_BNQ: torch.Tensor, *, compat: bool) -> torch.Tensor:
    """Decide the levels after the first, one pass each."""
    for level in range(1, network.config.num_quantizers):
        stop = network.config.num_quantizers if compat else level + 1
        best = network.logits_from(batch.hidden(network, codes_BNQ), level, stop).argmax(-1)
        if not compat:
            best = torch.where(batch.target[..., None], best, codes_BNQ[..., level:stop])
        codes_BNQ = torch.cat([codes_BNQ[..., :level], best, codes_BNQ[..., stop:]], dim=-1)
    return codes_BNQ


def _likeliest(logits_BNLK: torch.Tensor) -> torch.Tensor:
    """The logits of the likeliest codes, minus infinity elsewhere."""
    values, indices = logits_BNLK.topk(math.ceil(TOP_K_SHARE * logits_BNLK.shape[-1]), dim=-1)
    return torch.full_like(logits_BNLK, float("-inf")).scatter(-1, indices, values)


def _least_certain(certainty_BNL: torch.Tensor, ranked_BN: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor:
    """(B, N, L) bool: the ``count`` least certain entries of each item among the frames that are ranked."""
    # A certainty is at most 1, so frames that are not ranked come last.
    flat = certainty_BNL.masked_fill(~ranked_BN[..., None], 2.0).flatten(1)
    order = flat.argsort(dim=-1, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return (ranks < count_B[:, None]).view_as(certainty_BNL)
