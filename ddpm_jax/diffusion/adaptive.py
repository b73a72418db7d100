"""An adaptive solver for ordinary differential equations, with error control per example: diffrax, imported when it is used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PER_STEP = 6  # evaluations of Dormand and Prince's pair, accepted or not: the first of its seven is the last of the step before
FIRST = 1  # that of the first step
TRIED = 0.01  # the share of the way that the first step tries


class Solved(NamedTuple):
    """The states at t1, shaped like x; per example the evaluations of the field [B], and whether t1 was reached [B]."""

    x: Any
    evaluations: jax.Array
    reached: jax.Array


def solve(
    field: Callable[[jax.Array, Any], Any],
    x: Any,
    t0: jax.Array,
    t1: jax.Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 10_000,
) -> Solved:
    """Solves dx/dt = field(t, x) from t0 to t1, up or down, by Dormand and Prince's fifth-order pair.

    x: a pytree of arrays [B, ...]; t0, t1: []. The field gets all examples, each at a time of its own, t [B], so that it may
    be bound to labels or images [B]. An example's steps depend on it alone: a step is accepted where the root mean square over
    all of its state of error / (atol + rtol |x|) is at most 1 (Hairer, Norsett & Wanner, Solving ODEs I, section II.4). rtol
    and atol may be traced.

    An example that does not come to t1 within max_evaluations is `reached` False, its state where it stopped or not finite.
    Works inside jit and vmap, but has no gradient: take a method of fixed steps for one. Raises ImportError where diffrax is
    missing, ValueError for fewer evaluations than a step needs.
    """
    import diffrax

    max_steps = (max_evaluations - FIRST) // PER_STEP
    if max_steps < 1:
        raise ValueError(f"max_evaluations must be at least {FIRST + PER_STEP}, those of one step, found {max_evaluations}")
    t0, t1 = jnp.asarray(t0, float), jnp.asarray(t1, float)
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    of_one, bound = _of_one(field, x)

    def one(x, bound):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(of_one), diffrax.Dopri5(), t0, t1, TRIED * (t1 - t0), x, bound,
            stepsize_controller=controller, max_steps=max_steps, throw=False,
        )  # fmt: skip
        x = jax.tree.map(lambda states: states[-1], solution.ys)
        reached = solution.result == diffrax.RESULTS.successful
        return Solved(x, FIRST + PER_STEP * solution.stats["num_steps"], reached)

    return jax.vmap(one, (0, None))(x, bound)


def _of_one(field, x):
    """A function (t [], x, bound) of one example that is, under vmap, the field of all of them; and what the field is bound to.

    diffrax's loops are batched after they were traced, when arrays that the field closes over would be out of reach.
    """
    count = len(jax.tree.leaves(x)[0])
    closed, slopes = jax.make_jaxpr(field, return_shape=True)(jnp.zeros(count), x)

    @jax.custom_batching.custom_vmap
    def of_one(t, x, bound):  # noqa: ARG001 - only its shapes are used
        return jax.tree.map(jnp.zeros_like, x)

    @of_one.def_vmap
    def of_all(size, batched, t, x, bound):
        t, x = jax.tree.map(lambda a, is_: a if is_ else jnp.broadcast_to(a, (size, *a.shape)), (t, x), tuple(batched[:2]))
        found = jax.core.eval_jaxpr(closed.jaxpr, bound, *jax.tree.leaves((t, x)))
        return jax.tree.unflatten(jax.tree.structure(slopes), found), jax.tree.map(lambda _: True, slopes)

    return of_one, closed.consts
