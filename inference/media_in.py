"""Files that a model is shown or played: what they are is told from their content, never from their name.

Whether a file is a picture or a sound, its bytes say. Whether a sound is speech or music they do not: what was asked for
says that. Files are read as a corpus with default settings is (:mod:`pipeline.media`): of music the first window from its
start, of speech all of it. The released code takes 20 s of music from a random place (anygpt-compat U-17).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.media import MediaConfig, WindowConfig, make_decoder
from pipeline.pictures import PictureConfig, decode_picture
from pipeline.samples import RawMedia
from pipeline.sound_files import Reader, read_channels
from pipeline.tokenization import Clip
from shards.errors import SampleError
from shards.modality import Modality

MediaKind = Literal["picture", "sound"]

MAX_BYTES = 512 << 20
"""Larger files are refused before they are read."""
_GLANCE_S = 0.01
# What these two say of bytes that are not theirs at all; any other fault is one of a picture, or a sound, that is damaged.
_NO_PICTURE = "image_unreadable"
_NO_SOUND = ("sound_unreadable", "media_empty")


def read_file(path: Path) -> bytes:
    """The bytes of a medium.

    Raises:
        SampleError: ``media_missing``, ``media_empty`` or ``media_too_large``; names the file.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise SampleError("media_missing", f"{path}: expected a file, found a folder; name the file in it")
        if size > MAX_BYTES:
            raise SampleError(
                "media_too_large", f"{path}: expected at most {MAX_BYTES >> 20} MiB, found {size >> 20}; cut it"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SampleError("media_missing", f"{path}: expected a file, found none: {reason}; mend the path") from error
    if not data:
        raise SampleError("media_empty", f"{path}: expected a picture or a sound, found an empty file")
    return data


def kind_of(data: bytes, *, reader: Reader = "soundfile") -> MediaKind | None:
    """What encoded bytes are, by beginning to decode them; None: neither. A damaged picture is a picture."""
    if _fault_of_picture(data) != _NO_PICTURE:
        return "picture"
    try:
        read_channels(data, reader=reader, channel="first", limit_s=_GLANCE_S)
    except SampleError as error:
        return None if error.reason in _NO_SOUND else "sound"
    return "sound"


def kind_of_file(path: Path, *, reader: Reader = "soundfile") -> MediaKind | None:
    """What a file is; None: neither a picture nor a sound, or no file that can be read."""
    try:
        return kind_of(read_file(path), reader=reader)
    except SampleError:
        return None


def decode_file(
    path: Path,
    modality: Modality | None = None,
    *,
    media: MediaConfig | None = None,
    windows: WindowConfig | None = None,
) -> tuple[Modality, Clip]:
    """Read a file as a codec wants it.

    Args:
        modality: what it is asked about as; None: a picture.

    Returns:
        its modality, and (224, 224, 3) uint8 or (samples,) float32 at the modality's rate.

    Raises:
        SampleError: no such file; neither picture nor sound; not what it is asked about as; a sound without word whether it
            is speech or music; damaged, too short or too long. Names the file.
    """
    media, windows = media or MediaConfig(), windows or WindowConfig()
    data = read_file(path)
    sound = modality if modality is not None and modality.is_sound else Modality.SPEECH
    kind = kind_of(data, reader=media.sound(sound).reader)
    _check_kind(path, kind, modality)
    chosen = modality or Modality.IMAGE
    try:
        return chosen, make_decoder(media, windows)(RawMedia(str(chosen), chosen, data=data))[0]
    except SampleError as error:
        raise SampleError(error.reason, f"{path}: {str(error).removeprefix(f'{error.reason}: ')}") from error


def _check_kind(path: Path, kind: MediaKind | None, modality: Modality | None) -> None:
    wanted = "a picture or a sound" if modality is None else f"a {'sound' if modality.is_sound else 'picture'}"
    if kind is None:
        raise SampleError(
            "media_unreadable",
            f"{path}: expected {wanted}, found neither a picture nor a sound that can be read; "
            "give PNG, JPEG, WebP, GIF, BMP, TIFF, or WAV, FLAC, MP3, Ogg",
        )
    if modality is None and kind == "sound":
        raise SampleError("media_unexpected", f"{path}: found a sound; say whether it is speech or music")
    if modality is not None and (kind == "sound") != modality.is_sound:
        raise SampleError("media_unexpected", f"{path}: expected {wanted} for {modality}, found a {kind}")


def _fault_of_picture(data: bytes) -> str | None:
    """The reason a picture cannot be opened, or None; nothing but its header is looked at."""
    try:
        # Refused by its size right after the header, whatever it is.
        decode_picture(data, PictureConfig(max_pixels=1))
    except SampleError as error:
        return error.reason
    return None
