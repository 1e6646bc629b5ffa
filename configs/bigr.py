"""BiGR: drawing from binary codes, as classes or texts ask; for a CPU, and the published sizes."""

from ml_collections.config_dict import ConfigDict, placeholder

from bigr_jax.train.defaults import base, section, stage

VARIANTS = ("smoke", "small", "text", "paper", "paper_xl", "paper_xxl", "paper_l512", "paper_t2i")


def get_config(variant: str = "small") -> ConfigDict:
    """Returns the settings of one variant, every default written out."""
    # fmt: off
    config = base("bigr", variant)
    # channels, num_classes and examples are taken from the data where they are 0; each step is at
    # one of the sizes, if there are any.
    config.data = section(source="mnist5k", size=32, channels=0, num_classes=0, examples=0,
                          data_dir="", augment="", sizes=())
    config.tokenizer = section(filters=8, multipliers=(1, 2, 4, 8), blocks=1, embedding=64, bits=32,
                               attention_resolutions=(), groups=4, gen_mul=1.0, norm_first=True,
                               remat=False, dtype="float32")
    config.tokenizer_loss = section(perceptual="none", perceptual_weights="", perceptual_weight=1.0,
                                    adversarial=False, disc_filters=16, disc_layers=2,
                                    disc_weight=1.0, disc_start="50%")
    config.model = section(depth=3, width=128, heads=4, head_blocks=2, head_width=128, dropout=0.0,
                           adaln=True, mixer="attention", remat="none", ffn_hidden=256,
                           dtype="float32", target="flip", text=())
    config.objective = section(loss="weighted", gamma=0.0, aux=0.0, alpha=placeholder(float))
    config.diffusion = section(schedule="linear", steps=64)
    config.masking = section(label_drop=0.1, per_batch=False)
    config.sample = section(iterations=16, denoise_steps=16, temperature=1.0, cfg_scale=1.5,
                            cfg_schedule="constant", gumbel_temperature=0.5, order="entropy",
                            gumbel_schedule="down", remaining="cos", deterministic=False)
    config.referee = section(enabled=True, widths=(16, 32, 64), augment="shift:2,rotate:10",
                             smoothing=0.1)
    config.report = section(per_class=50, probe=True)
    config.study = section(seeds=3, duration="800 steps", arms=())
    config.train = section(
        tokenizer=stage("900 steps", 32, optimizer="muon", lr=5e-3, ema=0.99),
        referee=stage("400 steps", 64, lr=2e-3, weight_decay=1e-2),
        generator=stage("1400 steps", 64, optimizer="muon", lr=1.2e-2, ema=0.99, weight_decay=2e-2))
    # fmt: on
    if variant == "smoke":
        _smoke(config)
    elif variant == "text":
        _text(config)
    elif variant.startswith("paper"):
        _paper(config, variant)
    return config


def _smoke(config: ConfigDict) -> None:
    """Seconds on a CPU: every part once, the discriminator too."""
    config.data.update(source="digits", size=8)
    config.tokenizer.update(filters=4, multipliers=(1, 2), embedding=8, bits=8, groups=2)
    config.tokenizer_loss.update(adversarial=True, disc_filters=4, disc_layers=1)
    config.model.update(depth=2, width=32, heads=2, ffn_hidden=64, head_blocks=1, head_width=32)
    config.model.dropout, config.diffusion.steps, config.report.per_class = 0.1, 8, 2
    config.sample.iterations = config.sample.denoise_steps = 4
    # Half the time to compile; the generator shows that muon works.
    config.train.tokenizer.optimizer.update(name="adamw", lr=2e-3)
    config.referee.update(widths=(8, 8, 8), augment="")
    config.study.update(seeds=1, duration="20 steps", arms=("BiGR",))
    for it in config.train.values():
        it.update(duration="20 steps", batch_size=16, save="5 steps", log="5 steps", evaluate="50%")


def _text(config: ConfigDict) -> None:
    """Two digits side by side, as a caption asks; pairs of words that training never showed."""
    config.data.source, config.data.size, config.referee.augment = "captioned:digits", 16, "shift:1"
    config.tokenizer.multipliers, config.model.text, config.report.probe = (1, 2, 4), (8, 64), False


def _paper(config: ConfigDict, variant: str) -> None:
    """The published hyper-parameters on ImageNet; LPIPS weights are the user's to bring."""
    # fmt: off
    depth, width, heads, head_blocks, head_width, size, bits, batch, iterations, gumbel = {
        "paper": (24, 1024, 16, 3, 1024, 256, 24, 1024, 20, 0.17),
        "paper_xl": (36, 1280, 20, 6, 1280, 256, 24, 512, 25, 0.25),
        "paper_xxl": (48, 1536, 24, 8, 1536, 256, 32, 512, 25, 0.30),
        "paper_l512": (24, 1024, 16, 6, 1280, 512, 32, 512, 20, 0.17),
    }[variant.removesuffix("_t2i")]
    config.data.update(source="tfds:imagenet2012", size=size, channels=3, augment="flip")
    config.tokenizer.update(filters=128, multipliers=(1, 1, 2, 2, 4), blocks=2, embedding=256,
                            attention_resolutions=(16,), bits=bits, groups=32, remat=True,
                            dtype="bfloat16")
    config.tokenizer_loss.update(perceptual="lpips", adversarial=True, disc_filters=64,
                                 disc_layers=3, disc_start="400001 steps")
    config.model.update(depth=depth, width=width, heads=heads, head_blocks=head_blocks,
                        head_width=head_width, dropout=0.1, remat="dots", dtype="bfloat16")
    if variant == "paper_t2i":
        # Features of FLAN-T5-XL, as LlamaGen's; the captions are the user's to bring.
        config.data.source, config.model.text = "captioned:captions.npz", (120, 2048)
    # None: the published rule, 8/3 of the width rounded up to 256.
    config.model.ffn_hidden = placeholder(int)
    config.diffusion.steps, config.masking.per_batch, config.referee.enabled = 256, True, False
    config.report.probe = False
    config.sample.update(iterations=iterations, denoise_steps=100, cfg_scale=2.5,
                         gumbel_temperature=gumbel)
    every = dict(schedule="constant", warmup="0%", log="100 steps", save="5000 steps")
    # The published average has decay 0.995 every ten steps, which is 0.9995 every step.
    config.train.tokenizer = stage("1_000_000 steps", 32, lr=1.8e-5, b2=0.999, clip=0.0, ema=0.9995,
                                   evaluate="50000 steps", **every)
    config.train.generator = stage("400 epochs", batch, lr=1e-4, weight_decay=2e-2, ema=0.9999,
                                   evaluate="10 epochs", **every,
                                   decay_skip=("^denoiser/", "/bias$", "norm/scale$"))
    # fmt: on
