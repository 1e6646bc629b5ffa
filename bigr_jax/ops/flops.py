"""Floating-point operations of a program, and how many a device can do in a second.

A multiply-add counts as two; element-wise work is left out, as in every published model FLOP count.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

# Dense peak in FLOP/s per jax device, bfloat16 (float16 on the T4 and V100), from the makers' data
# sheets (Google Cloud TPU architecture pages; NVIDIA without sparsity). A chip of
# TPU v2, v3 or 7x is two jax devices. The first name found in `device_kind` counts, so longer
# names come before their beginnings.
PEAKS: Mapping[str, float] = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GB200": 2500e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}
_PROBE_SIZE = 768
_PROBE_REPEATS = 20


def transformer_train_flops(
    parameters: int, tokens: int, layers: int, width: int, length: int
) -> int:
    """Returns model FLOPs of training a bidirectional transformer on `tokens` tokens.

    6 N T for the matrices (2 forward, 4 backward; N without embeddings) and 12 L W S per token for
    attention over sequences of S tokens (Chowdhery 2022, appendix B); a causal model needs half of
    the second term. Work repeated by remat is not counted.
    """
    return 6 * parameters * tokens + 12 * layers * width * length * tokens


def count(jaxpr: Any, dtype: Any = None) -> int:
    """Returns the FLOPs of matrix products and convolutions in a jaxpr, over all devices.

    dtype  of what is multiplied; None: any

    `jaxpr` is what `jax.make_jaxpr(f)(*args)` returns, or `jax.jit(f).trace(*args).jaxpr`.
    Unlike XLA's cost analysis it counts the body of a scan once per iteration. Work repeated by
    remat counts; so does the padding of a convolution. A branch counts as its dearest, the body of
    a while loop, whose length is not known, once.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(equation, dtype) for equation in jaxpr.eqns)


def compiled_flops(compiled: jax.stages.Compiled) -> float | None:
    """Returns XLA's own count for one device of a compiled program, or None where it has none.

    It includes element-wise work and counts the body of a scan ONCE, however often it runs: of a
    model with stacked layers it sees one layer. `count` does not have that fault.
    """
    analysis = compiled.cost_analysis()
    flops = analysis.get("flops") if isinstance(analysis, Mapping) else None
    return float(flops) if flops and flops > 0 else None


def peak_flops(device: jax.Device) -> float | None:
    """Returns the peak FLOP/s of a device: bfloat16 from data sheets, a CPU's measured in float32.

    None for a kind that is not in the table.
    """
    if device.platform == "cpu":
        return _measured_cpu_peak()
    return next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)


@functools.cache
def _measured_cpu_peak() -> float:
    # By NumPy: a jax program here would be placed by whatever mesh is current.
    matrix = np.random.default_rng(0).normal(size=(_PROBE_SIZE, _PROBE_SIZE)).astype(np.float32)
    seconds = min(_seconds(matrix) for _ in range(_PROBE_REPEATS))
    # Simulated devices share the cores.
    return 2 * _PROBE_SIZE**3 / seconds / jax.local_device_count("cpu")


def _seconds(matrix: np.ndarray) -> float:
    begin = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - begin


def _equation(equation: Any, dtype: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated") and dtype is not None:
        multiplied = jax.numpy.promote_types(*(v.aval.dtype for v in equation.invars[:2]))
        if multiplied != dtype:
            return 0
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(count(branch, dtype) for branch in params["branches"])
    inner = sum(count(jaxpr, dtype) for jaxpr in _jaxprs(params))
    if name == "scan":
        return params["length"] * inner
    if name == "pallas_call":
        # The body is one step of the grid's.
        return inner * math.prod(params["grid_mapping"].grid)
    if name == "shard_map":
        # The body is one device's share along the axes that are mapped.
        return inner * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return inner


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    # Zeros put between the inputs, as in a transposed convolution, are not multiplied.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * out.size * (kernel.size // features) // zeros
