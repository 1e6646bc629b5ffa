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
# # Where BiFormer looks
#
# Dense attention compares every place of an image with every other. BiFormer first cuts the image
# into regions and asks, region by region, which *few* others suit; tokens then attend to those
# alone. Which ones depends on the image: that is the routing map, and it can be looked at.
#
# Here a small BiFormer learns to find digits on photographs, a class for every pixel, in three
# minutes on two cores. (With `BIGR_SMOKE=1` in the environment it takes seconds, and looks
# anywhere.)

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

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from bigr_jax import config, pictures, registry
from bigr_jax.train import commands
from bigr_jax.train.run import opened

smoke = bool(os.environ.get("BIGR_SMOKE"))
workdir = Path(os.environ.get("BIGR_WORKDIR", "runs")) / "routes"

# %% [markdown]
# ## Train
#
# Any setting can be replaced, as with `--config.head.kind=segments` on the command line. There are
# 4 x 4 regions, and `topk` says that each is routed to four of these sixteen.

# %%
changes = {"data.source": "tiles:mnist5k", "data.size": "48", "data.channels": "1"}
changes |= {"head.kind": "segments", "model.stem": "4", "train.model.duration": "800 steps"}
if smoke:
    changes |= {"data.source": "tiles:digits", "data.size": "16", "model.stem": "2"}
    changes |= {"train.model.duration": "10 steps"}
settings = config.load("biformer:smoke" if smoke else "biformer:small", changes)
found = commands.train(settings, str(workdir))
print(f"mean intersection over union: {found['stages']['model']['test']['mean_iou']:.2f}")

# %% [markdown]
# ## One region, several images
#
# Framed in white: the region that asks, in the middle. In orange: the four that it attends to. All
# else it does not see. Each row is a layer. From image to image other regions are chosen, though
# the one that asks is at the same place: a window or a stripe could not do that.

# %%
run = opened(str(workdir), data=True)
biformer = registry.run_file(registry.describe("biformer").path)
images = run.sources["test"].gather(np.arange(64))["image"]
routes = biformer.routes(run, images)
layers, _, regions, topk = routes.shape
side = int(regions**0.5)
asking = (side // 2) * (side + 1)
tiles = [
    pictures.marked(image, side, asking, chosen)
    for layer in routes
    for image, chosen in zip(images[:6], layer[:6, asking], strict=True)
]
names = [f"layer {layer + 1}" for layer in range(layers)]
Image.fromarray(pictures.grid(np.stack(tiles), 6, scale=1 + smoke, names=names))

# %% [markdown]
# ## One image, several regions
#
# The last layer again, now with one image and the regions of its diagonal and the other corners.

# %%
several = (0, side + 1, 2 * (side + 1), 3 * (side + 1), side - 1, regions - side)
tiles = [pictures.marked(images[1], side, region, routes[-1, 1, region]) for region in several]
Image.fromarray(pictures.grid(np.stack(tiles), len(several), scale=1 + smoke))

# %% [markdown]
# ## Over many images
#
# How often region i attends to region j, over 64 test images. Were routes fixed, every row would
# have four dark squares and nothing else; here hardly any is dark: which four it is follows the
# image. Columns that stand out are regions that nearly all ask, mostly at the border, where there
# are no digits and the photograph can be seen alone.

# %%
figure, axes = plt.subplots(1, layers, figsize=(4 * layers, 3.6), layout="constrained")
for axis, layer, name in zip(np.atleast_1d(axes), routes, names, strict=True):
    share = np.eye(regions)[layer].sum(2).mean(0)
    shown = axis.imshow(share, cmap="cividis_r", vmin=0, vmax=0.8)
    axis.set(title=name, xlabel="is attended to", ylabel="region that asks")
figure.colorbar(shown, ax=axes, label="share of images")
plt.show()

# %% [markdown]
# Whether routes help is another question: on this task the kinds of attention do not differ after a
# short training, and where the answer lies in another region, routes find it and windows do not:
# `bigr prove --config=biformer:small` measures both.
