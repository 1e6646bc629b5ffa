"""Captions of made scenes: three things to say, and many ways to say them, all of them known.

What is to be said are a subject, what it does and where; it is said by one of eight patterns, and
each of the three by one of four words, some of them much likelier than others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigr_jax.data.source import Info, Request
from bigr_jax.data.tokens import TokenSource
from bigr_jax.errors import UserError

PATTERNS = (
    "a SUBJECT ACTION PLACE",
    "there is a SUBJECT ACTION PLACE",
    "PLACE a SUBJECT is ACTION",
    "the SUBJECT ACTION PLACE is alone",
    "somebody sees one SUBJECT ACTION PLACE today",
    "ACTION PLACE is what this SUBJECT likes",
    "look at that SUBJECT , it is ACTION PLACE",
    "in this picture some SUBJECT keeps ACTION PLACE",
)
PATTERN_WEIGHTS = (0.34, 0.2, 0.14, 0.11, 0.08, 0.06, 0.04, 0.03)
WORD_WEIGHTS = (0.5, 0.25, 0.15, 0.1)
SUBJECTS = (
    "dog puppy hound terrier", "cat kitten tabby feline", "man fellow guy gentleman",
    "woman lady girl mother", "bird sparrow finch songbird", "horse pony mare stallion",
    "child kid toddler boy", "farmer peasant grower rancher", "sailor seaman mariner captain",
    "teacher tutor professor lecturer",
)  # fmt: skip
ACTIONS = (
    "running racing sprinting dashing", "sleeping dozing resting napping",
    "eating feeding dining snacking", "waiting standing lingering pausing",
    "playing frolicking romping gaming", "singing humming chanting whistling",
    "working labouring toiling busy", "reading studying browsing learning",
)  # fmt: skip
PLACES = (
    "outdoors outside afield abroad", "indoors inside within upstairs",
    "ashore seaside beachside coastwise", "downtown uptown midtown citywide",
    "underground below beneath downstairs", "uphill hillside aloft skyward",
)  # fmt: skip
SLOTS = {"SUBJECT": SUBJECTS, "ACTION": ACTIONS, "PLACE": PLACES}
END, PADDING = "<end>", "<pad>"
# Of every third thing to say, so many captions.
_COPIES, _TEST_EVERY = {"train": 40, "test": 5}, 8


def vocabulary() -> tuple[str, ...]:
    """Returns the words by their tokens: first the things to say, <SUBJECT:0> and so on."""
    things = [f"<{slot}:{i}>" for slot, words in SLOTS.items() for i in range(len(words))]
    words = {word for lists in SLOTS.values() for line in lists for word in line.split()}
    words |= {word for pattern in PATTERNS for word in pattern.split() if word not in SLOTS}
    return (PADDING, END, *things, *sorted(words))


def said(tokens: Sequence[int] | np.ndarray) -> str:
    """Returns the words of a caption, up to its end."""
    words = vocabulary()
    text = [words[int(token)] for token in tokens]
    return " ".join(text[: text.index(END)] if END in text else text)


def open_phrases(request: Request) -> TokenSource:
    """Returns captions, each after the three tokens that tell what is to be said and before an end,
    filled up to `size` tokens; the captions of one scene stand next to one another.

    Every eighth scene is of the test part and never of the other. Raises UserError where `size` is
    shorter than a caption may be.
    """
    longest = max(len(pattern.split()) for pattern in PATTERNS) + len(SLOTS) + 1
    if request.size < longest:
        raise UserError(f"data.size={request.size} does not hold a caption; legal: from {longest}")
    number = {word: token for token, word in enumerate(vocabulary())}
    scenes = np.stack(np.meshgrid(*(range(len(w)) for w in SLOTS.values()), indexing="ij"), -1)
    scenes = scenes.reshape(-1, len(SLOTS))
    # Of NumPy's generators, the one whose numbers are promised to stay the same.
    kept = np.random.RandomState(0).permutation(len(scenes)) % _TEST_EVERY == 0
    scenes = scenes[kept if request.split == "test" else ~kept]
    random = np.random.RandomState(1 + (request.split == "test"))
    rows = np.full((len(scenes) * _COPIES[request.split], request.size), number[PADDING])
    for row, scene in zip(rows, np.repeat(scenes, _COPIES[request.split], axis=0), strict=True):
        things = [f"<{slot}:{i}>" for slot, i in zip(SLOTS, scene, strict=True)]
        words = [*things, *_caption(scene.tolist(), random), END]
        row[: len(words)] = [number[word] for word in words]
    info = Info("phrases", len(number), vocabulary(), (request.size,), "made here", "from a seed")
    return TokenSource({"tokens": rows.astype(np.uint8)}, info)


def _caption(scene: list[int], random: np.random.RandomState) -> list[str]:
    pattern = PATTERNS[random.choice(len(PATTERNS), p=PATTERN_WEIGHTS)]
    chosen = {
        slot: words[i].split()[random.choice(len(WORD_WEIGHTS), p=WORD_WEIGHTS)]
        for (slot, words), i in zip(SLOTS.items(), scene, strict=True)
    }
    return [chosen.get(word, word) for word in pattern.split()]
