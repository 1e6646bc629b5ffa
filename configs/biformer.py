"""BiFormer and other kinds of attention on maps: classification and segmentation; for a CPU, and
the published sizes.
"""

from ml_collections import ConfigDict

from bigr_jax.models.biformer import MEAN, SIZES, STD
from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "paper", "paper_s", "paper_b", "paper_stl")


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("biformer", variant)
    # channels, num_classes and examples are taken from the data where they are 0.
    config.data = section(source="mnist5k", size=32, channels=0, num_classes=0, examples=0,
                          data_dir="", augment="")
    # topk 0: a stage with dense attention.
    config.model = section(depths=(2, 1), widths=(32, 64), heads=(2, 2), topk=(4, 0), regions=4,
                           ratio=3, drop_path=0.0, attention="routed", pooling=2, form="auto",
                           patches=False, stem=2, remat="none", mean=MEAN, std=STD,
                           dtype="float32")
    # What stands behind: "classes" of images, "segments" of images, "tags" of features.
    config.head = section(kind="classes", smoothing=0.0, mixup=0.0, cutmix=0.0, width=32,
                          head_width=32, dropout=0.0)
    # () compares all arms.
    config.study = section(seeds=3, tasks=("digits", "scenes", "matching"), arms=())
    config.train = section(model=stage("600 steps", 16, lr=4e-3, weight_decay=0.05,
                                       decay_skip=SKIPPED, evaluate="100%", save="100%"))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant.startswith("paper"):
        _paper(config, variant)
    return config


# Biases and the scales of norms.
SKIPPED = (r".*/(bias|scale)$",)


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU."""
    config.data.size = 16
    config.model.update(depths=(1, 1), widths=(8, 16))
    config.study.update(seeds=1, arms=("routed", "windows"), tasks=("digits",))
    config.train.model.update(duration="20 steps", batch_size=16, log="5 steps")
    # Half of that of `small`: the first steps of Adam enlarge the rounding of gradients near zero.
    config.train.model.optimizer.lr = 2e-3


def _paper(config: ConfigDict, variant: str) -> None:
    """The published sizes and their recipe on ImageNet, at 224 pixels."""
    # fmt: off
    _, _, name = variant.partition("_")
    sizes = dict(SIZES[name.upper() or "T"])
    config.model.update(regions=7, topk=(1, 4, 16, 0), stem=4, dtype="bfloat16", **sizes)
    config.data.update(source="tfds:imagenet2012", size=224, channels=3,
                       augment="resized_crop:0.08,flip,randaugment:2:9,erase:0.25")
    config.head.update(smoothing=0.1, mixup=0.8, cutmix=1.0)
    config.train.model = stage("310 epochs", 1024, repeat=3, lr=1e-3, b2=0.999, weight_decay=0.05,
                               decay_skip=SKIPPED, clip=0.0, warmup="5 epochs", end_lr=0.01,
                               cooldown="10 epochs", ema=0.99996, save="1 epochs",
                               evaluate="1 epochs")
    # fmt: on
