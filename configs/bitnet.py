"""BitNet b1.58 Reloaded: ternary weights in small networks, for a CPU, and a decoder of the paper's
largest width.
"""

from ml_collections import ConfigDict

from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "paper")


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("bitnet", variant)
    # channels, num_classes (of tokens: the vocabulary) and examples are taken from the data at 0.
    config.data = section(source="digits", size=8, channels=0, num_classes=0, examples=0,
                          data_dir="", augment="")
    # family mlp, vit, resnet or lm. expand: features of feed-forward layers for each of the width;
    # patch: side of a ViT's patches in pixels; depth of a ResNet: blocks of each of three stages.
    config.model = section(family="mlp", width=64, depth=2, heads=4, expand=3.0, patch=2,
                           tied=True, dropout=0.0, smoothing=0.0, remat="none", unroll=2,
                           dtype="float32")
    # weights plain, fp (norms, no rounding), mean, median or max; keep: pattern in the paths of
    # layers that stay as they are, "": none; strength of the rounding, 0 to 1.
    config.ternary = section(weights="median", keep="", bits=8, strength=1.0)
    # () compares all kinds of weights.
    config.study = section(seeds=3, tasks=("digits", "text", "vit"), arms=(),
                           widths=(16, 32, 64, 128))
    config.train = section(
        net=stage("500 steps", 64, lr=3e-3, b2=0.999, weight_decay=1e-2, evaluate="100%",
                  save="100%"))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant == "paper":
        _paper(config)
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU."""
    config.model.width = 16
    config.study.update(seeds=1, arms=("fp", "median"), tasks=("digits",), widths=(16,))
    config.train.net.update(duration="20 steps", batch_size=32, log="5 steps")


def _paper(config: ConfigDict) -> None:
    """A decoder as wide as the paper's largest, 256 channels; the rest is ours."""
    # fmt: off
    config.data.update(source="tokens:corpus", size=1024, num_classes=32000, examples=1_000_000)
    config.model.update(family="lm", width=256, depth=12, heads=8, expand=3.5, tied=False,
                        remat="dots", unroll=1, dtype="bfloat16")
    config.train.net = stage("20000 steps", 256, lr=1e-3, b1=0.9, b2=0.95, weight_decay=0.1,
                             warmup="2%", end_lr=0.1, save="1000 steps", evaluate="1000 steps")
    # fmt: on
