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
# # Quickstart: train BiGR and draw with it
#
# BiGR draws images in two steps. A *tokenizer* turns an image into a small grid of bits and back; a
# *generator*, a transformer, learns to tell hidden bits from those that are shown. To draw, all
# bits start hidden and are filled in, a few tokens at a time.
#
# This notebook trains both on 4,000 handwritten digits that come with the packages. It takes 7 to
# 10 minutes on two cores. (With `BIGR_SMOKE=1` in the environment it takes seconds, and draws
# nothing to look at: the way to see that all works.)

# %%
# Installs bigr_jax where it is missing: from the checkout around this notebook, or from PyPI.
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("bigr_jax") is None:
    wanted = ".." if Path("../bigr_jax").is_dir() else "bigr_jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
    importlib.invalidate_caches()

# %% [markdown]
# ## Train
#
# A config has a name and a variant; `bigr show bigr:small` prints every setting. Everything that a
# run makes lies in its work directory. Stopped halfway, the same cell goes on where it stood, and
# where all is trained, it says so.

# %%
import json
import os

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import bigr_jax
from bigr_jax import config
from bigr_jax.pictures import grid
from bigr_jax.train import commands

variant = "smoke" if os.environ.get("BIGR_SMOKE") else "small"
workdir = Path(os.environ.get("BIGR_WORKDIR", "runs")) / f"bigr-{variant}"
settings = config.load(f"bigr:{variant}")
results = commands.train(settings, str(workdir))

# %% [markdown]
# What was measured along the way is in `metrics.jsonl`, a line for each step that was logged. Left:
# what the tokenizer keeps of test images, as a signal-to-noise ratio; right: how many bits the
# generator needs for a test image. Lower is better there: an image that it knows what to expect of
# takes fewer.

# %%
rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]


def curve(axes, stage, metric, color):
    found = [(row["step"], row[metric]) for row in rows if row["stage"] == stage and metric in row]
    axes.plot(*zip(*found, strict=True), color=color, marker="o")


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
curve(left, "tokenizer", "test/psnr", "#0072B2")
left.set(title="Tokenizer: images come back", xlabel="step", ylabel="PSNR in dB, test")
curve(right, "generator", "test/bits_per_image", "#D55E00")
right.set(title="Generator: digits become likely", xlabel="step", ylabel="bits an image, test")
plt.show()

# %% [markdown]
# ## What the tokenizer keeps
#
# Test images and, beside them, what is left after they went through bits. What is lost here the
# generator can never draw.

# %%
Image.open(workdir / "reconstructions.png")

# %% [markdown]
# ## What the generator draws
#
# A row for each class. None of these digits was ever written by anyone.

# %%
Image.open(workdir / "samples.png")

# %% [markdown]
# A classifier that was trained apart says which share of the drawings is the digit that was asked
# for (`agreement`), and which share of the test images it reads right itself. The Fréchet distance
# is between drawings and test images, in the features of that classifier; 0 would be the same. All
# of it, and more, is in `results.json`.

# %%
report = results["stages"]["generator"]["report"]
print(f"drawings read as asked    {report['agreement']:.1%}")
print(f"test images read right    {report['referee_test_accuracy']:.1%}")
print(f"Frechet distance          {report['frechet']:.2f}")

# %% [markdown]
# ## Draw on your own
#
# The trained model is one line, NumPy in and out. `cfg_scale` is the strength of guidance: 1 is
# none. More of it gives clearer digits that resemble each other, less gives variety and mistakes.

# %%
model = bigr_jax.load(workdir)
digits, scales = np.repeat([2, 5, 8], 4), (1.0, 4.0)
drawn = [model.sample(digits, seed=1, cfg_scale=scale) for scale in scales]
Image.fromarray(grid(np.concatenate(drawn), len(digits), names=[f"{scale:g}" for scale in scales]))

# %% [markdown]
# **Next:** [tokenizer](tokenizer.ipynb) looks into the bits, [editing](editing.ipynb) changes parts
# of images, and `bigr train --config=bigr:small --config.data.source=folder:PATH` trains on images
# of your own.
