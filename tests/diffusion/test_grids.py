"""Time grids against the published integer formulas, written out here, and against equation 5 of Karras et al. 2022."""

import inspect
from itertools import accumulate

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.processes import PROCESSES

T = 1000
TABLE = PROCESSES["linear"]()


def integers(grid, total=T):
    """The n of a grid of n/T, from the last step to the first as they are used."""
    n = np.asarray(grid, np.float64) * total
    np.testing.assert_allclose(n, np.rint(n), atol=1e-4)
    return np.rint(n).astype(int).tolist()


OTHER_ENDS = ("leading", "trailing", "quadratic", "sections", "explicit")
KNOBS = {  # of grids that have no `steps`: those of ten points
    "sections": lambda process: {"sections": "4,6"},  # noqa: ARG005
    "explicit": lambda process: {"times": np.arange(10, 0, -1) / (process.num_steps or 10 / float(process.t_max))},
}


def ten(grid, process):
    """Ten points. ValueError where the grid is of tables alone."""
    required = [p.name for p in inspect.signature(GRIDS[grid]).parameters.values() if p.default is p.empty][1:]
    knobs = KNOBS.get(grid, lambda _: {"steps": 10})(process)
    assert set(required) <= set(knobs), f"add to KNOBS above {required} with which the grid {grid} has ten points"
    return GRIDS[grid](process, **knobs)


@pytest.mark.thorough
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_runs_down_the_span(grid):
    """Ten points within it, on a table steps of it; with both its ends, unless the grid is known to be otherwise."""
    for name, process in ((name, make()) for name, make in PROCESSES.items()):
        try:
            times = ten(grid, process)
        except ValueError as refusal:
            assert "made of a table's integers" in str(refusal) or "log-SNR is -inf" in str(refusal), (name, refusal)
            continue
        assert times.shape == (10,) and (np.diff(times) < 0).all(), name
        assert times[-1] >= process.t_min.sampling and times[0] <= process.t_max, name
        if steps := process.num_steps:
            integers(times, steps)
        if grid not in OTHER_ENDS:
            chex.assert_trees_all_close((times[0], times[-1]), (process.t_max, process.t_min.sampling), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("grid", ["uniform", "leading", "trailing", "log_snr", "karras"])
@pytest.mark.parametrize("name", ["linear", "ncsn", "vp", "sub_vp", "ve", "edm", "rectified_flow", "continuous_cosine"])
def test_points_order_and_ends(name, grid, steps):
    process = PROCESSES[name]()
    if grid == "leading" and steps == 1:
        with pytest.raises(ValueError, match="one point has the data's end alone"):
            GRIDS[grid](process, steps=steps)
        return
    times = GRIDS[grid](process, steps=steps)
    chex.assert_shape(times, (steps,))
    assert (np.diff(times) < 0).all()
    t_min = 1 / process.num_steps if process.num_steps else process.t_min.sampling
    if process.num_steps:
        assert integers(times, process.num_steps)[-1] >= 1
    if grid != "leading":
        chex.assert_trees_all_equal(times[0], process.t_max)
    if grid == "leading" or (grid != "trailing" and steps > 1):
        chex.assert_trees_all_close(times[-1], t_min, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 10, 20, 250, 1000])
def test_uniform_leading_and_trailing_are_diffusers(steps):
    """Its "linspace", "leading" and "trailing" (offset 0), which count from 0."""
    published = {
        "uniform": np.rint(np.linspace(0, T - 1, steps))[::-1],
        "leading": (np.arange(steps) * (T // steps))[::-1],
        "trailing": np.round(np.arange(T, 0, -T / steps)) - 1,
    }
    for name, indices in published.items():
        assert integers(GRIDS[name](TABLE, steps=steps)) == (indices + 1).tolist(), name


def test_leading_spans_the_chain():
    """floor(k c) with c = T / N: with their integer stride, 501 of 1000 begin at n = 501."""
    for steps in (2, 7, 501, 999):
        found = integers(GRIDS["leading"](TABLE, steps=steps))
        assert found == [1 + k * T // steps for k in reversed(range(steps))] and found[0] >= T - T // steps


def test_quadratic_is_the_ddim_codes():
    for steps in (10, 20):
        indices = [int(s) for s in np.linspace(0, np.sqrt(0.8 * T), steps) ** 2]
        assert integers(GRIDS["quadratic"](TABLE, steps=steps)) == [i + 1 for i in reversed(indices)]
    assert indices[-1] == 800


def sections_by_hand(total, counts):
    """Sections as equal as can be, the first ones longer; in each, from its first index to its last by adding one stride up."""
    indices, start = [], 0
    for section, count in enumerate(counts):
        end = start + total // len(counts) + (section < total % len(counts))
        strides = [(end - start - 1) / (count - 1)] * (count - 1) if count > 1 else []
        indices += [start + round(position) for position in accumulate(strides, initial=0.0)]
        start = end
    return indices


@pytest.mark.parametrize("words, total", [("10,10,15,15,15", T), ("100", T), ("9, 1, 2", T), ("3,4,5", 103), ("4,3", 7)])
def test_sections(words, total):
    process = PROCESSES["linear"](steps=total)
    indices = sections_by_hand(total, [int(word) for word in words.split(",")])
    assert integers(GRIDS["sections"](process, sections=words), total) == [i + 1 for i in reversed(indices)]


def test_strides_of_ddim():
    """The smallest integer stride from index 0 that leaves N of the T steps."""
    for words, stride in (("ddim50", 20), ("ddim25", 40), ("ddim334", 3)):
        assert integers(GRIDS["sections"](TABLE, sections=words)) == list(range(1, T + 1, stride))[::-1]


@pytest.mark.parametrize("name", ["uniform", "leading", "trailing", "quadratic", "log_snr", "karras"])
def test_crowded_grids_of_a_table(name):
    """As many points as steps are all steps; 600, of which many would fall together, still differ."""
    assert integers(GRIDS[name](TABLE, steps=T)) == list(range(T, 0, -1))
    crowded = integers(GRIDS[name](TABLE, steps=600))
    assert len(crowded) == 600 and all(np.diff(crowded) < 0) and crowded[0] <= T and crowded[-1] >= 1


def test_karras():
    """Eq. 5 with rho = 7: for EDM of t itself, for others of sigma / alpha."""
    ramp = np.arange(10) / 9
    exact = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    chex.assert_trees_all_close(GRIDS["karras"](PROCESSES["edm"](), steps=10), np.float32(exact), rtol=1e-5)
    exact = (80 ** (1 / 2) + ramp * (0.1 ** (1 / 2) - 80 ** (1 / 2))) ** 2
    chex.assert_trees_all_close(GRIDS["karras"](PROCESSES["edm"](), steps=10, t_min=0.1, rho=2.0), np.float32(exact), rtol=1e-5)
    process = PROCESSES["vp"]()
    times = GRIDS["karras"](process, steps=10)
    z = process.sigma(times) / process.alpha(times)
    roots = z[0] ** (1 / 7) + ramp * (z[-1] ** (1 / 7) - z[0] ** (1 / 7))
    chex.assert_trees_all_close(z, roots**7, rtol=1e-4)


def test_log_snr():
    """Evenly spaced, as far as float32 has 1 - t of the flow; on a table the nearest n to that."""
    for name in ("sub_vp", "rectified_flow"):
        process = PROCESSES[name]()
        levels = process.log_snr(GRIDS["log_snr"](process, steps=10))
        chex.assert_trees_all_close(levels, jnp.linspace(levels[0], levels[-1], 10), atol=2e-3)
    n = np.array(integers(GRIDS["log_snr"](TABLE, steps=10)))[1:-1]
    exact = jnp.linspace(TABLE.log_snr(1.0), TABLE.log_snr(1 / T), 10)[1:-1]
    assert (TABLE.log_snr((n + 0.501) / T) < exact).all() and (exact < TABLE.log_snr((n - 0.501) / T)).all()


def test_t_min_arrives():
    process = PROCESSES["vp"]()
    for name in ("uniform", "leading", "log_snr", "karras", "polyexponential", "beta"):
        chex.assert_trees_all_close(GRIDS[name](process, steps=10, t_min=0.2)[-1], 0.2, rtol=1e-6)
    chex.assert_trees_all_close(GRIDS["trailing"](process, steps=4, t_min=0.2), jnp.array([1.0, 0.8, 0.6, 0.4]), rtol=1e-6)
    chex.assert_trees_all_close(GRIDS["leading"](process, steps=4, t_min=0.2), jnp.array([0.8, 0.6, 0.4, 0.2]), rtol=1e-6)


def test_explicit():
    assert integers(GRIDS["explicit"](TABLE, times=(1.0, 0.5000004, 0.001, 0.0))) == [1000, 500, 1, 0]
    chex.assert_trees_all_close(GRIDS["explicit"](PROCESSES["edm"](), times=(70.0, 0.123)), jnp.array([70.0, 0.123]))


EDM, TO_ZERO = PROCESSES["edm"](), PROCESSES["jsd"]()
REFUSED = [
    ("uniform", TABLE, {"steps": 0}, "cannot place 0 different steps on a table of 1000"),
    ("leading", TABLE, {"steps": 1001}, "cannot place 1001 different steps"),
    ("quadratic", TABLE, {"steps": 0}, "cannot place 0 different steps"),
    *((grid, EDM, {"steps": 0}, "at least one point") for grid in ("uniform", "leading", "trailing", "log_snr", "karras")),
    *((grid, TABLE, {"steps": 0}, "at least one|cannot place 0") for grid in ("leading", "trailing", "log_snr", "karras")),
    ("trailing", TABLE, {"steps": 1001}, "cannot place 1001 different steps"),
    ("quadratic", EDM, {"steps": 10}, "the quadratic grid is made of a table's integers"),
    ("sections", EDM, {"sections": "10"}, "the sections grid is made of a table's integers"),
    ("log_snr", TO_ZERO, {"steps": 10}, "log-SNR is -inf at t_max"),
    ("karras", PROCESSES["rectified_flow"](t_max=1.0), {"steps": 10}, r"use a grid in t \(uniform, leading, trailing\)"),
    ("explicit", TABLE, {"times": (1.0, 0.0505)}, "must be multiples of 1/1000, found .*0.0505"),
    ("explicit", TABLE, {"times": ()}, "at least one time"),
    ("sections", TABLE, {"sections": "ddim300"}, "no integer stride takes 300 of 1000 steps, as sections='ddim300' asks"),
    ("sections", TABLE, {"sections": "501,3"}, "asks for 501 of the 500 steps of section 1"),
    *(("sections", TABLE, {"sections": words}, "must be counts") for words in ("", "a", "5,,5", "0,5", "-5", "ddim5,5")),
]


@pytest.mark.parametrize("name, process, arguments, words", REFUSED)
def test_refusals(name, process, arguments, words):
    with pytest.raises(ValueError, match=words):
        GRIDS[name](process, **arguments)


@pytest.mark.thorough
@pytest.mark.parametrize("name, knob, value", [("vp", "beta_max", 20.0), ("edm", "sigma_max", 80.0)])
@pytest.mark.parametrize("grid", ["uniform", "trailing", "log_snr", "karras"])
def test_grids_of_traced_parameters(name, knob, value, grid, x64):  # noqa: ARG001
    """Within vmap, jit and differentiation, whose slopes are those of central differences."""

    def times(value):
        return GRIDS[grid](PROCESSES[name](**{knob: value}), steps=5)

    h = 1e-5 * value
    below, above = jax.vmap(times)(value + jnp.array([-h, h]))
    slopes = jax.jit(jax.jacrev(times))(value)
    chex.assert_trees_all_close(slopes, (above - below) / (2 * h), rtol=1e-6, atol=1e-8)


def test_polyexponential_and_beta_by_their_formulas(x64):  # noqa: ARG001
    process = PROCESSES["vp"]()
    first, last = process.t_max, process.t_min.sampling
    logs = [-0.5 * float(process.log_snr(t)) for t in (first, last)]
    ramp = np.linspace(1, 0, 6)
    times = GRIDS["polyexponential"](process, steps=6, rho=2.5)
    np.testing.assert_allclose(-0.5 * process.log_snr(times), logs[1] + ramp**2.5 * (logs[0] - logs[1]), rtol=1e-7)
    np.testing.assert_allclose(GRIDS["polyexponential"](process, steps=6), GRIDS["log_snr"](process, steps=6), rtol=1e-9)

    times = GRIDS["beta"](process, steps=6, beta_a=0.5, beta_b=1.5)
    np.testing.assert_allclose(times, last + stats.beta(0.5, 1.5).ppf(ramp) * (first - last), rtol=1e-9)
    np.testing.assert_allclose(
        GRIDS["beta"](process, steps=6, beta_a=1.0, beta_b=1.0), GRIDS["uniform"](process, steps=6), rtol=1e-9
    )
    table = GRIDS["beta"](PROCESSES["linear"](), steps=5)
    np.testing.assert_allclose(table * 1000, np.rint(1 + 999 * stats.beta(0.6, 0.6).ppf(np.linspace(1, 0, 5))), rtol=1e-9)
    with pytest.raises(ValueError, match="must be positive"):
        GRIDS["beta"](process, steps=6, beta_a=0.0)
