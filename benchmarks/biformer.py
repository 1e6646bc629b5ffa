"""Parameters and operations of the published sizes of BiFormer, beside those of its paper.

    python benchmarks/biformer.py

Of one image of 224 pixels, forward. Nothing is computed but shapes, so it takes seconds. On a CPU
the depthwise convolutions, 1 to 2 % of the paper's figure, are sums and left out of ours.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
from timing import table

from bigr_jax.models.biformer import SIZES, named
from bigr_jax.ops import flops

# Millions of parameters and billions of multiply-adds, and ImageNet accuracy, as published.
PUBLISHED = {"T": (13.1, 2.2, 81.4), "S": (25.5, 4.5, 83.8), "B": (56.8, 9.8, 84.3),
             "STL": (28.4, 4.6, 82.7)}  # fmt: skip


def main() -> int:
    """Prints the table; the exit status is 1 where a figure is not the published one."""
    rows, right = [], True
    for name in SIZES:
        # The form that multiplies what the paper counts, and nothing to fill up a step.
        net = named(name, form="gather")
        images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        variables = jax.eval_shape(net.init, jax.random.key(0), images)
        millions = sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) / 1e6
        billions = flops.count(jax.jit(net.apply).trace(variables, images).jaxpr) / 2e9
        wanted, products, _ = PUBLISHED[name]
        right &= round(millions, 1) == wanted and abs(billions / products - 1) < 0.03
        paper = [str(figure) for figure in PUBLISHED[name]]
        row = [f"BiFormer-{name}", f"{millions:.2f}", paper[0], f"{billions:.2f}", *paper[1:]]
        rows.append(row)
    head = ("size", "parameters, M", "paper", "multiply-adds, G", "paper", "paper: ImageNet, %")
    print(table(head, rows))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
