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
# # Images as bits: the binary tokenizer
#
# BiGR's tokenizer cuts an image into a grid of tokens, each of them a handful of bits: no table of
# codes, no real numbers. Here one is trained on handwritten digits, and then opened: what do the
# bits look like, are all of them used, and what happens when some are wrong?
#
# It takes three minutes on two cores. (With `BIGR_SMOKE=1` in the environment it takes seconds, and
# shows nothing worth looking at.)

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
# Of the three stages of `bigr:small` this is the first. The work directory is that of
# [quickstart](quickstart.ipynb): where it has been trained, nothing is trained here.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import bigr_jax
from bigr_jax import config
from bigr_jax.data import open_source
from bigr_jax.pictures import grid
from bigr_jax.train import commands

variant = "smoke" if os.environ.get("BIGR_SMOKE") else "small"
workdir = Path(os.environ.get("BIGR_WORKDIR", "runs")) / f"bigr-{variant}"
settings = config.load(f"bigr:{variant}")
found = commands.train(settings, str(workdir), stage="tokenizer")
print(f"signal to noise: {found['stages']['tokenizer']['test']['psnr']:.1f} dB")

# %% [markdown]
# ## From pixels to bits and back
#
# `stage="tokenizer"` loads what can encode and decode; nothing that draws is needed. Above are test
# digits, below is what comes back.

# %%
model = bigr_jax.load(workdir, stage="tokenizer")
source, random = open_source(settings.data, "test"), np.random.default_rng(3)
images = source.gather(random.choice(len(source), 256, replace=False))["image"]
codes = model.encode(images)
count, tokens, bits = codes.shape
pixels = images[0].size
print(f"{pixels} bytes of pixels -> {tokens} tokens of {bits} bits = {tokens * bits // 8} bytes")
back = model.decode(codes[:32])
Image.fromarray(grid(np.concatenate([images[:8], back[:8]]), 8, names=("image", "decoded")))

# %% [markdown]
# ## What the bits look like
#
# Left: the code of the first digit, a row for each token, in the order of reading. Right: how often
# each bit is one, over all tokens of 256 digits. A bit that is always one, or never, would carry
# nothing; here every bit is near one half, so all are in use.

# %%
share = codes.reshape(-1, bits).mean(0)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.imshow(codes[0], cmap="gray_r", aspect="auto", interpolation="nearest")
left.set(title="The code of one digit", xlabel="bit", ylabel="token")
right.bar(np.arange(bits), share, color="#0072B2")
right.axhline(0.5, color="black", lw=0.8, ls="--")
right.set(title=f"How often a bit is one, {count} digits", xlabel="bit", ylabel="share of ones")
right.set_ylim(0, 1)
plt.show()

# %% [markdown]
# ## What a bit is worth
#
# The same digits with more and more of their bits flipped at random. A tenth of them wrong hardly
# shows: what one bit says is also in others, and a generator that errs in some still draws a digit.
# With half of them flipped nothing of the image is left, only strokes, as the decoder knows no
# other.

# %%
rates = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
wrong = np.stack([codes[:8] ^ (random.random(codes[:8].shape) < rate) for rate in rates])
flipped = model.decode(wrong.reshape(-1, tokens, bits))
names = [f"{rate:.0%}" for rate in rates]
Image.fromarray(grid(flipped, 8, names=names))

# %% [markdown]
# The same in numbers: the mean error of a pixel, in 256ths.

# %%
error = np.abs(flipped.astype(float) - np.tile(images[:8], (len(rates), 1, 1, 1)))
error = error.reshape(len(rates), -1).mean(1)
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.plot([100 * rate for rate in rates], error, color="#D55E00", marker="o")
axes.set(title="Images fall apart bit by bit", xlabel="bits flipped, %", ylabel="error of a pixel")
axes.set_ylim(0)
plt.show()

# %% [markdown]
# ## Half of one image, half of another
#
# Tokens keep to their places: the upper tokens of one digit with the lower ones of the next make an
# image whose halves are those of the two. That is what makes editing possible:
# [editing](editing.ipynb).

# %%
side = int(tokens**0.5)
upper = (np.arange(tokens) // side < side // 2)[None, :, None]
mixed = model.decode(np.where(upper, codes[:8], np.roll(codes[:8], -1, axis=0)))
names = ("image", "halves")
Image.fromarray(grid(np.concatenate([images[:8], mixed]), 8, names=names))
