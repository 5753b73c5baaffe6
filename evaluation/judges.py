"""What does it show, what does it play, what does it say? Decided by comparing pixels and sound, never codes.

A decoded picture is the composition whose prototype rendering is nearest in pixels; a decoded clip is the piece whose
rendering is nearest in log-mel; a spoken reply says what the nearest of the sentences it may say does, however fast. A
judge knows nothing of the codes a model was trained on.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torchaudio.transforms import MelSpectrogram

from pipeline.sample_corpora import music, pictures, speech

_STEP = 4  # pictures are compared at 56 x 56
_MELS = 96
_SPEECH_MELS = 48
_FLOOR = 1e-3


class PictureJudge:
    """Nearest of the 720 prototype pictures."""

    def __init__(self) -> None:
        self._all = pictures.all_attributes()
        self._prototypes = _picture_prototypes()
        self._half_norm = 0.5 * (self._prototypes**2).sum(axis=1)

    def judge(self, shown: Sequence[npt.NDArray[np.uint8]]) -> list[dict[str, str]]:
        """Attributes of each (224, 224, 3) picture."""
        if not shown:
            return []
        thumbnails = np.stack([_thumbnail(picture) for picture in shown])
        nearest = (thumbnails @ self._prototypes.T - self._half_norm).argmax(axis=1)
        return [self._all[index].as_dict() for index in nearest]


class MusicJudge:
    """Nearest of the 288 prototype pieces."""

    def __init__(self, duration_s: float) -> None:
        self._all = music.all_attributes()
        self._num_samples = round(duration_s * music.SAMPLE_RATE_HZ)
        self._prototypes = _music_prototypes(self._num_samples)

    def judge(self, played: Sequence[npt.NDArray[np.float32]]) -> list[dict[str, str]]:
        """Attributes of each clip at 32 kHz."""
        return [self._all[self._nearest(clip)].as_dict() for clip in played]

    def _nearest(self, clip: npt.NDArray[np.float32]) -> int:
        return int(np.abs(self._prototypes - _spectrum(clip, self._num_samples)).mean(axis=1).argmin())


class SpeechJudge:
    """Nearest of some spoken sentences, in log-mel, one stretched in time to fit the other (dynamic time warping)."""

    def __init__(self, spoken: Sequence[tuple[str, npt.NDArray[np.float32]]]) -> None:
        """Sentences with how they sound, at 16 kHz; the same sentence may sound in several ways."""
        self.sentences = [text for text, _ in spoken]
        spectra = [_speech_spectrum(sound) for _, sound in spoken]
        self._lengths = np.array([len(spectrum) for spectrum in spectra], np.int64)
        self._spectra = np.zeros((len(spectra), max(self._lengths, default=0), _SPEECH_MELS), np.float32)
        for row, spectrum in zip(self._spectra, spectra, strict=True):
            row[: len(spectrum)] = spectrum

    def judge(self, sound: npt.NDArray[np.float32]) -> str:
        """The sentence that a sound at 16 kHz says."""
        distances = _warped_distances(_speech_spectrum(sound), self._spectra, self._lengths)
        return self.sentences[int(np.argmin(distances))]


def words_right(heard: str, truth: str) -> float:
    """1 - word error rate, not below 0: insertions, deletions and substitutions over the words of the truth."""
    left, right = _words(truth), _words(heard)
    if not left:
        return 1.0 if not right else 0.0
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return max(0.0, 1.0 - row[-1] / len(left))


def share_right(found: Sequence[dict[str, str]], wanted: Sequence[dict[str, str]], attribute: str) -> float:
    """Share of items whose attribute is the wanted one."""
    hits = [
        one.get(attribute) == other[attribute] for one, other in zip(found, wanted, strict=True) if attribute in other
    ]
    return sum(hits) / len(hits) if hits else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def _thumbnail(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    side = picture.shape[0] // _STEP
    return picture.reshape(side, _STEP, side, _STEP, 3).mean(axis=(1, 3), dtype=np.float32).reshape(-1)


@functools.cache
def _picture_prototypes() -> npt.NDArray[np.float32]:
    """(720, pixels): rendered once, whoever judges."""
    rendered = (pictures.render_picture(one) for one in pictures.all_attributes())
    return np.stack([_thumbnail(np.asarray(picture)) for picture in rendered])


@functools.lru_cache(maxsize=2)
def _music_prototypes(num_samples: int) -> npt.NDArray[np.float32]:
    """(288, features) of pieces so long."""
    duration_s = num_samples / music.SAMPLE_RATE_HZ
    rendered = (music.render_music(one, duration_s=duration_s) for one in music.all_attributes())
    return np.stack([_spectrum(clip, num_samples) for clip in rendered])


def _spectrum(clip: npt.NDArray[np.float32], num_samples: int) -> npt.NDArray[np.float32]:
    fitted = np.zeros(num_samples, np.float32)
    fitted[: len(clip)] = clip[:num_samples]
    # Loudness is no attribute.
    fitted /= max(float(np.abs(fitted).max()), 1e-6)
    mel = _mel()(torch.from_numpy(fitted))
    return torch.log(mel + _FLOOR).reshape(-1).numpy()


@functools.cache
def _mel() -> MelSpectrogram:
    return MelSpectrogram(music.SAMPLE_RATE_HZ, n_fft=2048, hop_length=1280, n_mels=_MELS, power=1.0)


@functools.cache
def _speech_mel() -> MelSpectrogram:
    return MelSpectrogram(speech.SAMPLE_RATE_HZ, n_fft=1024, hop_length=320, n_mels=_SPEECH_MELS, power=1.0)


def _speech_spectrum(sound: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(frames, mels), 20 ms a frame."""
    mel = _speech_mel()(torch.from_numpy(sound / max(float(np.abs(sound).max(initial=0.0)), 1e-6)))
    return torch.log(mel + _FLOOR).T.numpy()


def _warped_distances(
    left: npt.NDArray[np.float32], rights: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(sentences,) mean difference to each along the cheapest way through both, frame by frame.

    Args:
        left: (frames, mels).
        rights: (sentences, most frames, mels), padded at their ends, which no way through the frames before them meets.
        lengths: (sentences,) frames of each.
    """
    above = np.full((rights.shape[1] + 1, len(rights)), np.inf)
    above[0] = 0.0
    for frame in left:
        costs = np.abs(frame - rights).mean(axis=2).T
        here = np.full_like(above, np.inf)
        reached = np.minimum(above[:-1], above[1:])
        for nth, cost in enumerate(costs):
            here[nth + 1] = cost + np.minimum(here[nth], reached[nth])
        above = here
    return above[lengths, np.arange(len(rights))] / (len(left) + lengths)
