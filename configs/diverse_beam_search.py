"""Diverse beam search over a small language model of captions or of text, and over a large one."""

from ml_collections import ConfigDict

from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "paper")


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("diverse_beam_search", variant)
    # channels, num_classes (of tokens: the vocabulary) and examples are taken from the data at 0.
    config.data = section(source="phrases", size=16, channels=0, num_classes=0, examples=0,
                          data_dir="", tokenizer="")
    config.model = section(width=64, depth=2, heads=4, hidden=128, tied=True, dropout=0.0,
                           remat="none", unroll=2, dtype="float32")
    # end -1: the data say; prefix 0: a line is continued, else so many tokens at the start.
    config.text = section(prefix=3, end=-1, padding=-1)
    config.sample = section(kind="beam", length=14, beams=8, groups=4, diversity=0.5,
                            likeness="hamming", temperature=1.0, top_k=0, top_p=1.0, texts=60)
    config.study = section(seeds=3, tasks=("phrases", "text"), arms=())
    config.train = section(
        model=stage("1500 steps", 64, lr=3e-3, weight_decay=1e-2, evaluate="100%", save="100%"))
    # fmt: on
    if variant == "smoke":
        config.model.update(width=16, depth=1, heads=2, hidden=16, unroll=1)
        config.sample.texts = 4
        config.study.update(seeds=1, tasks=("phrases",), arms=("diverse", "beam"))
        config.train.model.update(duration="20 steps", batch_size=16, log="5 steps")
    elif variant == "paper":
        _paper(config)
    return config


def _paper(config: ConfigDict) -> None:
    """Ten beams in five groups, over a model of one's own sequences of tokens."""
    # fmt: off
    config.data.update(source="tokens:captions", size=128, num_classes=32000, examples=1_000_000)
    config.model.update(width=768, depth=12, heads=12, hidden=2048, dropout=0.1, remat="dots",
                        unroll=1, dtype="bfloat16")
    config.text.update(prefix=32, end=2, padding=0)
    config.sample.update(length=96, beams=10, groups=5, texts=1000)
    config.train.model = stage("20 epochs", 256, lr=3e-4, b2=0.95, weight_decay=0.1, warmup="2%",
                               save="1 epochs", evaluate="1 epochs")
    # fmt: on
