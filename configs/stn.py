"""Self-tuning networks: digits with a held-out part for a CPU, and CIFAR-10 as published."""

from ml_collections import ConfigDict

from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "paper")

DROPOUT = 0.9


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("stn", variant)
    # channels, num_classes and examples are taken from the data where they are 0. Of the training
    # split 500 examples are held out and 200 trained on; a batch has a row of those for every two.
    config.data = section(source="digits", size=8, channels=0, num_classes=0, examples=0,
                          data_dir="", augment="", held_out="500:200", held_every=2)
    # kind "mlp" or "alexnet", of which `channels` and `hidden` are.
    config.model = section(kind="mlp", widths=(256, 256), channels=(64, 192, 384, 256, 256),
                           hidden=4096, dtype="float32")
    # hypers: (name, low, high, start[, discrete]); see tasks/self_tuning.py for the rest.
    config.method = section(hypers=(("input", 0.0, DROPOUT, 0.05, False),
                                    ("hidden", 0.0, DROPOUT, 0.05, False)),
                            tune=True, train_steps=2, valid_steps=1, warmup="100 steps", lr=3e-3,
                            spread=0.5, entropy=1e-3, schedule=())
    # () compares all arms.
    config.study = section(seeds=3, arms=())
    config.train = section(
        model=stage("4000 steps", 200, optimizer="sgd", lr=0.01, b1=0.9, schedule="constant",
                    warmup="0%", clip=0.0, eval_batch_size=512, log="40 steps", evaluate="25%",
                    save="100%"))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant == "paper":
        _paper(config)
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU."""
    config.model.widths = (32,)
    config.method.update(warmup="2 steps")
    config.study.update(seeds=1, arms=("fixed .05", "STN from .05", "schedule of STN"))
    config.train.model.update(duration="16 steps", batch_size=32, log="4 steps",
                              evaluate="8 steps")  # fmt: skip
    config.train.model.optimizer.lr = 0.1


def _paper(config: ConfigDict) -> None:
    """The published setting of CIFAR-10: fifteen hyper-parameters of an AlexNet."""
    # fmt: off
    config.data.update(source="tfds:cifar10", size=32, channels=3, augment="shift:4,flip",
                       held_out="20%")
    config.model.update(kind="alexnet", dtype="bfloat16")
    rates = ("input", "conv0", "conv1", "conv2", "conv3", "conv4", "fc0", "fc1")
    jitters = (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5),
               ("scale", 0.3))
    config.method.update(hypers=(
        *((name, 0.0, DROPOUT, 0.05, False) for name in rates),
        *((name, 0.0, most, 0.05, False) for name, most in jitters),
        ("length", 0.0, 24.0, 4.0, True), ("holes", 0.0, 4.0, 1.0, True)), warmup="5 epochs")
    train = config.train.model
    train.update(duration="200 epochs", batch_size=256, save="1 epochs", evaluate="1 epochs",
                 best="-loss")
    train.optimizer.schedule = "steps:0.1:60 epochs,120 epochs,160 epochs"
    # fmt: on
