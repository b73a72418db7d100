"""The search for the operation that gives the first number that is not finite."""

import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")  # what is walked into
LIBRARIES = tuple(str(Path(package.__file__).parent) for package in (jax, flax))


class _Found(Exception):
    """Its words say where."""


def first_nonfinite(f: Callable, *args: Any) -> str | None:
    """The first operation of f(*args), forward or backward, that makes a NaN or an infinity of finite numbers, in words.

    None where there is none. The operations are computed one by one; a while loop counts as one.
    """
    try:
        _walk(jax.make_jaxpr(f)(*args), jax.tree.leaves(args), "a place that is not known")
    except _Found as found:
        return str(found)
    return None


def _walk(closed, values, place):
    """The outputs of a jaxpr. place: the line of code that it comes from, where its own equations do not tell."""
    jaxpr = closed.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *values], strict=True))
    last_use = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in _variables(eqn.invars)}
    for v in _variables(jaxpr.outvars):
        last_use[v] = len(jaxpr.eqns)

    def read(atoms):
        return [v.val if isinstance(v, Literal) else env[v] for v in atoms]

    for i, eqn in enumerate(jaxpr.eqns):
        variables = _variables(eqn.invars)
        here = _place(eqn) or place
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        inner = ClosedJaxpr(inner, ()) if isinstance(inner, Jaxpr) else inner
        if eqn.primitive.name in CALLS:
            outputs = _walk(inner, read(eqn.invars), here)
        elif eqn.primitive.name == "scan":
            outputs = _scan(eqn, inner, read(eqn.invars), here)
        else:
            alone = jaxpr.replace(constvars=[], invars=variables, outvars=eqn.outvars, eqns=[eqn])
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*read(variables))
            if not _finite(outputs) and _finite(read(eqn.invars)):
                of = "the gradient of " if "transpose" in str(eqn.source_info.name_stack) else ""
                raise _Found(f"{eqn.primitive.name}, in {of}{here}")
        env |= zip(eqn.outvars, outputs, strict=True)
        for v in variables:
            if last_use[v] == i:
                del env[v]
    return read(jaxpr.outvars)


def _scan(eqn, inner, inputs, place):
    """What is stacked has an axis more outside than inside. The parameters that say so differ between versions of JAX."""
    stacked_in, stacked_out = (
        sum(outer.aval.ndim > within.aval.ndim for outer, within in zip(*pair, strict=True))
        for pair in ((eqn.invars, inner.jaxpr.invars), (eqn.outvars, inner.jaxpr.outvars))
    )
    carried = len(eqn.outvars) - stacked_out
    constants = len(inputs) - stacked_in - carried
    consts, carry, xs = inputs[:constants], inputs[constants : constants + carried], inputs[constants + carried :]
    rows = {}
    for i in range(eqn.params["length"])[:: -1 if eqn.params["reverse"] else 1]:
        outputs = _walk(inner, [*consts, *carry, *(x[i] for x in xs)], place)
        carry, rows[i] = outputs[:carried], outputs[carried:]
    return [*carry, *(jnp.stack(column) for column in zip(*(rows[i] for i in sorted(rows)), strict=True))]


def _variables(atoms):
    return list(dict.fromkeys(v for v in atoms if not isinstance(v, Literal)))


def _finite(arrays) -> bool:
    return all(jnp.isfinite(x).all() for x in map(jnp.asarray, arrays) if jnp.issubdtype(x.dtype, jnp.floating))


def _place(eqn) -> str | None:
    """The innermost line of code outside of JAX and Flax."""
    for frame in eqn.source_info.traceback.frames if eqn.source_info.traceback else ():
        if not frame.file_name.startswith(LIBRARIES):
            line = linecache.getline(frame.file_name, frame.line_num).strip()
            return f"{frame.file_name}, line {frame.line_num}: {line}"
    return None
