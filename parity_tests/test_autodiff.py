"""The autograd tools: the same numbers as torch's own means give, and anomalies named where they arise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxarch import autodiff, catalog, nn, state
from jaxarch.convert import load_state_dict
from jaxarch.errors import UsageError
from jaxarch.parallel import make_mesh, parse_mesh
from jaxarch.train import loop, optim, step, tasks
from torchref import autodiff as reference
from torchref import losses as torch_losses
from torchref import train as torch_train

ROWS = 8
PLAIN = {"hidden_dims": [64, 32], "dropout_rate": 0.0, "batch_norm": False}


def twins():
    torch.manual_seed(0)
    theirs = catalog.create_model("mlp", "tiny", package="torchref", **PLAIN).double()
    ours = catalog.create_model("mlp", "tiny", **PLAIN)
    load_state_dict(ours, theirs.state_dict())
    return ours, theirs


def data():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(ROWS, 10)), rng.integers(0, 5, ROWS)
    batch = {"x": x, "label": label}
    return {k: jnp.asarray(v) for k, v in batch.items()}, {k: torch.from_numpy(v) for k, v in batch.items()}


def close(ours, theirs, bound=1e-10):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], np.asarray(value), rtol=bound, atol=1e-14, err_msg=key)


@pytest.fixture(scope="module")
def monitored():
    """Two steps of both packages with every measure on; ours over eight devices."""
    ours, theirs = twins()
    mine, his = data()
    ours.train(), theirs.train()
    graph, params, rest = state.split(ours)
    monitor = autodiff.AutogradMonitor(ours, bins=12)
    optimizer = optim.create_optimizer("adamw", learning_rate=1e-2, weight_decay=0.1)
    now = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state={"model": optimizer.init(params)},
        average={},
    )
    mesh = make_mesh(parse_mesh("data=2,fsdp=4"))
    placed = loop.placement(now, mesh, {})
    now = jax.device_put(now, placed)
    assert any("fsdp" in str(x.sharding.spec) for x in now.params.values())
    task = tasks.task("classification")
    advance = step.make_train_step(graph, task, {"model": optimizer}, placed=placed, monitor=monitor)
    batch = jax.device_put(mine, jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    seen = []
    for _ in range(2):
        now, metrics = advance(now, batch)
        seen.append(metrics["monitor"])

    check = reference.AutogradMonitor(theirs, bins=12)
    own = torch_train.create_optimizer(theirs, learning_rate=1e-2, weight_decay=0.1)
    expected = []
    for _ in range(2):
        own.zero_grad()
        with check.watch(theirs) as zeros:
            torch_losses.cross_entropy(theirs(his["x"]), his["label"]).backward()
        expected.append({"zero_activations": zeros, **check.step(theirs, own)})
    return monitor, seen, check, expected


def test_monitor(monitored):
    monitor, seen, check, expected = monitored
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for measure in theirs:
            close(ours[measure], theirs[measure])
        assert sum(float(v) > 0.05 for v in ours["zero_activations"].values()) > 1
        whole = sum(float(v) ** 2 for k, v in ours["grad_norm"].items() if k)
        np.testing.assert_allclose(float(ours["grad_norm"][""]) ** 2, whole, rtol=1e-12)
    assert monitor.table(seen[0]) == check.table(expected[0])


def test_monitor_knows_a_convolutions_units():
    """Two of a kernel's output units get no gradient; ours are on the last axis, torch's on the first."""
    theirs = torch.nn.Conv2d(3, 5, 2)
    ours = nn.Conv2d(3, 5, 2, rngs=nnx.Rngs(0))
    gradient = np.random.default_rng(0).normal(size=(5, 3, 2, 2))
    gradient[[1, 4]] = 0
    mine = {"weight": jnp.asarray(gradient.transpose(nn.Conv2d.LAYOUT["weight"]))}
    his = {"weight": torch.from_numpy(gradient)}
    measures = autodiff.AutogradMonitor(ours, bins=6).measure(mine, mine, mine)
    expected = reference.AutogradMonitor(theirs, bins=6).measure(his, his, his)
    assert float(measures["dead_rows"]["weight"]) == 0.4
    for measure in expected:
        close(measures[measure], expected[measure])
    assert int(measures["histogram"]["weight"].sum()) == 60
    assert int(measures["histogram"]["weight"][0]) == 24


def test_debugger_names_what_is_wrong():
    rng = np.random.default_rng(0)
    gradients = {k: rng.normal(size=(3, 4)) for k in ("fine", "a.nan", "b.inf", "c.large", "d.small", "e.zero")}
    gradients["a.nan"][0, 1] = np.nan
    gradients["b.inf"][2] = -np.inf
    gradients["c.large"] *= 1e6
    gradients["d.small"] *= 1e-9
    gradients["e.zero"] *= 0
    ours = autodiff.AutogradDebugger().check({k: jnp.asarray(v) for k, v in gradients.items()})
    theirs = reference.AutogradDebugger().check({k: torch.from_numpy(v) for k, v in gradients.items()})
    found = [(f.path, f.kind) for f in ours]
    assert found == [
        ("a.nan", "nan"), ("b.inf", "inf"), ("c.large", "exploding"), ("d.small", "vanishing"), ("e.zero", "vanishing")
    ]  # fmt: skip
    assert [(f.path, f.kind) for f in theirs] == found
    np.testing.assert_allclose([f.value for f in ours], [f.value for f in theirs], rtol=1e-12)
    assert str(ours[0]) == str(theirs[0]) == "a.nan: nan (1 entries)"


POINT = {"w": np.random.default_rng(1).normal(size=(4, 3)), "b": np.random.default_rng(2).normal(size=3)}
OURS, THEIRS = {k: jnp.asarray(v) for k, v in POINT.items()}, {k: torch.from_numpy(v) for k, v in POINT.items()}


def smooth(p):
    return (jnp.tanh(p["w"] @ p["b"]) ** 3 * jnp.exp(-p["w"].sum(1) ** 2)).sum()


def smooth_torch(p):
    if any(v.is_complex() for v in p.values()):
        p = {k: v.to(torch.complex128) for k, v in p.items()}
    return (torch.tanh(p["w"] @ p["b"]) ** 3 * torch.exp(-(p["w"].sum(1) ** 2))).sum()


@pytest.mark.parametrize(("method", "bound"), [("central", 1e-7), ("complex", 1e-14)])
def test_verify_gradients(method, bound):
    ours = autodiff.verify_gradients(smooth, OURS, method=method)
    theirs = reference.verify_gradients(smooth_torch, THEIRS, method=method)
    assert ours.keys() == theirs.keys() == POINT.keys()
    assert max(*ours.values(), *theirs.values()) < bound


def test_verify_gradients_finds_a_wrong_one():
    @jax.custom_vjp
    def wrong(x):
        return jnp.sin(x)

    wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x) * 1.001,))

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos() * 1.001

    ours = autodiff.verify_gradients(lambda p: smooth({**p, "b": wrong(p["b"])}), OURS)
    theirs = reference.verify_gradients(lambda p: smooth_torch({**p, "b": Wrong.apply(p["b"])}), THEIRS)
    for found in (ours, theirs):
        assert found["w"] < 1e-7
        assert 1e-5 < found["b"] < 1e-2
    assert ours["b"] == pytest.approx(theirs["b"], rel=1e-4)


def test_complex_step_refuses_what_is_not_analytic():
    for check, function, point, error in (
        (autodiff, lambda p: jnp.abs(p["w"]).sum(), OURS, UsageError),
        (autodiff, lambda p: jax.nn.relu(p["w"]).sum(), OURS, UsageError),
        (reference, lambda p: p["w"].abs().sum(), THEIRS, ValueError),
        (reference, lambda p: p["w"].relu().sum(), THEIRS, ValueError),
    ):
        with pytest.raises(error, match="complex step does not apply"):
            check.verify_gradients(function, {"w": point["w"]}, method="complex")
    with pytest.raises(UsageError, match="float32"):
        autodiff.verify_gradients(smooth, {"w": jnp.zeros(2, jnp.float32)})
    with pytest.raises(UsageError, match="did you mean 'central'"):
        autodiff.verify_gradients(smooth, OURS, method="centra")
