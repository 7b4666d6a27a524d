"""A training run is killed with SIGKILL, resumes, and ends up the same, bit for bit.

    python examples/train_digits.py [--steps N] [--directory DIR] [--seed S]

The model is a small classifier with dropout and batch normalisation, trained on the
handwritten digits that ship inside scikit-learn. `train` below is the part to copy into
a training script of your own; the rest of the file is the experiment around it:

1. train once, undisturbed;
2. train again in another process, and kill that process at a random moment, perhaps in
   the middle of a save;
3. start the same command once more: it resumes from the newest complete checkpoint;
4. compare every loss since then, and the final parameters, optimizer state, batch
   statistics and random streams, with those of the undisturbed run;
5. read the last checkpoint with Orbax and compare that, too.

It prints a table, saves a picture of both runs, and exits with 1 if one bit differs.
To train only, and to interrupt the run yourself: `--train DIR`, as often as you like.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# One program on one kind of processor adds up in one order: that is what makes equal
# bits a fair demand. The 1797 small pictures need no accelerator anyway.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import grain
import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import stowax as ocp
import stowax_flax
import stowax_grain
import stowax_optax

SAVE_EVERY_STEPS = 10
BATCH_SIZE = 64
TRAIN_COUNT = 1500


class Classifier(nnx.Module):
    """Two layers, with both kinds of state that are easily lost on the way to disk."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.BatchNorm(128, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.output = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images of float32[batch, 64] to logits of float32[batch, 10]."""
        hidden = nnx.relu(self.norm(self.hidden(images)))
        return self.output(self.dropout(hidden))


def read_digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the digits to train on, and those to test with."""
    digits = load_digits()
    arrays = {
        "image": (digits.data / 16).astype(np.float32),
        "label": digits.target.astype(np.int32),
    }
    train_digits = {name: array[:TRAIN_COUNT] for name, array in arrays.items()}
    test_digits = {name: array[TRAIN_COUNT:] for name, array in arrays.items()}
    return train_digits, test_digits


def make_dataset(digits: dict[str, np.ndarray]) -> grain.IterDataset:
    """Shuffles anew in every epoch, without end."""
    indices = grain.MapDataset.range(len(digits["label"]))
    examples = indices.shuffle(seed=1).map(
        lambda i: {name: values[i] for name, values in digits.items()}
    )
    return examples.repeat().to_iter_dataset().batch(BATCH_SIZE)


@nnx.jit
def train_step(
    model: Classifier, optimizer: nnx.Optimizer, batch: dict[str, jax.Array]
) -> jax.Array:
    """Updates `model` and `optimizer` in place."""

    def loss_of(model: Classifier) -> jax.Array:
        logits = model(batch["image"])
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return entropy(logits, batch["label"]).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def train(directory: Path, steps: int) -> None:
    """Trains to `steps` steps, resuming from the newest checkpoint in `directory`."""
    train_digits, test_digits = read_digits()
    model = Classifier(nnx.Rngs(params=0, dropout=1))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak_value=3e-3, warmup_steps=20, decay_steps=steps
    )
    updates = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    optimizer = nnx.Optimizer(model, updates, wrt=nnx.Param)
    data = iter(make_dataset(train_digits))
    progress = {"examples_seen": 0, "lowest_loss": float("inf")}

    # Everything that the next step depends on. Saving reads these objects, loading
    # writes into them; `progress` is plain JSON and is handed over each time.
    checkpointables = {
        "model": stowax_flax.Module(model),
        "optimizer": stowax_optax.State(optimizer),
        "data": stowax_grain.Iterator(data),
    }
    saving = ocp.training.save_decision_policies.FixedIntervalPolicy(SAVE_EVERY_STEPS)
    keeping = ocp.training.preservation_policies.LatestN(3)
    with ocp.training.Checkpointer(
        directory, save_decision_policy=saving, preservation_policy=keeping
    ) as checkpointer:
        start = 0
        if checkpointer.latest is not None:
            start = checkpointer.latest.step
            loaded = checkpointer.load_checkpointables(
                start, {**checkpointables, "progress": None}
            )
            progress = loaded["progress"]
        report(start=start)

        for step in range(start + 1, steps + 1):
            loss = float(train_step(model, optimizer, next(data)))
            progress = {
                "examples_seen": step * BATCH_SIZE,
                "lowest_loss": min(loss, progress["lowest_loss"]),
            }
            # Returns as soon as the values are safe from the next step; the files are
            # written while training goes on. Steps that are not due cost nothing.
            checkpointer.save_checkpointables_async(
                step, {**checkpointables, "progress": progress}, force=step == steps
            )
            report(step=step, loss=loss.hex())

    model.eval()
    guesses = model(test_digits["image"]).argmax(axis=-1)
    report(
        accuracy=float((guesses == test_digits["label"]).mean()),
        progress=progress,
        digests=digest_leaves(nnx.state((model, optimizer))),
    )


def report(**values: Any) -> None:
    """Tells whoever started this process, one JSON document per line."""
    print(json.dumps(values), flush=True)


# --- The experiment ---------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Run:
    """What one training process reported."""

    start: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)


def run_training(
    directory: Path, steps: int, log: Path, kill_step: int = 0, delay_secs: float = 0
) -> Run:
    """Runs `train` in a child process; kills it soon after it reports `kill_step`."""
    run = Run()
    command = [sys.executable, __file__, "--train", directory, "--steps", str(steps)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with child, log.open("w") as reports:
        for line in child.stdout:
            if not line.endswith("\n"):
                break  # The kill cut it.
            reports.write(line)
            match json.loads(line):
                case {"start": start}:
                    run.start = start
                case {"step": step, "loss": loss}:
                    run.losses[step] = float.fromhex(loss)
                    if step == kill_step:
                        time.sleep(delay_secs)  # Into a later step, or into a save.
                        child.kill()
                case end:
                    run.end = end
    expected = -signal.SIGKILL if kill_step else 0
    if child.returncode != expected:
        sys.exit(f"training in {directory}: exit {child.returncode}, not {expected}")
    return run


def digest_leaves(tree: Any) -> dict[str, str]:
    """Returns a SHA-256 of dtype, shape and bytes for every leaf, by its path."""
    digests = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        content = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def compare_runs(undisturbed: Run, killed: Run, resumed: Run) -> list[str]:
    """Says where the runs differ; an empty list is the promise kept."""
    problems = [
        f"step {step}: loss {loss.hex()} was {undisturbed.losses[step].hex()}"
        for run in (killed, resumed)
        for step, loss in run.losses.items()
        if loss.hex() != undisturbed.losses[step].hex()
    ]
    later_steps = range(resumed.start + 1, max(undisturbed.losses) + 1)
    if not later_steps or list(resumed.losses) != list(later_steps):
        problems.append(f"{len(resumed.losses)} of {len(later_steps)} steps resumed")
    if resumed.end["progress"] != undisturbed.end["progress"]:
        problems.append(f"final progress: {resumed.end['progress']}")
    return problems + compare_digests(
        "final", resumed.end["digests"], undisturbed.end["digests"]
    )


def compare_digests(what: str, one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names the leaves that differ, or are missing on one side."""
    names = sorted(one.keys() | other.keys())
    return [f"{what} {n} differs" for n in names if one.get(n) != other.get(n)]


def compare_with_orbax(directory: Path) -> tuple[int, list[str]]:
    """Reads the newest checkpoint with Stowax and with Orbax, without adapters."""
    from orbax.checkpoint import v1 as orbax

    # Orbax warns that it takes the shardings from the checkpoint, as it should.
    warnings.filterwarnings("ignore", "Sharding info not provided")
    digests = []
    for library in (ocp, orbax):
        with library.training.Checkpointer(directory.absolute()) as checkpointer:
            digests.append(digest_leaves(checkpointer.load_checkpointables()))
    return len(digests[1]), compare_digests("read by Orbax,", *digests)


def draw(path: Path, undisturbed: Run, killed: Run, resumed: Run) -> None:
    """Saves a picture of the losses of all runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for run, label, color, width in (
        (undisturbed, "undisturbed", "0.8", 7),
        (killed, "until the kill", "tab:orange", 2.5),
        (resumed, "resumed", "tab:blue", 1.2),
    ):
        steps, losses = run.losses.keys(), run.losses.values()
        axes.plot(list(steps), list(losses), label=label, color=color, linewidth=width)
    kill = max(killed.losses)
    axes.axvline(kill, color="tab:red", linestyle="--", linewidth=1)
    text = f" SIGKILL after step {kill},\n resumed from step {resumed.start}"
    axes.text(kill, max(undisturbed.losses.values()), text, color="tab:red", va="top")
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.set_title("Handwritten digits, killed and resumed", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=130)


def run_experiment(directory: Path, steps: int, seed: int) -> list[str]:
    """Runs the five parts, prints the table, returns what went wrong."""
    began_secs = time.monotonic()
    chance = random.Random(seed)
    kill_step = chance.randint(2 * SAVE_EVERY_STEPS + 1, steps // 2)
    delay_secs = chance.uniform(0, 0.02)
    calm, stormy = directory / "undisturbed", directory / "interrupted"
    shutil.rmtree(calm, ignore_errors=True)
    shutil.rmtree(stormy, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)

    undisturbed = run_training(calm, steps, directory / "undisturbed.jsonl")
    log = directory / "killed.jsonl"
    killed = run_training(stormy, steps, log, kill_step, delay_secs)
    drafts = list(stormy.glob("*.orbax-checkpoint-tmp*"))
    resumed = run_training(stormy, steps, directory / "resumed.jsonl")

    problems = compare_runs(undisturbed, killed, resumed)
    orbax_count, orbax_problems = compare_with_orbax(stormy)
    draw(directory / "losses.png", undisturbed, killed, resumed)

    rows = {
        "steps": f"{steps}, a checkpoint every {SAVE_EVERY_STEPS}",
        "killed at step": f"{max(killed.losses)} (--seed {seed})",
        "within a save": "yes, its unfinished draft stayed behind" if drafts else "no",
        "resumed from step": f"{resumed.start}",
        "losses compared": f"{len(killed.losses)} before, {len(resumed.losses)} after",
        "arrays compared": f"{len(resumed.end['digests'])} of model, optimizer, RNG",
        "equal bit for bit": "NO" if problems else "yes",
        "leaves in Orbax": f"{orbax_count}, equal: {'NO' if orbax_problems else 'yes'}",
        "test accuracy": f"{resumed.end['accuracy']:.1%}",
        "seconds": f"{time.monotonic() - began_secs:.0f}",
    }
    rule = "─" * 60
    lines = [f"{name:<20}{value}" for name, value in rows.items()]
    print("", "Killed and resumed", rule, *lines, rule, sep="\n")
    print(f"Both loss curves: {directory / 'losses.png'}")
    return problems + orbax_problems


def main() -> int:
    """Reads the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="at least 60")
    parser.add_argument("--directory", type=Path, default=Path("build/train_digits"))
    parser.add_argument("--seed", type=int, help="when to kill; random if not given")
    parser.add_argument("--train", type=Path, metavar="DIR", help="only train, in DIR")
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train.absolute(), arguments.steps)
        return 0
    if arguments.steps < 6 * SAVE_EVERY_STEPS:
        parser.error(f"--steps must be at least {6 * SAVE_EVERY_STEPS}")
    seed = random.randrange(10_000) if arguments.seed is None else arguments.seed
    problems = run_experiment(arguments.directory, arguments.steps, seed)
    for problem in problems:
        print(f"DIFFERENT: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
