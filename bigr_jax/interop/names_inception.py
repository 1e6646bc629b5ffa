"""Published names of FID's Inception-v3 (github.com/mseitzer/pytorch-fid, toshas/torch-fidelity).

The files pt_inception-2015-12-05-6726825d.pth and weights-inception-2015-12-05-6726825d.pth hold
the same tensors under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator

from bigr_jax.interop.layout import Entry
from bigr_jax.models.inception import BLOCKS, STEM, Conv, InceptionV3, Step

# Counters of batches seen, which nothing here reads.
CARRIED = (r"(\w+\.){1,2}bn\.num_batches_tracked",)


def table(model: InceptionV3) -> list[Entry]:
    """Returns one row per tensor of the published file, counters excepted, in its order."""
    rows = [row for step in STEM for row in _step(step, ())]
    for block, branches in BLOCKS.items():
        rows += [row for branch in branches for step in branch for row in _step(step, (block,))]
    return [
        *rows,
        Entry("fc.weight", ("params", "fc", "kernel"), "linear"),
        Entry("fc.bias", ("params", "fc", "bias")),
    ]


def _step(step: Step, block: tuple[str, ...]) -> Iterator[Entry]:
    if isinstance(step, str):
        return
    for conv in (step,) if isinstance(step, Conv) else step:
        path = (*block, conv.name)
        torch = ".".join(path)
        yield Entry(f"{torch}.conv.weight", ("params", *path, "conv", "kernel"), "conv")
        yield Entry(f"{torch}.bn.weight", ("params", *path, "bn", "scale"))
        yield Entry(f"{torch}.bn.bias", ("params", *path, "bn", "bias"))
        yield Entry(f"{torch}.bn.running_mean", ("batch_stats", *path, "bn", "mean"))
        yield Entry(f"{torch}.bn.running_var", ("batch_stats", *path, "bn", "var"))
