"""From the `data` section of a config to a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from bigr_jax.data.arrays import open_npz
from bigr_jax.data.captioned import open_captioned
from bigr_jax.data.codes import open_codes
from bigr_jax.data.division import divide, held_of
from bigr_jax.data.embedded import open_digits, open_fashion_mnist, open_mnist5k
from bigr_jax.data.folder import open_folder
from bigr_jax.data.interactions import open_interactions
from bigr_jax.data.label_noise import NoisyLabels, parse
from bigr_jax.data.matching import open_matching
from bigr_jax.data.phrases import open_phrases
from bigr_jax.data.records import open_arrayrecord
from bigr_jax.data.scenes import open_scenes
from bigr_jax.data.sentences import open_glue, open_packages
from bigr_jax.data.source import Request, Source
from bigr_jax.data.tfds_source import open_tfds
from bigr_jax.data.tokenizers import Tokenizer
from bigr_jax.data.tokens import open_recall, open_text, open_tokens, text_tokenizer
from bigr_jax.errors import UserError, one_of

RAM_LIMIT = 1 << 30

OPENERS: dict[str, Callable[[Request], Source]] = {
    "mnist5k": open_mnist5k,
    "digits": open_digits,
    "fashion_mnist": open_fashion_mnist,
    "folder:PATH": open_folder,
    "npz:PATH": open_npz,
    "arrayrecord:GLOB": open_arrayrecord,
    "tfds:NAME": open_tfds,
    "codes:FOLDER": open_codes,
    "captioned:NAME": open_captioned,
    "recall": open_recall,
    "text:PATH": open_text,
    "tokens:FOLDER": open_tokens,
    "scenes:NAME": open_scenes,
    "tiles:NAME": open_scenes,
    "matching": open_matching,
    "phrases": open_phrases,
    "interactions:NAME": open_interactions,
    "glue:FOLDER": open_glue,
    "packages": open_packages,
}


def open_source(section: Any, split: str) -> Source:
    """Returns the source that a config section names.

    section  a ConfigDict or mapping: `source` (a key of OPENERS, with what follows the colon filled
             in), `size` (side of the square images in pixels, or tokens of a sequence), `channels`
             (1, 3, or 0 for those of the data: 1 of sequences and where the whole set is known to
             be grey, else 3); optional:
             `data_dir` (where tensorflow-datasets lie; "" is the environment's TFDS_DATA_DIR),
             `noise` (of the labels of "train", see `label_noise.LEGAL`; "" for none) and
             `ram_limit` (bytes above which images, or codes of images, are not held in memory
             but read when asked for; 1 GiB), `tokenizer` (of texts: "bytes" or "bpe:SIZE", of
             sentences: "wordpiece:PATH"), `stride` (of logs: how far apart windows begin, as a
             share of their length), `held_out` (of "train", see `division.LEGAL`; "" for none),
             `held_every` (see `division.Held`) and `labels` (of sentences: how many classes are
             expected, 1 for scores; 0 takes what is there)
    split    "train", "test", or "held" where something is held out

    Raises UserError where a value is not legal, or the data or a package is missing.
    """
    if split == "held":
        held = held_of(open_source(section, "train"))
        if held is None:
            raise UserError("data.held_out is empty: there is no split 'held'")
        return held.source
    request = _request(section, split)
    for legal, opener in OPENERS.items():
        scheme, colon, placeholder = legal.partition(":")
        if colon and request.source in (scheme, scheme + colon):
            raise UserError(f"data.source={request.source!r} lacks its {placeholder}: {legal}")
        if request.source == scheme or (colon and request.source.startswith(scheme + colon)):
            found = opener(request)
            if split != "train":
                return found
            if request.noise:
                found = NoisyLabels(found, parse(request.noise))
            return divide(found, request.held_out, request.held_every)
    raise one_of("data.source", request.source, OPENERS)


def tokenizer_of(section: Any) -> Tokenizer:
    """Returns the tokenizer of a config section whose source is a text (`tokens.open_text`).

    Raises UserError where the text is missing, or there is no such tokenizer.
    """
    return text_tokenizer(_request(section, "train"))


def _request(section: Any, split: str) -> Request:
    if isinstance(section, Mapping) and not hasattr(section, "source"):
        section = SimpleNamespace(**section)
    for name in ("source", "size", "channels"):
        if not hasattr(section, name):
            raise UserError(f"data.{name} is missing from the config")
    source, size, channels = section.source, section.size, section.channels
    if split not in ("train", "test"):
        raise one_of("split", split, ("train", "test"))
    if channels not in (0, 1, 3):
        raise one_of("data.channels", channels, (0, 1, 3))
    if not isinstance(size, int) or size < 1:
        raise UserError(f"data.size={size!r} is not a side in pixels; legal: an integer from 1")
    return Request(
        source=source,
        argument=source.partition(":")[2],
        split=split,
        size=size,
        channels=channels,
        data_dir=getattr(section, "data_dir", None) or "",
        ram_limit=getattr(section, "ram_limit", RAM_LIMIT),
        tokenizer=getattr(section, "tokenizer", None) or "",
        noise=getattr(section, "noise", None) or "",
        stride=getattr(section, "stride", 1.0),
        held_out=getattr(section, "held_out", None) or "",
        held_every=getattr(section, "held_every", 1),
        labels=getattr(section, "labels", 0),
    )
