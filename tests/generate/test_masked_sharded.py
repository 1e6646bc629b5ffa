"""The masked sampler on several devices: the same bits, and they send one number to each other, the
most tokens of an image that need the transcoder.
"""

from __future__ import annotations

PROGRAM = """
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bigr_jax.generate.draws import KeyDraws
from bigr_jax.generate.guidance import pair
from bigr_jax.generate.masked import MaskedSampling, Steps, sample_masked
from bigr_jax.ops.bernoulli import make_schedule

batch, length, bits = 4, 10, 3
place = jnp.linspace(-1, 1, length * bits).reshape(length, bits)

def run(key, classes):
    rows = pair(classes, jnp.zeros_like(classes))[:, None, None]
    def hidden(x, mask):
        return jnp.tanh(jnp.where(mask[..., None], 0, x).mean(1, keepdims=True) + place + rows)
    def denoise(x_t, t, hidden):
        return 3 * hidden + (2 * x_t - 1) * (0.8 - t / 6)
    draws = KeyDraws(key, (batch, length, bits))
    schedule = make_schedule("linear", 6)
    return sample_masked(Steps(hidden, denoise), draws, schedule, MaskedSampling(3, 2), block=2)

key, classes = jax.random.key(0), jnp.arange(1.0, batch + 1)
alone = jax.jit(run)(key, classes)
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
with jax.set_mesh(mesh):
    compiled = jax.jit(run, out_shardings=rows).lower(key, jax.device_put(classes, rows)).compile()
text = compiled.as_text()
for name in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
    assert name not in text, name
sent = re.findall(r"= (\\S+) all-reduce\\(", text)
assert set(sent) == {"s32[]"}, sent
split = compiled(key, jax.device_put(classes, rows))
assert len(split.bits.sharding.device_set) == 2
jax.tree.map(np.testing.assert_array_equal, split, alone)
print("done")
"""


def test_devices_agree_on_a_number_alone(run_python):
    result = run_python(["-c", PROGRAM], devices=2)
    assert result.stdout == "done\n", result.stderr[-2000:]
