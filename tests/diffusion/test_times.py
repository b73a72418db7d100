"""The distributions of training times, and the history of the one that learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, logistic, norm
from scipy.stats import uniform as flat

from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.times import TIMES, Examples, History, importance, log_normal, logit_normal, stratified, uniform


def examples(count, seed=1):
    return Examples(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count)), jnp.arange(count), count)


def draw(times, process, count, history=()):
    t, weights = times.draw(process, examples(count), history)
    if times.update is None:
        assert (weights == 1).all() and times.init(process) == ()
    return np.asarray(t)


def test_uniform_times_are_each_table_entry_alike():
    """200,000 draws on 10 steps: counts within 5 standard deviations; every t on the grid n/T, n = 1..T."""
    n = 10 * draw(uniform(), PROCESSES["linear"](steps=10), 200_000)
    np.testing.assert_allclose(n, np.rint(n), atol=1e-5)
    counts = np.bincount(np.rint(n).astype(int), minlength=11)
    assert counts[0] == 0 and len(counts) == 11
    assert np.abs(counts[1:] - 20_000).max() < 5 * np.sqrt(200_000 * 0.1 * 0.9)


@pytest.mark.parametrize("name, t_min", [("vp", None), ("vp", 0.3), ("rectified_flow", None), ("edm", None)])
def test_uniform_times_are_uniform(name, t_min):
    process = PROCESSES[name]()
    low = process.t_min.training if t_min is None else t_min
    t = draw(uniform(t_min=t_min), process, 10_000)
    assert (low <= t).all() and (t <= process.t_max).all()
    assert kstest(t, flat(low, process.t_max - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("t_min", [None, 0.3])
def test_stratified_times_have_one_in_each_part_of_the_span(t_min):
    """B equal parts in the order of the batch, each with a uniform time, whichever part of the batch asks."""
    process, count = PROCESSES["vp"](), 500
    low = process.t_min.training if t_min is None else t_min
    t = draw(stratified(t_min=t_min), process, count)
    shares = count * (t - low) / (process.t_max - low)
    np.testing.assert_allclose(np.floor(shares.clip(1e-3)), np.arange(count), atol=1 - 1e-3)
    assert kstest(shares - np.arange(count), flat.cdf).pvalue > 1e-3
    whole = examples(count)
    part = Examples(whole.keys[100:110], whole.places[100:110], count)
    chex.assert_trees_all_close(stratified(t_min=t_min).draw(process, part, ())[0], t[100:110], rtol=1e-6)


@pytest.mark.parametrize("steps", [5, 64, 1000])
def test_stratified_times_on_a_table(steps):
    """Each n as often as a batch of 64 has room for it, give or take the two strata at its ends."""
    n = np.rint(steps * draw(stratified(), PROCESSES["linear"](steps=steps), 64)).astype(int)
    assert (np.diff(n) >= 0).all() and n.min() >= 1 and n.max() <= steps
    counts = np.bincount(n, minlength=steps + 1)[1:]
    assert np.abs(counts - 64 / steps).max() <= (0 if steps == 64 else 2)


@pytest.mark.parametrize("name", ["rectified_flow", "vp"])
@pytest.mark.parametrize("knobs", [{}, {"location": -0.5, "scale": 0.6, "t_min": 0.3}])
def test_logit_normal_times_are_logit_normal(name, knobs):
    """The share of the span that lies below t has a normal logit."""
    process = PROCESSES[name]()
    t, low = draw(logit_normal(**knobs), process, 10_000), knobs.get("t_min", process.t_min.training)
    share = (t - low) / (process.t_max - low)
    assert kstest(logistic.ppf(share), norm(knobs.get("location", 0), knobs.get("scale", 1)).cdf).pvalue > 1e-3


def test_logit_normal_times_on_a_table():
    """The counts of 10 steps are those of the normal law's parts, within 5 standard deviations."""
    n = np.rint(10 * draw(logit_normal(location=0.3), PROCESSES["linear"](steps=10), 50_000)).astype(int)
    p = np.diff(norm(0.3, 1).cdf(logistic.ppf(np.arange(11) / 10)))
    assert (np.abs(np.bincount(n, minlength=11)[1:] - 50_000 * p) < 5 * np.sqrt(50_000 * p * (1 - p))).all()


@pytest.mark.parametrize("name", ["edm", "vp", "sub_vp", "rectified_flow"])
@pytest.mark.parametrize("knobs", [{}, {"mean": 0.4, "std": 0.8}])
def test_log_normal_times_are_log_normal(name, knobs):
    """log(sigma / alpha) is N(-1.2, 1.2^2), or as asked."""
    process = PROCESSES[name]()
    t = draw(log_normal(**knobs), process, 10_000)
    law = norm(knobs.get("mean", -1.2), knobs.get("std", 1.2))
    assert kstest(np.log(process.sigma(t) / process.alpha(t)), law.cdf).pvalue > 1e-3


def test_log_normal_times_stay_in_the_span():
    process = PROCESSES["edm"](sigma_min=0.1, sigma_max=1.0)
    t = draw(log_normal(), process, 1000)
    assert t.min() == np.float32(0.1) and t.max() == 1 and 0.1 < np.median(t) < 1
    assert draw(log_normal(mean=-7.0), PROCESSES["vp"](), 1000).min() == np.float32(1e-5)  # of training; sampling ends earlier


def test_times_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="log_normal times are continuous.*use uniform"):
        draw(log_normal(), PROCESSES["ncsn"](), 2)
    with pytest.raises(ValueError, match="importance times learn the loss at each step of a table.*use uniform"):
        importance().init(PROCESSES["vp"]())


@pytest.mark.thorough
@pytest.mark.parametrize("process", ["linear", "vp"])
@pytest.mark.parametrize("name", TIMES)
def test_every_time_is_in_the_span_and_depends_on_its_key_and_place_alone(name, process):
    """On a table it is a step. Weights make up for what is drawn more often, or are 1."""
    times, process = TIMES[name](), PROCESSES[process]()
    try:
        together = draw(times, process, 5, times.init(process))
    except ValueError as refusal:
        assert "use uniform" in str(refusal)
        return
    many, weights = times.draw(process, examples(2000), times.init(process))
    assert (process.t_min.training <= many).all() and (many <= process.t_max).all()
    assert abs(weights.mean() - 1) < 5 * max(weights.std(), 1e-6) / np.sqrt(2000)
    if steps := process.num_steps:
        np.testing.assert_allclose(steps * many, np.rint(steps * many), atol=1e-3)
    one = Examples(examples(5).keys[3:4], jnp.array([3]), 5)
    chex.assert_trees_all_close(times.draw(process, one, times.init(process))[0][0], together[3], rtol=1e-6)
    assert len(set(together.tolist())) == 5


# ------------------------------------------------------------------------------------------------ importance


class Reference:
    """The rule in the paper's words: per t a list of its last losses."""

    def __init__(self, steps, kept):
        self.kept, self.losses = kept, [[] for _ in range(steps)]

    def see(self, n, losses):
        for k, loss in zip(n, losses, strict=True):
            self.losses[k - 1] = [*self.losses[k - 1], loss][-self.kept :]

    def p(self, share):
        steps = len(self.losses)
        if any(len(losses) < self.kept for losses in self.losses):
            return np.full(steps, 1 / steps)
        root = np.array([np.sqrt(np.mean(np.square(losses))) for losses in self.losses])
        return (1 - share) * root / root.sum() + share / steps


def test_the_history_is_the_last_losses_of_each_time():
    """Against lists, with batches that have one time more often than losses are kept; and the probabilities, by the weights."""
    steps, kept, share = 6, 4, 0.01
    process, times, random = (
        PROCESSES["linear"](steps=steps),
        importance(kept=kept, uniform_share=share),
        np.random.default_rng(0),
    )
    history, reference, warm = times.init(process), Reference(steps, kept), []
    update, draw = jax.jit(times.update), jax.jit(lambda history: times.draw(process, examples(64), history))
    for _ in range(8):
        t, weights = draw(history)
        p = reference.p(share)
        warm.append(p.std() > 0)
        np.testing.assert_allclose(weights, 1 / (steps * p[np.rint(steps * np.asarray(t)).astype(int) - 1]), rtol=1e-5)
        n = random.choice(steps, 16, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]) + 1
        losses = random.exponential(size=16).astype("f") * n
        history = update(history, jnp.asarray(n, jnp.float32) / steps, losses)
        reference.see(n, losses)
        found = [sorted(row[: min(count, kept)].tolist()) for row, count in zip(history.losses, history.counts, strict=True)]
        np.testing.assert_allclose(np.concatenate(found), np.concatenate([sorted(losses) for losses in reference.losses]))
    assert not warm[0] and not warm[1] and warm[-1]


def test_no_place_of_the_ring_is_written_twice():
    """Of one batch: which of two writes would stay is nowhere said. The last losses of each time are written, no others."""
    kept, written = 4, []

    class Losses:
        """An array that tells where it is written."""

        at = property(lambda self: self)

        def __getitem__(self, places):
            written.extend(zip(*(np.asarray(part).tolist() for part in places), strict=True))
            return self

        def set(self, losses, mode):
            assert mode == "drop" and len(losses) == len(written)

    for count in range(1, 3 * kept):
        written.clear()
        importance(kept=kept).update(History(Losses(), jnp.array([3, 0])), jnp.full(count, 0.5), jnp.arange(count))
        inside = [(n, slot) for n, slot in written if slot < kept]
        assert len(set(inside)) == len(inside) == min(count, kept), count
        assert written[-1] == (0, (3 + count - 1) % kept)


def test_importance_times_have_their_probabilities_and_an_unbiased_mean():
    """60,000 draws of 5 times whose losses are 0 to 4: counts within 5 standard deviations, and the weighted mean is 2."""
    process, times, losses = PROCESSES["linear"](steps=5), importance(uniform_share=0.1), np.arange(5.0)
    history = History(jnp.asarray(losses[:, None] * np.ones(10), jnp.float32), jnp.full(5, 10))
    t, weights = times.draw(process, examples(60_000), history)
    n = np.rint(5 * np.asarray(t)).astype(int)
    p = 0.9 * losses / 10 + 0.02
    assert (np.abs(np.bincount(n, minlength=6)[1:] - 60_000 * p) < 5 * np.sqrt(60_000 * p * (1 - p))).all()
    values = losses[n - 1] * np.asarray(weights)
    assert abs(values.mean() - 2) < 5 * values.std() / np.sqrt(60_000) and values.std() < 1.5


def test_losses_of_0_leave_times_uniform():
    """So every weight is 1."""
    process, times = PROCESSES["linear"](steps=2), importance(kept=2)
    history = times.init(process)
    for _ in range(2):
        history = times.update(history, jnp.array([0.5, 1.0]), jnp.zeros(2))
    t, weights = times.draw(process, examples(64), history)
    assert (weights == 1).all() and set(np.asarray(t).tolist()) == {0.5, 1.0}
