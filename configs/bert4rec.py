"""BERT4Rec on MovieLens-100K and on made sequences, for a CPU; the published settings of larger
logs.
"""

from ml_collections import ConfigDict

from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "paper", "paper_ml20m", "paper_beauty", "paper_steam")


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("bert4rec", variant)
    # channels, num_classes (items, padding and mask) and examples are taken from the data at 0.
    config.data = section(source="interactions:ml-100k", size=50, stride=0.5, channels=0,
                          num_classes=0, examples=0, data_dir="")
    # kind: cloze, or of one direction, with the mixer causal_attention, softmax or bce.
    config.objective = section(kind="cloze", rate=0.2, last=1 / 11, most=0)
    config.model = section(width=64, dropout=0.2, epsilon=1e-12, spread=0.02)
    config.encoder = section(depth=2, mixer="attention", heads=2, hidden=256, norm_first=False,
                             dropout=0.2, drop_path=0.0, remat="none", unroll=2, dtype="float32")
    config.ranking = section(ks=(1, 5, 10, 20, 50), drawn=100)
    # () compares all arms.
    config.study = section(seeds=3, tasks=("ml-100k", "made"), made_duration="1000 steps",
                           made_lr=3e-3, arms=(
        "BERT4Rec", "SASRec, BCE", "SASRec, softmax", "BERT4Rec, never the last alone"))
    config.train = section(
        model=stage("1200 steps", 64, lr=1e-3, b2=0.999, warmup="100 steps", schedule="linear",
                    clip=5.0, evaluate="100%", save="100%"))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant.startswith("paper"):
        _paper(config, variant)
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU."""
    config.data.update(source="interactions:made", size=20)
    config.model.update(width=16, dropout=0.0)
    config.encoder.update(depth=1, hidden=16, dropout=0.0, unroll=1)
    config.study.update(
        seeds=1,
        tasks=("made",),
        arms=("BERT4Rec", "SASRec, softmax"),
        made_duration="20 steps",
        made_lr=1e-2,
    )
    config.train.model.update(duration="20 steps", batch_size=16, log="5 steps")
    config.train.model.optimizer.update(lr=1e-2, warmup="2 steps")


def _paper(config: ConfigDict, variant: str) -> None:
    """The published settings, each on a log of one's own: lines of user, item and time."""
    # fmt: off
    source, size, rate, most, stride, dropout, steps = {
        "paper": ("ml-1m.tsv", 200, 0.2, 40, 0.5, 0.2, 400_000),
        "paper_ml20m": ("ml-20m.tsv", 200, 0.2, 20, 0.5, 0.1, 400_000),
        "paper_beauty": ("beauty.tsv", 50, 0.6, 30, 0.1, 0.5, 400_000),
        "paper_steam": ("steam.tsv", 50, 0.4, 20, 0.5, 0.1, 800_000),
    }[variant]
    config.data.update(source=f"interactions:{source}", size=size, stride=stride)
    config.objective.update(rate=rate, most=most)
    config.model.dropout = config.encoder.dropout = dropout
    config.ranking.ks = (1, 5, 10)
    config.train.model = stage(f"{steps} steps", 256, lr=1e-4, b2=0.999, eps=1e-6,
                               schedule="linear", warmup="100 steps", clip=5.0, weight_decay=0.01,
                               decay_skip=("norm", "bias"), save="2%", evaluate="2%",
                               best="valid_ndcg@10")
    # fmt: on
