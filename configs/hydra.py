"""Hydra and the other mixers: recall of pairs, hidden bytes of text, sentences, images; for a CPU,
and the published sizes.
"""

from ml_collections import ConfigDict

from bigr_jax.train.defaults import base, section, stage

# fmt: off
# Of the published fine-tuning: classes (1: a score), examples, batch, learning rate, epochs, and
# the decay of a step at the peak.
GLUE = {"mnli": (3, 392_702, 48, 1e-4, 2, 5e-6), "qnli": (2, 104_743, 16, 5e-5, 7, 1e-6),
        "qqp": (2, 363_846, 16, 5e-5, 3, 3e-6), "rte": (2, 2_490, 16, 1e-5, 3, 1e-6),
        "sst2": (2, 67_349, 16, 5e-5, 2, 3e-6), "mrpc": (2, 3_668, 32, 8e-5, 10, 8e-6),
        "cola": (2, 8_551, 32, 1e-4, 10, 5e-6), "stsb": (1, 5_749, 32, 3e-5, 10, 3e-6)}
VARIANTS = ("smoke", "small", "tune", "paper", "paper_bert", "paper_vit", "glue_mnli", "glue_qnli",
            "glue_qqp", "glue_rte", "glue_sst2", "glue_mrpc", "glue_cola", "glue_stsb")
# fmt: on


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("hydra", variant)
    # channels, num_classes (of tokens: the vocabulary) and examples are taken from the data at 0.
    # labels: the classes of sentences; 1: a score, 0: no sentences are classified.
    config.data = section(source="recall", size=32, channels=0, num_classes=0, examples=0,
                          data_dir="", augment="", labels=0)
    # rate 0: the data say which tokens are asked for.
    config.masking = section(rate=0.0, tested=0.15, token=-1, padding=-1)
    # patch 0: the data are tokens, else images in patches of so many pixels.
    config.model = section(patch=0, width=64, types=0, positions=0, dropout=0.0, spread=0.125,
                           epsilon=1e-5, smoothing=0.0, mixup=0.0, cutmix=0.0)
    config.encoder = section(depth=2, mixer="hydra", heads=4, hidden=0, norm_first=True,
                             dropout=0.0, drop_path=0.0, remat="none", unroll=2,
                             dtype="float32")
    # before: (stage, classes) of other classifiers, which stand between this one and the encoder.
    config.finetune = section(stage="classifier", before=(), pool="first", dropout=0.1,
                              pretrained=True)
    # Those that a mixer has no use for it does not see.
    config.mixer = section(head_dim=16, state=16, groups=1, expand=2, conv=7, qk_dim=16, length=32)
    # () compares all mixers.
    config.study = section(seeds=3, tasks=("recall", "text", "digits"), arms=())
    config.train = section(
        encoder=stage("1500 steps", 32, lr=3e-3, weight_decay=1e-2, evaluate="100%",
                      save="100%"))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant == "tune":
        _tune(config)
    elif variant != "small":
        _paper(config, variant)
    if variant.startswith("glue"):
        _glue(config, variant.removeprefix("glue_"))
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU."""
    config.data.size = config.mixer.length = 16
    config.model.width, config.mixer.head_dim = 16, 8
    config.encoder.update(heads=2, unroll=1)
    config.study.update(seeds=1, arms=("hydra", "causal"), tasks=("recall",))
    config.train.encoder.update(duration="20 steps", batch_size=16, log="5 steps")


def _tune(config: ConfigDict) -> None:
    """Hidden bytes of Python's sources, then the package that a piece of them is of."""
    config.data.source, config.data.size, config.mixer.length = "packages", 64, 64
    config.masking.rate, config.train.encoder.duration = 0.15, "1000 steps"
    config.data.labels, config.finetune.pool = 8, "mean"
    config.train.classifier = stage("500 steps", 32, lr=1e-3, weight_decay=1e-2, evaluate="100%")


def _glue(config: ConfigDict, task: str) -> None:
    """A task of GLUE, which lies in a folder of this name, on what `hydra:paper` has learned, and
    of the small ones on what MNLI's stage then has.
    """
    # fmt: off
    config.data.update(source=f"glue:{task}", size=256, tokenizer="wordpiece:vocab.txt",
                       labels=GLUE[task][0], examples=GLUE[task][1])
    config.finetune.update(stage=task, before=(("mnli", 3),) * (task in ("rte", "mrpc", "stsb")))
    for name in (*dict(config.finetune.before), task):
        batch, lr, epochs, decay = GLUE[name][2:]
        how = {"b2": 0.98, "eps": 1e-6, "schedule": "linear", "warmup": "6%"}
        config.train[name] = stage(f"{epochs} epochs", batch, lr=lr, weight_decay=decay / lr, **how)
    # fmt: on


def _paper(config: ConfigDict, variant: str) -> None:
    """The published sizes and recipes: hidden tokens of C4, for Hydra and BERT, and ImageNet."""
    # fmt: off
    config.mixer.update(head_dim=64, state=64)
    config.model.update(width=768, types=2, dropout=0.1, spread=0.02, epsilon=1e-12)
    config.encoder.update(depth=23, norm_first=False, heads=12, dtype="bfloat16", remat="dots",
                          unroll=1)
    if variant == "paper_vit":
        config.data.update(source="tfds:imagenet2012", size=224, channels=3,
                           augment="resized_crop:0.08,flip,randaugment:2:9,erase:0.25")
        config.model.update(patch=16, types=0, dropout=0.0, smoothing=0.1, mixup=0.8, cutmix=1.0)
        config.encoder.update(depth=24, norm_first=True, drop_path=0.5)
        config.mixer.length = 196
        config.train.encoder = stage("300 epochs", 1024, repeat=3, lr=1e-3, b2=0.999,
                                     weight_decay=0.05, warmup="10 epochs", ema=0.9999,
                                     save="1 epochs", evaluate="1 epochs")
        return
    # Sequences of bert-base-uncased, whose [MASK] is 103 and [PAD] 0.
    config.data.update(source="tokens:c4", size=128, num_classes=30522, examples=364_868_892)
    config.masking.update(rate=0.3, tested=0.15, token=103, padding=0)
    config.mixer.length = 128
    if variant == "paper_bert":
        config.model.positions = 512
        config.encoder.update(mixer="attention", depth=12, hidden=3072, dropout=0.1)
    # Decoupled decay of 1e-5 a step at the peak, in units of the learning rate.
    config.train.encoder = stage("70000 steps", 4096, lr=8e-4, b1=0.9, b2=0.98, eps=1e-6,
                                 schedule="linear", warmup="6%", end_lr=0.02, clip=1.0,
                                 weight_decay=0.0125, save="1000 steps", evaluate="2000 steps")
    # fmt: on
