"""What the guarantees cost: python -m experiments.guarantees.measure [rounds]. See README.md beside this file."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from ddpm_jax import platform

platform.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from ddpm_jax.config import presets  # noqa: E402
from ddpm_jax.construct import construct  # noqa: E402
from ddpm_jax.diffusion.keys import Purpose, key_of  # noqa: E402
from ddpm_jax.diffusion.times import Examples  # noqa: E402
from ddpm_jax.optimizers import OPTIMIZERS  # noqa: E402
from ddpm_jax.runs import checkpoints, logs  # noqa: E402
from ddpm_jax.tasks import build  # noqa: E402
from ddpm_jax.training import metrics, parallel  # noqa: E402
from ddpm_jax.training.averages import decayed_average  # noqa: E402
from ddpm_jax.training.step import State, init_state, make_step, run_once  # noqa: E402


def bare_step(task, optimizer, decay, local):
    """Loss, gradient, optimizer and average, and nothing that a run does not need to learn: compiled by jax.jit."""

    def step(state, data, indices):
        key = jax.random.fold_in(key_of(0, Purpose.TRAINING), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(local))
        batch = {name: array[indices[0, 0]] for name, array in data.items()}
        examples = Examples(keys, np.arange(local), local)
        loss, gradients = jax.value_and_grad(lambda params: task.loss(params, batch, examples, ())[0].mean())(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state, (decayed_average(state.ema[0], params, decay, state.step),)), loss

    return jax.jit(step, donate_argnums=0)


def timed(f, *args):
    """(seconds on the clock, seconds of processor time over all threads), f(*args)."""
    start = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(f(*args))
    return (time.perf_counter() - start[0], time.process_time() - start[1]), out


def main(rounds: int) -> None:
    config, devices = presets.small_images(), jax.local_devices()[:1]
    task, optimizer = build(config, (28, 28, 1)), construct(OPTIMIZERS, config.optim)
    decays, batch = config.ema.decays, config.train.batch_size
    random = np.random.default_rng(0)
    data = parallel.replicate({"image": random.integers(0, 256, (4096, 28, 28, 1), np.uint8)}, devices)
    rows = [random.permutation(4096)[:batch].astype(np.int32)[None, None] for _ in range(8)]
    one_device = make_step(task, optimizer, seed=0, ema_decays=decays)
    full = parallel.over_devices(one_device, devices, (None, None, 0), (None, None), donate=(0,))
    steps = {"bare": bare_step(task, optimizer, decays[0], batch), "full": full}
    states = {name: parallel.replicate(run_once(lambda: init_state(task, optimizer, 0, 1)), devices) for name in steps}
    processor = {"bare": [], "full": []}
    seconds = {"bare": [], "full": [], "during a save": [], "save": [], "log": []}

    with tempfile.TemporaryDirectory() as folder:
        manager = checkpoints.open_manager(Path(folder) / "checkpoints", keep_last=2)
        log, pending, skips = logs.Log(Path(folder), 0), {}, {"skipped": 0, "skipped_in_a_row": 0}
        for i in range(rounds + 2):
            for name in sorted(steps, reverse=bool(i % 2)):
                spent, (states[name], seen) = timed(steps[name], states[name], data, rows[i % 8])
                if i >= 2:
                    seconds[name].append(spent[0])
                    processor[name].append(spent[1])
            if i >= 2 and i % 4 == 0:
                state, on_device = states["full"], []
                spent, _ = timed(checkpoints.save, manager, i, state, {"pending": pending, "num_examples": 4096, **skips})
                seconds["save"].append(spent[0])
                for row in rows[:2]:
                    spent, (states["full"], seen) = timed(full, states["full"], data, row)
                    seconds["during a save"].append(spent[0])
                    on_device.append(seen)
                manager.wait_until_finished()
                start = time.perf_counter()
                metrics.collect(on_device * (config.train.log_every // 2), i, pending, skips, 1)
                log.scalars(i, metrics.summarise(pending), task.levels)
                pending.clear()
                seconds["log"].append(time.perf_counter() - start)
        manager.close()

    median = {name: statistics.median(values) for name, values in seconds.items()}
    bare, c = median["bare"], config.train
    clock, busy = ([b / a - 1 for a, b in zip(of["bare"], of["full"], strict=True)] for of in (seconds, processor))
    shares = {
        "metrics and the check for finite numbers, every step": statistics.median(clock),
        f"saving, every {c.checkpoint_every} steps: checksums, copies": median["save"] / (c.checkpoint_every * bare),
        f"saving, every {c.checkpoint_every} steps: two steps while files are written": 2
        * (median["during a save"] - median["full"])
        / (c.checkpoint_every * bare),
        f"a log line, every {c.log_every} steps": median["log"] / (c.log_every * bare),
    }
    for name, value in median.items():
        print(f"{name:<16} {1e3 * value:8.1f} ms, median of {len(seconds[name])}")
    for name, share in shares.items():
        print(f"{name:<80} {100 * share:6.2f} %")
    for words, pairs in (("on the clock", clock), ("in processor time", busy)):
        quartiles = ", ".join(f"{100 * q:.2f} %" for q in statistics.quantiles(pairs, n=4))
        print(f"quartiles of the first over {len(pairs)} pairs of steps, {words}: {quartiles}")
    together = sum(shares.values())
    print(f"{'together':<80} {100 * together:6.2f} %")
    in_processor_time = together - statistics.median(clock) + statistics.median(busy)
    print(f"{'together, with the first in processor time':<80} {100 * in_processor_time:6.2f} %")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
