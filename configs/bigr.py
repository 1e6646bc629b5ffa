"""BiGR: class-conditional drawing from binary codes; smoke, small, and the four published sizes."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from bigr_jax.train.defaults import base, stage

VARIANTS = ("smoke", "small", "paper", "paper_xl", "paper_xxl", "paper_l512")

# depth, width, heads, head blocks, head width, image size, bits, batch, iterations, Gumbel
# temperature
PAPER = {
    "paper": (24, 1024, 16, 3, 1024, 256, 24, 1024, 20, 0.17),
    "paper_xl": (36, 1280, 20, 6, 1280, 256, 24, 512, 25, 0.25),
    "paper_xxl": (48, 1536, 24, 8, 1536, 256, 32, 512, 25, 0.30),
    "paper_l512": (24, 1024, 16, 6, 1280, 512, 32, 512, 20, 0.17),
}


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    config = base("bigr", variant)
    # num_classes, channels and examples are taken from the data where they are 0.
    config.data = ConfigDict(dict(
        source="mnist5k", size=32, channels=0, num_classes=0, examples=0, data_dir="", augment="",
    ))  # fmt: skip
    config.tokenizer = ConfigDict(dict(
        filters=8, multipliers=(1, 2, 4), blocks=1, attention_resolutions=(), embedding=32, bits=12,
        groups=4, gen_mul=1.0, norm_first=True, remat=False, dtype="float32",
    ))  # fmt: skip
    config.tokenizer_loss = ConfigDict(dict(
        perceptual="none", perceptual_weights="", perceptual_weight=1.0, adversarial=False,
        disc_filters=16, disc_layers=2, disc_weight=1.0, disc_start="50%",
    ))  # fmt: skip
    config.model = ConfigDict(dict(
        depth=4, width=128, heads=4, head_blocks=2, head_width=128, dropout=0.0, adaln=True,
        mixer="attention", remat="none", ffn_hidden=placeholder(int), dtype="float32",
    ))  # fmt: skip
    config.objective = ConfigDict(dict(
        target="flip", loss="weighted", gamma=0.0, alpha=placeholder(float), aux=0.0,
    ))  # fmt: skip
    config.diffusion = ConfigDict(dict(schedule="linear", steps=64))
    config.masking = ConfigDict(dict(label_drop=0.1, per_batch=False))
    config.sample = ConfigDict(dict(
        iterations=16, denoise_steps=16, temperature=1.0, cfg_scale=2.5, cfg_schedule="constant",
        gumbel_temperature=0.1, gumbel_schedule="down", order="entropy", remaining="cos",
        deterministic=False,
    ))  # fmt: skip
    config.referee = ConfigDict(dict(
        enabled=True, widths=(16, 32, 64), augment="shift:2,rotate:10", smoothing=0.1,
    ))  # fmt: skip
    config.report = ConfigDict(dict(per_class=20))
    config.study = ConfigDict(dict(seeds=3))
    config.train = ConfigDict(dict(
        tokenizer=stage(duration="1500 steps", batch_size=32, lr=3e-3, ema=0.99),
        referee=stage(duration="500 steps", lr=2e-3, weight_decay=1e-2),
        generator=stage(duration="3000 steps", lr=1e-3, ema=0.999, weight_decay=2e-2),
    ))  # fmt: skip
    if variant == "smoke":
        _smoke(config)
    elif variant in PAPER:
        _paper(config, *PAPER[variant])
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU: every part once, the discriminator too."""
    config.data.update(source="digits", size=8)
    config.tokenizer.update(filters=4, multipliers=(1, 2), embedding=8, bits=8, groups=2)
    config.tokenizer_loss.update(adversarial=True, disc_filters=4, disc_layers=1)
    config.model.update(depth=2, width=32, heads=2, head_blocks=1, head_width=32, dropout=0.1)
    config.diffusion.steps = 8
    config.sample.update(iterations=4, denoise_steps=4)
    config.report.per_class = 2
    config.referee.update(widths=(8, 8, 8), augment="")
    for name in ("tokenizer", "referee", "generator"):
        config.train[name].update(duration="20 steps", batch_size=16, save="5 steps", log="5 steps")


def _paper(
    config: ConfigDict, depth: int, width: int, heads: int, head_blocks: int, head_width: int,
    size: int, bits: int, batch: int, iterations: int, gumbel: float,
) -> None:  # fmt: skip
    """The published hyper-parameters on ImageNet; LPIPS weights are the user's to bring."""
    config.data.update(source="tfds:imagenet2012", size=size, channels=3, augment="flip")
    config.tokenizer.update(
        filters=128, multipliers=(1, 1, 2, 2, 4), blocks=2, attention_resolutions=(16,),
        embedding=256, bits=bits, groups=32, remat=True, dtype="bfloat16",
    )  # fmt: skip
    config.tokenizer_loss.update(
        perceptual="lpips", adversarial=True, disc_filters=64, disc_layers=3,
        disc_start="400001 steps",
    )  # fmt: skip
    config.model.update(
        depth=depth, width=width, heads=heads, head_blocks=head_blocks, head_width=head_width,
        dropout=0.1, remat="dots", dtype="bfloat16",
    )  # fmt: skip
    config.diffusion.steps = 256
    config.sample.update(iterations=iterations, denoise_steps=100, gumbel_temperature=gumbel)
    config.referee.enabled = False
    config.masking.per_batch = True
    every = {"log": "100 steps", "evaluate": "10 epochs", "save": "5000 steps", "warmup": "0%"}
    config.train.tokenizer = stage(
        duration="1_000_000 steps", batch_size=32, lr=1.8e-5, schedule="constant", b1=0.9, b2=0.999,
        ema=0.9995, clip=0.0, **every,
    )  # fmt: skip
    config.train.generator = stage(
        duration="400 epochs", batch_size=batch, lr=1e-4, schedule="constant", weight_decay=2e-2,
        decay_skip=("denoiser/",), ema=0.9999, **every,
    )  # fmt: skip
