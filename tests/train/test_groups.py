"""An optimizer for each group of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigr_jax.train.groups import by_group

PARAMS = {"slow": {"w": jnp.arange(3.0)}, "fast": {"w": jnp.ones(2), "b": jnp.zeros(())}}


def test_groups_move_by_their_own_optimizer_and_only_in_their_turn():
    own = {"slow": optax.sgd(0.1, momentum=0.9), "fast": optax.adam(0.01)}
    tx = by_group(own)
    state, params = tx.init(PARAMS), PARAMS
    alone = {name: one.init(PARAMS[name]) for name, one in own.items()}
    wanted = dict(PARAMS)
    for turn, names in enumerate([("slow",), ("fast",), ("slow", "fast"), ("slow",)]):
        grads = {n: jax.tree.map(lambda x, t=turn: jnp.cos(x + t), params[n]) for n in names}
        updates, after = tx.update(grads, state, params)
        for name in names:
            step, alone[name] = own[name].update(grads[name], alone[name], wanted[name])
            wanted[name] = optax.apply_updates(wanted[name], step)
        params = optax.apply_updates(params, updates)
        for name in PARAMS.keys() - set(names):
            # Momentum too waits for its turn.
            jax.tree.map(np.testing.assert_array_equal, after[name], state[name])
            assert not any(leaf.any() for leaf in jax.tree.leaves(updates[name]))
        state = after
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, wanted)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any(path.endswith(".mu['fast']['w']") for path in paths)
