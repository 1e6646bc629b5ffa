"""Each promise, broken alone, is caught by the check for it and by no other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import checks
import observed
import pytest

# What is wrong with a text alone is looked for in texts alone.
WRITTEN = ("docstring", "files", "variants")
INTACT = Path(__file__).with_name("intact.py")

SHAPES = """\
only params/Dense_0/bias float32[10]
only params/Dense_0/kernel float32[16,10] (embed, mlp)
only params/offset float32[10]
only seen/steps int32[]
"""


class Defect(NamedTuple):
    """Text to be replaced in an experiment that keeps all promises, and what must notice."""

    old: str
    new: str
    caught: tuple[str, ...]
    says: str


DEFECTS = {
    "no claim": Defect("\nClaim  ", "\nBoast  ", ("docstring",), "Claim says too little"),
    "no year": Defect("(2024, made for tests)", "(recent)", ("docstring",), "'Name: what"),
    "no such flag": Defect("bigr train --", "bigr train --at=1 --", ("docstring",), "not parse"),
    "no such variant": Defect(":small\n", ":large\n", ("docstring",), "does not parse"),
    "too long": Defect("\nVARIANTS =", "\n" * 120 + "VARIANTS =", ("files",), "more than 200"),
    "one for another": Defect(
        "base(__file__, variant)",
        'base(__file__, "smoke")',
        ("variants",),
        ":small calls itself 'smoke'",
    ),
    "another width": Defect("Net(config.", "Net(2 + config.", ("shapes",), "[12]"),
    "descent seen, ascent done": Defect(
        "return value, Aux",
        "value = 2 * jax.lax.stop_gradient(value) - value\n        return value, Aux",
        ("learning",),
        "the loss rises",
    ),
    "loss negated": Defect("batch).mean()", "batch).mean() * -1", ("learning",), "test loss rises"),
    "unreached": Defect(
        "+ offset", "+ jax.lax.stop_gradient(offset)", ("gradients",), "reaches ['offset']"
    ),
    "only decayed": Defect(
        "initializers.zeros, (self.width,))",
        "initializers.ones, (self.width,))\n        offset = jax.lax.stop_gradient(offset)",
        ("gradients",),
        "offset",
    ),
    "state of another type": Defect("steps + 1}", "steps + 1.0}", ("one_program",), "seen/steps"),
    "time in the start": Defect(
        "net.init(key, f",
        "net.init(jax.random.key(time.time_ns() % 2**31), f",
        ("same_bits", "devices"),
        "with one seed, the start differs",
    ),
    "time in the loss": Defect(
        "jax.random.normal(key, x.shape)",
        "jax.random.normal(jax.random.key(time.time_ns() % 2**31), x.shape)",
        ("same_bits", "resuming", "devices"),
        "with one seed, the end differs",
    ),
    "state in Python": Defect(
        "        return value, Aux",
        "        kept = jax.ShapeDtypeStruct((), jnp.float32)\n"
        "        first = jax.pure_callback(remembered, kept, steps, jax.lax.stop_gradient(value))\n"
        "        value = value * (1 + first)\n"
        "        return value, Aux",
        ("resuming",),
        "stopped after step 2 and resumed, it differs",
    ),
    "a key that does not count": Defect(
        "rows + jax.random.normal(key, ",
        "rows + jax.random.normal(jax.random.key(0), ",
        ("sampling",),
        "another key draws the same",
    ),
    "drawn by the clock": Defect(
        "def sample(",
        "def sample(*given):\n"
        "        now = jax.ShapeDtypeStruct((), jnp.uint32)\n"
        "        ticks = jax.pure_callback(lambda: np.uint32(time.time_ns() % 2**31), now)\n"
        "        return drawn(given[0], jax.random.key(ticks), *given[2:])\n\n"
        "    def drawn(",
        ("sampling",),
        "one key draws different",
    ),
    "beyond white": Defect("sigmoid(rows)", "softplus(rows + 1)", ("sampling",), "not in [0, 1]"),
    "a mean of the devices' norms": Defect(
        "        return value, Aux",
        "        parts = apply(variables, x).reshape(jax.device_count(), -1)\n"
        "        value = value + 0.1 * jnp.linalg.norm(parts, axis=-1).mean()\n"
        "        return value, Aux",
        ("devices",),
        "on two devices",
    ),
    "nothing claimed": Defect("lab.claim(", "(lambda *a, **b: 0)(", ("study",), "states no claim"),
    "nothing measured": Defect('["test"]["loss"]', '["test"]["los"]', ("study",), "KeyError"),
    "an infinite record": Defect(
        "    lab.claim(",
        '    lab.record("linear", "time", float("inf"))\n    lab.claim(',
        ("study",),
        "a record is not finite",
    ),
}


@pytest.fixture(scope="module")
def refs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of the intact experiment and of the broken ones, with one second process."""
    folder = tmp_path_factory.mktemp("broken")
    text, found = INTACT.read_text("utf-8"), {}
    for place, (name, defect) in enumerate({"intact": None, **DEFECTS}.items()):
        path = folder / f"broken{place}.py"
        broken = text if defect is None else text.replace(defect.old, defect.new)
        assert defect is None or broken != text, name
        # For those that look at the clock.
        broken = broken.replace("\nimport jax\n", "\nimport time\n\nimport jax\n")
        path.write_text(broken.replace("{path}", str(path)), "utf-8")
        checks.golden(str(path)).write_text(SHAPES, "utf-8")
        found[name] = str(path)
    trained = [found[name] for name in found if name == "intact" or is_trained(DEFECTS[name])]
    observed.start_second(trained)
    return found


def is_trained(defect: Defect) -> bool:
    return defect.caught[0] not in WRITTEN


def noticed(ref: str, names: Iterable[str] = checks.CHECKS) -> dict[str, str]:
    """Returns {check: what it says} of the checks that an experiment does not pass."""
    found = {}
    for name in names:
        try:
            checks.CHECKS[name](ref)
        except AssertionError as error:
            found[name] = str(error)
        except observed.NotTrained:
            pass
    return found


def test_the_intact_one_keeps_all(refs: dict[str, str]) -> None:
    assert noticed(refs["intact"]) == {}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_check_for_it_notices(refs: dict[str, str], name: str) -> None:
    defect = DEFECTS[name]
    found = noticed(refs[name], checks.CHECKS if is_trained(defect) else WRITTEN)
    assert tuple(found) == defect.caught, found
    assert defect.says in found[defect.caught[0]]
