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
# # Hydra against attention: who finds what was said elsewhere?
#
# A *mixer* is the layer that lets the tokens of a sequence see each other: each is a matrix that is
# multiplied with the sequence. Attention makes its matrix of all pairs of tokens, which takes time
# with the square of the length. A state-space model scans, in linear time, and its matrix looks in
# one direction. Hydra scans from both ends and stays linear.
#
# Hydra, attention and three others are trained on one task here, in eight minutes on two cores.
# (With `BIGR_SMOKE=1` in the environment it is two and seconds, and they learn nothing.)

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
import json
import os

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from bigr_jax import config
from bigr_jax.data import open_source
from bigr_jax.ops.quasiseparable import Direction, materialize
from bigr_jax.train import commands

smoke = bool(os.environ.get("BIGR_SMOKE"))
root = Path(os.environ.get("BIGR_WORKDIR", "runs")) / "mixers"
settings = config.load("hydra:smoke" if smoke else "hydra:small")

# %% [markdown]
# ## Four matrices
#
# The same random sequence of 32 tokens as each mixer sees it: row i shows how much of every token j
# comes into token i. Where it is white, nothing does.
#
# - **One direction:** all above the diagonal is white, what comes later is never seen.
# - **Hydra:** both sides are filled, and the diagonal is free. Each side decays with the distance,
#   faster or slower as the tokens say.
# - **Attention:** both sides, made of the tokens, without an order of their own.
# - **Toeplitz:** both sides, but learned once and the same for all sequences: along a diagonal all
#   values are equal.

# %%
length, state = 32, 8
random = np.random.default_rng(0)
B, C, D, E = (jnp.asarray(random.normal(size=(1, length, 1, state))) for _ in range(4))
dt, back = (jnp.asarray(random.uniform(0.02, 0.4, (1, length, 1))) for _ in range(2))
rate, diagonal = -jnp.ones(1), jnp.asarray(random.normal(size=(1, length, 1)))
hydra = materialize(rate, Direction(dt, B, C), Direction(back, D, E), diagonal)[0, 0]
scores = random.normal(size=(length, length))
weights = np.exp(1.5 * scores)
places = np.arange(length)
lags = random.normal(size=2 * length)
matrices = {
    "one direction": np.tril(hydra),
    "Hydra": hydra,
    "attention": weights / weights.sum(1, keepdims=True),
    "fixed Toeplitz": lags[places[:, None] - places + length],
}
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
for axis, (name, matrix) in zip(axes, matrices.items(), strict=True):
    size = np.abs(np.asarray(matrix))
    axis.imshow(size, cmap="Blues", vmax=np.quantile(size, 0.98))
    axis.set(title=name, xlabel="from token", xticks=(), yticks=())
axes[0].set_ylabel("to token")
plt.show()

# %% [markdown]
# ## The task
#
# A sequence is made of pairs, a key and its value. At the end of each a key is asked for whose
# value stands somewhere else, before the question or after it; the mixer has to fill in the value.
# Below is one: every place with a target other than -1 is asked for.

# %%
row = open_source(settings.data, "test").gather(np.arange(1))
print("tokens ", *row["tokens"][0])
print("targets", *row["targets"][0])

# %% [markdown]
# ## Train
#
# The same encoder with another mixer by one setting. `attention_dd` is attention in the shell that
# Hydra has around its matrix, with a gate and a short convolution; `attention` is the transformer's
# own layer, which does not see the order of tokens by itself and gets learned positions.

# %%
arms = {
    "Hydra": {},
    "attention": {"encoder.mixer": "attention_dd", "mixer.qk_dim": "8"},
    "transformer": {"encoder.mixer": "attention", "model.positions": "64"},
    "one direction": {"encoder.mixer": "causal"},
    "fixed Toeplitz": {"encoder.mixer": "toeplitz_di"},
}
if smoke:
    arms = dict(list(arms.items())[:2])
recalled = {}
for name, changes in arms.items():
    workdir = root / name.replace(" ", "-")
    found = commands.train(config.override(settings, changes), str(workdir))
    recalled[name] = found["stages"]["encoder"]["test"]["accuracy"]

# %% [markdown]
# ## Who recalls
#
# Left: the share of values that are told right, as training goes on. Right: on test sequences, in
# the same colours.
#
# - **Hydra** comes close to attention, in linear time.
# - **Attention** needs the shell: its short convolution tells a value which key stands before it.
#   The plain **transformer** would have to learn that from positions, and does not in so few steps.
# - **One direction** sees half of the values before it is asked, and stops there (dashed).
# - **The fixed matrix** does not know where to look, since that is different in every sequence.

# %%
colours = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for name, colour in zip(arms, colours, strict=False):
    text = (root / name.replace(" ", "-") / "metrics.jsonl").read_text("utf-8")
    logged = [row for row in map(json.loads, text.splitlines()) if "accuracy" in row]
    steps = [row["step"] for row in logged]
    left.plot(steps, [row["accuracy"] for row in logged], color=colour)
left.set(title="Training", xlabel="step", ylabel="values recalled", ylim=(0, 1))
bars = right.barh(list(recalled), list(recalled.values()), color=colours[: len(recalled)])
right.bar_label(bars, fmt="%.2f", padding=3)
right.set(title="Test", xlabel="values recalled", xlim=(0, 1.15))
right.invert_yaxis()
for line in (left.axhline, right.axvline):
    line(0.5, color="black", lw=0.8, ls="--")
plt.show()

# %% [markdown]
# This is one seed. `bigr prove --config=hydra:small` trains 23 mixers over three seeds, on two
# more tasks, and says which claims hold.
