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
# # Write your own experiment
#
# A method is one file with two functions: `stages` says what is trained, `study` what is claimed
# and how that is shown. The loop, checkpoints, meshes, sweeps and statistics are there. `bigr new`
# writes such a file that works, with a config and a test; from there one piece after another
# becomes your method.
#
# It takes a minute on two cores. (With `BIGR_SMOKE=1` in the environment: seconds, one seed.)

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
import shlex

import matplotlib.pyplot as plt

from bigr_jax.cli.main import main

variant = "smoke" if os.environ.get("BIGR_SMOKE") else "small"
root = Path(os.environ.get("BIGR_WORKDIR", "runs")) / "experiment"


def bigr(command):
    """The command line, in this process: bigr("list") is `bigr list` in a terminal."""
    assert main(shlex.split(command)) == 0, command


# %% [markdown]
# ## Begin with one that works

# %%
root.mkdir(parents=True, exist_ok=True)
recipe, config = root / "experiments" / "my_method.py", root / "configs" / "my_method.py"
if not recipe.exists():
    bigr(f"new my_method --into={root}")
print(recipe.read_text("utf-8"))

# %% [markdown]
# Read it from the bottom: `study` trains two arms that differ in one setting, for every seed, and
# claims that one is better; `stages` hands the trainer three functions, `init`, `loss` and
# `evaluate`; `Reader` is the network. The method is one line of it: brightness and contrast are
# taken out of an image before it is read.
#
# ## Train it
#
# The trainer takes the path of the config, and every setting can be replaced, also those that you
# add.

# %%
bigr(f"train --config={config}:{variant} --config.model.width=32 --workdir={root}/run")
tested = json.loads((root / "run" / "results.json").read_text("utf-8"))["stages"]["reader"]["test"]
print({name: round(value, 3) for name, value in tested.items()})

# %% [markdown]
# ## Prove it
#
# `prove` runs `study`. A claim holds where it does over the seeds with a confidence of 95 %; one
# that does not is listed as not holding. (One seed, as in `smoke`, can show nothing.)

# %%
bigr(f"prove --config={config}:{variant} --workdir={root}/arms --results={root}")
proved = json.loads((root / "my_method.json").read_text("utf-8"))
for claim in proved["claims"]:
    verdict = "holds" if claim["holds"] else "not shown"
    print(f"{verdict}: {claim['text']} ({claim['value']:.3f} against {claim['against']:.3f})")

# %% [markdown]
# Each dot is a seed; the bar is their mean. On images at full contrast the two do about equally
# well, on faded ones only the method does.

# %%
measured, colours = proved["records"], {"standardized": "#0072B2", "plain": "#D55E00"}
figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
titles = {"accuracy": "Full contrast", "faded_accuracy": "Faded"}
for axes, (metric, title) in zip(panels, titles.items(), strict=True):
    for place, (arm, colour) in enumerate(colours.items()):
        values = [row["value"] for row in measured if (row["arm"], row["metric"]) == (arm, metric)]
        axes.bar(place, sum(values) / len(values), color=colour, alpha=0.5)
        axes.plot([place] * len(values), values, "o", color=colour)
    axes.set(title=title, xticks=range(len(colours)), xticklabels=colours, ylim=(0, 1))
panels[0].set_ylabel("digits read right")
plt.show()

# %% [markdown]
# ## Make it yours
#
# 1. Put your network in place of `Reader`, and your loss in place of `cost`.
# 2. Give the config the settings that they read. One that is misspelt, or that nothing reads, is
#    refused with the nearest name.
# 3. State in `study` what you expect, before you know.
# 4. `pytest` runs the test that was written along: it keeps the recipe small and its claim alive.
