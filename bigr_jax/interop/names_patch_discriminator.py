"""Published names of the PatchGAN discriminator (github.com/CompVis/taming-transformers)."""

from __future__ import annotations

from bigr_jax.interop.layout import Entry
from bigr_jax.models.patch_discriminator import PatchDiscriminator

# Counters of batches seen, which nothing here reads.
CARRIED = (r"main\.\d+\.num_batches_tracked",)


def table(model: PatchDiscriminator) -> list[Entry]:
    """Returns one row per tensor of the published file, counters excepted, in its order."""
    out = f"main.{3 * model.layers + 2}"
    rows = [
        Entry("main.0.weight", ("params", "conv_0", "kernel"), "conv"),
        Entry("main.0.bias", ("params", "conv_0", "bias")),
    ]
    for layer in range(1, model.layers + 1):
        norm = f"norm_{layer}"
        at = f"main.{3 * layer}"
        rows += [
            Entry(f"main.{3 * layer - 1}.weight", ("params", f"conv_{layer}", "kernel"), "conv"),
            Entry(f"{at}.weight", ("params", norm, "scale")),
            Entry(f"{at}.bias", ("params", norm, "bias")),
            Entry(f"{at}.running_mean", ("batch_stats", norm, "mean")),
            Entry(f"{at}.running_var", ("batch_stats", norm, "var")),
        ]
    rows.append(Entry(f"{out}.weight", ("params", "conv_out", "kernel"), "conv"))
    rows.append(Entry(f"{out}.bias", ("params", "conv_out", "bias")))
    return rows
