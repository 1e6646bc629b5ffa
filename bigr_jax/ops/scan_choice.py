"""Which form of a scan is taken: by platform, length, and whether derivatives are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

AUTO, PALLAS = "auto", "pallas"
# Of a form that is asked for by name, where no chunk is; a kernel moves less with larger ones.
CHUNK, KERNEL_CHUNK = 64, 256


class Choice(NamedTuple):
    """A form, and how many tokens it multiplies at once."""

    form: str
    chunk: int


class Row(NamedTuple):
    """What is taken of sequences of up to `longest` tokens, without and with derivatives."""

    longest: float
    values: Choice
    derivatives: Choice


# Operation -> platform, "" for any other -> rows by length. On a CPU as `benchmarks/mixers.py`
# measures it: token by token the state stays in the cache, but a backward pass has to keep all of
# them. On others after what is published of chunks; the kernel, which has been compiled for TPUs
# but not timed on one, is taken where it is asked for.
TABLE: Mapping[str, Mapping[str, Sequence[Row]]] = {
    "ssd": {
        "cpu": [
            Row(256, Choice("sequential", 64), Choice("chunked", 32)),
            Row(math.inf, Choice("sequential", 64), Choice("scanned", 32)),
        ],
        "tpu": [Row(math.inf, Choice("scanned", 256), Choice("scanned", 256))],
        "": [Row(math.inf, Choice("chunked", 128), Choice("chunked", 128))],
    },
    "quasiseparable": {
        "cpu": [
            Row(64, Choice("fused", 64), Choice("fused", 64)),
            Row(256, Choice("sequential", 64), Choice("fused", 64)),
            Row(math.inf, Choice("sequential", 64), Choice("streamed", 64)),
        ],
        "tpu": [Row(math.inf, Choice("streamed", 256), Choice("streamed", 256))],
        "": [Row(math.inf, Choice("fused", 128), Choice("fused", 128))],
    },
}


def platform() -> str:
    """Returns the platform that a program is traced for: of the mesh's devices, present or not,
    else the default one.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def check(form: str, forms: Mapping[str, Any], chunk: int | None) -> None:
    """Raises ValueError for a form that is none, with the legal ones, and for a chunk below 1."""
    legal = (AUTO, *forms, PALLAS)
    if form not in legal:
        raise ValueError(f"form is {form!r}; legal: {', '.join(legal)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}, expected 1 or more")


def chosen(operation: str, length: int, chunk: int | None = None) -> tuple[Choice, Choice]:
    """Returns the choices without and with derivatives; `chunk`, where given, in place of the
    table's.
    """
    rows = TABLE[operation]
    row = next(row for row in rows.get(platform(), rows[""]) if length <= row.longest)
    if chunk is None:
        return row.values, row.derivatives
    return row.values._replace(chunk=chunk), row.derivatives._replace(chunk=chunk)


def resolved(
    operation: str,
    forms: Mapping[str, Callable[..., Any]],
    form: str,
    length: int,
    chunk: int | None,
) -> Callable[..., Any]:
    """Returns the function of `forms` that is asked for, with its chunk given; "auto" is one for
    values and one for derivatives.
    """

    def one(choice: Choice) -> Callable[..., Any]:
        return lambda *arrays: forms[choice.form](*arrays, choice.chunk)

    if form != AUTO:
        usual = KERNEL_CHUNK if form == PALLAS else CHUNK
        return one(Choice(form, usual if chunk is None else chunk))
    values, derivatives = chosen(operation, length, chunk)
    return one(values) if values == derivatives else by_need(one(values), one(derivatives))


def by_need(values: Callable[..., Any], derivatives: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes as `values`, but as `derivatives` where it is
    differentiated, in either mode.
    """
    both = jax.custom_jvp(values)

    def rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(primals)
        moved = jax.tree.leaves(tangents, is_leaf=_is_zero)
        places = [i for i, tangent in enumerate(moved) if not _is_zero(tangent)]

        def along(*some: Any) -> Any:
            merged = dict(enumerate(leaves)) | dict(zip(places, some, strict=True))
            return derivatives(*jax.tree.unflatten(tree, list(merged.values())))

        return jax.jvp(along, [leaves[i] for i in places], [moved[i] for i in places])

    both.defjvp(rule, symbolic_zeros=True)
    return both


def recomputed(values: Callable[..., Any], derivatives: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes as `values`, and whose backward pass is that of
    `derivatives`, from the arguments on.
    """
    both = jax.custom_vjp(values)
    both.defvjp(
        lambda *primals: (values(*primals), primals),
        lambda primals, cotangent: jax.vjp(derivatives, *primals)[1](cotangent),
    )
    return both


def kernels_run(interpret: bool) -> bool:
    """Whether a kernel is taken here: the compiler cannot divide one among several devices.

    Raises ValueError on another platform than a TPU, unless it is interpreted.
    """
    if not interpret and platform() != "tpu":
        raise ValueError(
            f"form is 'pallas', which is for a TPU and not for {platform()!r}; interpret=True "
            "runs it anywhere, slowly"
        )
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size == 1 or set(mesh.manual_axes) == set(mesh.axis_names)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)
