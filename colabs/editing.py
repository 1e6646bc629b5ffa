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
# # Drawing and editing with BiGR
#
# A model that draws from left to right can only go on to the right. BiGR fills in hidden bits in
# whatever order, given whichever are known. So the model that draws also repairs, extends and
# changes images, and nothing is trained for it.
#
# Training takes 7 to 10 minutes on two cores, or none where [quickstart](quickstart.ipynb) left its
# work directory. (With `BIGR_SMOKE=1` in the environment it takes seconds, and draws nothing to
# look at.)

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

# %%
import os

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
commands.train(settings, str(workdir))
model = bigr_jax.load(workdir)

# %% [markdown]
# ## Draw
#
# A list of classes gives an image for each. The seed decides what is drawn, and an image does not
# depend on those beside it: the same seed draws the same digits, here and tomorrow.

# %%
Image.fromarray(grid(model.sample(list(range(8)), seed=1), 8))

# %% [markdown]
# ## Repair
#
# Of three test digits the lower half is hidden (grey) and drawn anew, six times. The upper half
# stays as it was, bit for bit, and the strokes join at the border.

# %%
source = open_source(settings.data, "test")
row = source.gather(np.arange(len(source)))
chosen = [int(np.flatnonzero(row["label"] == digit)[0]) for digit in (2, 3, 9)]
images, labels = row["image"][chosen], row["label"][chosen]
mask = np.zeros(images.shape[1:3], bool)
mask[mask.shape[0] // 2 :] = True


def beside(results):
    """Shows every image, what of it is known, and what was made of it, a row for each."""
    known = np.where(mask[..., None], np.uint8(128), images)
    shown = np.concatenate([images[:, None], known[:, None], results], axis=1)
    return Image.fromarray(grid(shown.reshape(-1, *images.shape[1:]), shown.shape[1]))


repaired = model.inpaint(images, mask, label=labels, samples=6, seed=0)
assert (repaired[:, :, ~mask] == images[:, None][:, :, ~mask]).all()
beside(repaired)

# %% [markdown]
# ## Change
#
# The same halves, but now each is to become another digit: the two a three, the three a two, the
# nine an eight. The model makes the best of what it must keep; where the half that is kept says
# another digit clearly, as the left half of a four does, it does not succeed, and these three were
# chosen with that in mind.

# %%
beside(model.edit(images, mask, [3, 2, 8], samples=6, seed=0))

# %% [markdown]
# ## Go from one class to another
#
# All images of a row are drawn with the same random numbers, and only the class moves, from 1 to 7
# and, below, from 3 to 8. Strokes stay where they are as long as they fit.

# %%
ways = np.concatenate([model.interpolate(*ends, steps=8, seed=2) for ends in ((1, 7), (3, 8))])
Image.fromarray(grid(ways.reshape(-1, *images.shape[1:]), 8, names=("1 to 7", "3 to 8")))

# %% [markdown]
# **Next:** with images of your own: `bigr edit inpaint --workdir=... --image=photo.png
# --box=0,0,16,32`; with the mouse: `bigr demo --workdir=... --open`.
