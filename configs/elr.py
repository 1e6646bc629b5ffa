"""Early-learning regularization: images whose labels are partly wrong; for a CPU, and the published
settings of CIFAR-10 and CIFAR-100.
"""

from ml_collections import ConfigDict

from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "paper", "paper_asym", "paper_cifar100", "paper_plus")

# Of the pixels of CIFAR-10 and CIFAR-100.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
MEAN_100, STD_100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("elr", variant)
    # channels, num_classes and examples are taken from the data where they are 0.
    config.data = section(source="digits", size=8, channels=0, num_classes=0, examples=0,
                          data_dir="", augment="", noise="symmetric:0.4")
    # kind "mlp" (has no depths, mean and std), "resnet" or "preact_resnet".
    config.model = section(kind="mlp", widths=(512, 512), depths=(), mean=(0.5,), std=(0.5,),
                           dtype="float32")
    # strength 0: cross-entropy alone.
    config.method = section(strength=3.0, momentum=0.7, networks=1, mixup=0.0, average=0.0, ramp=0)
    # () compares all arms.
    config.study = section(seeds=3, tasks=("0 %", "40 %", "60 %", "80 %", "MNIST, 60 %"), arms=())
    config.train = section(
        model=stage("150 epochs", 64, optimizer="sgd_l2", lr=0.02, b1=0.9, weight_decay=1e-3,
                    schedule="constant", warmup="0%", clip=0.0, evaluate="1 epochs", save="100%"))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant.startswith("paper"):
        _paper(config, variant)
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU."""
    config.model.widths = (32,)
    config.study.update(seeds=1, tasks=("40 %",))
    config.train.model.update(duration="20 steps", batch_size=32, log="5 steps",
                              evaluate="10 steps")  # fmt: skip
    config.train.model.optimizer.lr = 0.1


def _paper(config: ConfigDict, variant: str) -> None:
    """The published settings: CIFAR with 40 % of symmetric or asymmetric noise."""
    # fmt: off
    config.data.update(source="tfds:cifar10", size=32, channels=3, augment="shift:4,flip")
    config.model.update(kind="resnet", depths=(3, 4, 6, 3), widths=(64, 128, 256, 512), mean=MEAN,
                        std=STD, dtype="bfloat16")
    train = config.train.model
    train.update(batch_size=128, save="1 epochs")
    train.optimizer.update(schedule="restarts:10 epochs", end_lr=0.05)
    if variant == "paper_asym":
        config.data.noise = "asymmetric:0.4"
        config.method.update(strength=1.0, momentum=0.9)
        train.duration = "120 epochs"
        train.optimizer.update(schedule="steps:0.01:40 epochs,80 epochs", end_lr=0.0)
    elif variant == "paper_cifar100":
        config.data.source = "tfds:cifar100"
        config.model.update(mean=MEAN_100, std=STD_100)
        config.method.update(strength=7.0, momentum=0.9)
        train.optimizer.update(schedule="steps:0.01:80 epochs,120 epochs", end_lr=0.0)
    elif variant == "paper_plus":
        config.model.update(kind="preact_resnet", depths=(2, 2, 2, 2))
        config.method.update(networks=2, mixup=1.0, average=0.997, ramp=40_000)
        train.duration = "200 epochs"
        train.optimizer.update(weight_decay=5e-4, schedule="steps:0.1:150 epochs", end_lr=0.0)
    # fmt: on
