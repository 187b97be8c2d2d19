"""A checkpoint is whole or is not there; what has changed on disk is refused by name."""

import json
import logging
import os
import resource
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxarch import files, optim
from jaxarch.convert.tensors import Tensor
from jaxarch.errors import CheckpointError
from jaxarch.train import checkpoint
from jaxarch.train.former import with_current_slots

ABOUT = {"name": "mlp", "variant": "tiny", "overrides": {}}


@pytest.fixture
def tree():
    return {
        "params": {"a.weight": jnp.arange(60000.0).reshape(200, 300), "a.bias": jnp.ones(3, jnp.bfloat16)},
        "rest": {"drop.rngs.key": jax.random.key(3), "drop.rngs.count": jnp.asarray(7, jnp.uint32)},
        "step": jnp.asarray(5, jnp.int32),
    }


@pytest.fixture
def folder(tmp_path, tree):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tree, ABOUT)
    return tmp_path


def abstract(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: tree)
    return checkpoint.flatten(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    )


def largest_file(path):
    return max(
        (p for p in (path / checkpoint.ARRAYS).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_there_and_back_is_bitwise(folder, tree):
    step, leaves, about = checkpoint.latest_intact(folder, abstract(tree))
    assert (step, about["step"], about["name"]) == (3, 3, "mlp")
    again = checkpoint.unflatten(tree, leaves)
    key, other = tree["rest"].pop("drop.rngs.key"), again["rest"].pop("drop.rngs.key")
    chex.assert_trees_all_equal(again, tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(again, tree)
    assert jax.random.bits(key) == jax.random.bits(other)


def test_a_former_group_is_read_under_its_name_of_today(tmp_path, tree):
    """Checkpoints of earlier versions hold the averaged parameters as `average/`."""
    weight = tree["params"]["a.weight"]
    checkpoint.save(tmp_path / checkpoint.FOLDER, 1, {**tree, "average": {"a.weight": weight + 1}}, ABOUT)
    like = abstract({**tree, "ema_params": {"a.weight": weight}})
    leaves = checkpoint.read(tmp_path / checkpoint.FOLDER / "1", like)
    np.testing.assert_array_equal(leaves["ema_params/a.weight"], weight + 1)
    restored = checkpoint.load(tmp_path)
    assert restored.ema_params.keys() == {"a.weight"}
    np.testing.assert_array_equal(restored.ema_params["a.weight"], weight + 1)
    np.testing.assert_array_equal(restored.params["a.weight"], weight)


def test_only_the_newest_are_kept(folder, tree):
    checkpoint.save(folder, 4, tree, ABOUT, keep=2)
    assert checkpoint.steps(folder) == [3, 4]


DAMAGE = {
    "a flipped byte": lambda path: flip(largest_file(path)),
    "a truncated file": lambda path: os.truncate(largest_file(path), 10),
    "a missing file": lambda path: largest_file(path).unlink(),
    "no checksums": lambda path: (path / checkpoint.SUMS).unlink(),
    "damaged checksums": lambda path: (path / checkpoint.SUMS).write_text("{"),
    "checksums of something else": lambda path: (path / checkpoint.SUMS).write_text("{}"),
    "a damaged description": lambda path: (path / checkpoint.ABOUT).write_text("[]"),
    "damaged metadata": lambda path: [
        p.write_text("x") for p in (path / checkpoint.ARRAYS).rglob("_METADATA")
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_step_before(folder, tree, damage, caplog):
    DAMAGE[damage](folder / "3")
    with caplog.at_level(logging.WARNING):
        step, leaves, _ = checkpoint.latest_intact(folder, abstract(tree))
    assert step == 2
    assert "trying the checkpoint before it" in caplog.text
    np.testing.assert_array_equal(leaves["params/a.weight"], tree["params"]["a.weight"])


def test_nothing_intact_is_an_error(folder, tree):
    for step in (1, 2, 3):
        flip(largest_file(folder / str(step)))
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        checkpoint.latest_intact(folder, abstract(tree))


@pytest.mark.parametrize("change", ["dtype", "shape", "missing", "extra"])
def test_another_target_is_refused(folder, tree, change):
    like = abstract(tree)
    old = like["params/a.weight"]
    if change == "missing":
        like["params/b"] = old
    elif change == "extra":
        del like["params/a.weight"]
    else:
        new = {"dtype": ((200, 300), jnp.float32), "shape": ((300, 200), jnp.float64)}[change]
        like["params/a.weight"] = jax.ShapeDtypeStruct(*new, sharding=old.sharding)
    with pytest.raises(CheckpointError, match=r"params/b|params/a\.weight"):
        checkpoint.read(folder / "3", like)


def test_a_full_disk_leaves_the_older_ones(folder, tree, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp, "save", full)
    with pytest.raises(CheckpointError, match=r"No space left.*free space"):
        checkpoint.save(folder, 4, tree, ABOUT)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]
    checkpoint.latest_intact(folder, abstract(tree))


LIMITED = """
import json, pathlib, resource, signal, sys
import jax.numpy as jnp
from jaxarch import files
from jaxarch.errors import CheckpointError
from jaxarch.train import checkpoint
folder = pathlib.Path(sys.argv[1])
checkpoint.save(folder, 1, {"a": jnp.ones(3)}, {})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
import numpy as np
try:
    checkpoint.save(folder, 2, {"a": jnp.asarray(np.random.default_rng(0).normal(size=400_000))}, {})
except CheckpointError as e:
    print(json.dumps({"error": str(e), "left": sorted(p.name for p in folder.iterdir())}))
"""


def test_a_disk_that_takes_no_more(tmp_path):
    assert resource.RLIMIT_FSIZE
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = json.loads(done.stdout.strip().splitlines()[-1])
    assert "could not be written" in printed["error"]
    assert printed["left"] == ["1"]


def test_stale_temporary_folders_are_cleaned_and_those_of_the_living_left(folder, tree):
    dead = subprocess.Popen(["true"])
    dead.wait()
    stale = [
        folder / f".9.{dead.pid}.tmp",
        files.private_name(folder / "8"),
    ]  # of an earlier version, of today
    alive = folder / ".7.1.tmp"
    for path in (*stale, alive):
        path.mkdir()
    stale[1] = stale[1].rename(folder / stale[1].name.replace(str(os.getpid()), str(dead.pid)))
    checkpoint.save(folder, 4, tree, ABOUT)
    assert checkpoint.steps(folder) == [2, 3, 4]
    assert list(folder.glob(".*")) == [alive]


def as_former(leaves):
    """The leaves of a state of AdamW as they were named: optax's chain of clipping, moments, decay and rate."""
    names = {"slots/exp_avg/": "0/0/mu/", "slots/exp_avg_sq/": "0/0/nu/"}
    renamed = {}
    for key, value in leaves.items():
        for new, old in names.items():
            key = key.replace(new, old)
        if key.endswith("1/count"):
            renamed |= {
                key.replace("1/count", "1/0/0/count"): value,
                key.replace("1/count", "1/1/count"): value,
            }
        elif not key.endswith("scalars/step"):
            renamed[key] = value
    return renamed


def test_former_optimizer_states_are_read():
    """A checkpoint whose moments have optax's names gives the state of today, in every bit."""
    rule = optim.create_optimizer("adamw", learning_rate=0.1, max_grad_norm=1.0)
    params = {"a.weight": jnp.ones((2, 3)), "a.bias": jnp.ones(3)}
    _, state = rule.update(params, rule.init(params), params)
    leaves = checkpoint.flatten({"opt_state": {"model": state}, "params": params})
    tensors = {k: Tensor.of(np.asarray(v)) for k, v in as_former(leaves).items()}
    assert set(tensors) != set(leaves)
    current = with_current_slots(tensors, leaves)
    assert set(current) == set(leaves)
    for key, value in leaves.items():
        np.testing.assert_array_equal(current[key].read(), value)
    assert set(with_current_slots({k: v for k, v in tensors.items() if "/mu/" not in k}, leaves)) < set(
        leaves
    )
