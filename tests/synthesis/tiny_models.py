"""Stable Diffusion and MusicGen with a few thousand random parameters, in the layouts that their libraries save."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.fixtures.tiny_unclip import _text_encoder, _tokenizer

SIDE = 16


def write_diffusion(folder: Path) -> Path:
    """A StableDiffusionPipeline that paints 16 x 16."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=SIDE // 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        )
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(folder),
            unet=unet,
            scheduler=PNDMScheduler(skip_prk_steps=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def write_musicgen(folder: Path) -> Path:
    """A MusicGen of one layer, with its T5, its EnCodec at 32 kHz, and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
    )

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "waltz": 4, "drone": 5}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    text = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    codec = EncodecConfig(
        sampling_rate=32_000,
        target_bandwidths=[2.2],
        hidden_size=8,
        num_filters=2,
        num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=16,
        codebook_dim=8,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=16,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_codebooks=4,
        pad_token_id=16,
        bos_token_id=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MusicgenForConditionalGeneration(
            MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())
        )
    model.generation_config.decoder_start_token_id = 16
    model.generation_config.pad_token_id = 16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
