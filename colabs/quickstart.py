# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BiGR in one notebook
#
# Trains the binary tokenizer and the generator on real digits, and draws with it. `small` takes
# some minutes on two cores; set `BIGR_SMOKE=1` for a run of seconds.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("bigr_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", ".."], check=True)

# %%
import os

from PIL import Image

from bigr_jax import config
from bigr_jax.train import commands

variant = "smoke" if os.environ.get("BIGR_SMOKE") else "small"
workdir = os.environ.get("BIGR_WORKDIR", f"runs/colab-{variant}")
settings = config.load(f"bigr:{variant}")
commands.train(settings, workdir)

# %% [markdown]
# What the tokenizer keeps of an image, and what the generator draws, a row per class:

# %%
Image.open(f"{workdir}/reconstructions.png")

# %%
Image.open(f"{workdir}/samples.png")

# %% [markdown]
# Any setting of the sampler can be changed after training. Without guidance (scale 1) there is more
# variety, and more mistakes.

# %%
path = commands.sample(workdir, None, [3, 5], 8, seed=1, overrides={"sample.cfg_scale": "1.0"})
Image.open(path)
