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
# # From a laptop to a pod
#
# A config that trains here also trains on a slice of a TPU pod: only the *mesh* is another, which
# says how chips share the work. What that will take can be known before one is rented. `bigr plan`
# compiles the real train step for the slice, with the TPU compiler, which runs on any Linux
# machine, and reads bytes, arithmetic and traffic from the program. No TPU is needed, and no
# weights.
#
# It takes a minute or two. (With `BIGR_SMOKE=1` in the environment the program is a small one.)

# %%
# Installs bigr_jax, and the compiler for TPUs (libtpu), where they are missing: from the checkout
# around this notebook, or from PyPI.
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

if None in map(importlib.util.find_spec, ("bigr_jax", "libtpu")):
    wanted = "..[tpu]" if Path("../bigr_jax").is_dir() else "bigr_jax[tpu]"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wanted], check=True)
    importlib.invalidate_caches()

# %%
import contextlib
import io
import json
import os

import matplotlib.pyplot as plt
import numpy as np

from bigr_jax.cli.main import main

smoke = bool(os.environ.get("BIGR_SMOKE"))
workdir = Path(os.environ.get("BIGR_WORKDIR", "runs")) / "pod"
workdir.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Two ways to share a network among eight chips
#
# - `data=8`: every chip holds the whole network and an eighth of the batch; gradients are added up.
# - `fsdp=8`: every chip holds an eighth of all parameters as well, and they are gathered when a
#   layer needs them.
#
# What is planned is a BiFormer of a million parameters, by settings that could as well be trained.

# %%
asked = ["--config=biformer:smoke" if smoke else "--config=biformer:small"]
if not smoke:
    asked += ["--config.model.widths=(128, 256)", "--config.train.model.batch_size=64"]
plans, printed = {}, io.StringIO()
for mesh in ("data=8", "fsdp=8"):
    path = workdir / f"{mesh}.json"
    with contextlib.redirect_stdout(printed):
        assert main(["plan", *asked, "--topology=v5e:2x4", f"--mesh={mesh}", f"--json={path}"]) == 0
    plans[mesh] = json.loads(path.read_text("utf-8"))["stages"]["model"]["step"]

# %% [markdown]
# ## What a plan says
#
# The report for `fsdp=8`; above these lines stands a table of every parameter and its place.

# %%
report = printed.getvalue()
print(report[report.rindex("train step") :])

# %% [markdown]
# ## What it costs
#
# Left: bytes of a chip's main memory. With `fsdp` the parameters and the optimizer's moments are an
# eighth of what they were, and so is what a network may weigh. But a million parameters are few:
# with `data=8` all activations stay in the small fast memory beside the arithmetic and count for
# nothing here, with `fsdp=8` the compiler puts them into the main memory. Right: bytes that a chip
# sends in a step, about the same for both. So `data=8` is the mesh to take here. With hundreds of
# millions it is the other way round; [plans.md](../docs/plans.md) has BiGR on 256 chips. That is
# what a plan is for.

# %%
kinds = {"parameters": "#0072B2", "optimizer": "#56B4E9", "activations": "#D55E00"}
kinds |= {"temporaries": "#E69F00"}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.6), layout="constrained")
start = np.zeros(len(plans))
for kind, colour in kinds.items():
    size = np.array([plan["memory"].get(kind, 0) for plan in plans.values()]) / 2**20
    left.barh(list(plans), size, left=start, color=colour, label=kind)
    start += size
left.set(title="Memory of a chip", xlabel="MiB")
left.legend(ncols=2, fontsize="small")
right.barh(list(plans), [plan["moved"] / 2**20 for plan in plans.values()], color="#009E73")
right.set(title="Sent by a chip in a step", xlabel="MiB")
for axes in (left, right):
    axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## Then on the slice
#
# Every host runs the same command, and after an interruption the same command goes on:
#
# ```bash
# bigr train --config=biformer:paper --workdir=bucket/biformer --distributed \
#     --config.mesh.data=-1 --config.mesh.fsdp=8
# ```
#
# Eight devices can also be simulated on a laptop, with `JAX_NUM_CPU_DEVICES=8` before the command
# and `--config.mesh.fsdp=8`. [pods.md](../docs/pods.md) has the rest: several hosts, preemption,
# and what each promise rests on.
