"""The autograd tools: the same numbers as torch's own means give, and anomalies named where they arise."""

import time
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxarch import autodiff, catalog, nn, optim, state
from jaxarch.convert import load_state_dict
from jaxarch.errors import UsageError
from jaxarch.parallel import make_mesh, parse_mesh
from jaxarch.train import step, tasks
from jaxarch.train.plan import placement
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
    monitor = autodiff.AutogradMonitor(ours, bins=12, every=2)
    optimizer = optim.create_optimizer("adamw", learning_rate=1e-2, weight_decay=0.1)
    now = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state={"model": optimizer.init(params)},
        ema_params={},
    )
    mesh = make_mesh(parse_mesh("data=2,fsdp=4"))
    shardings = placement(now, mesh, {})
    now = jax.device_put(now, shardings)
    assert any("fsdp" in str(x.sharding.spec) for x in now.params.values())
    task = tasks.task("classification")
    advance = step.make_train_step(graph, task, {"model": optimizer}, shardings=shardings, monitor=monitor)
    batch = jax.device_put(mine, jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    seen = []
    for _ in range(2):
        now, metrics = advance(now, batch)
        seen.append(metrics["monitor"])

    check = reference.AutogradMonitor(theirs, bins=12, every=2)
    own = torch_train.create_optimizer(theirs, learning_rate=1e-2, weight_decay=0.1)
    expected = []
    for i in range(2):
        own.zero_grad()
        with check.watch(theirs, i) as zeros:
            torch_losses.cross_entropy(theirs(his["x"]), his["label"]).backward()
        expected.append({"zero_activations": zeros, **check.step(theirs, own, i)})
    return monitor, seen, check, expected


def test_monitor(monitored):
    monitor, seen, check, expected = monitored
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for measure in theirs:
            close(ours[measure], theirs[measure])
        whole = sum(float(v) ** 2 for k, v in ours["grad_norm"].items() if k)
        np.testing.assert_allclose(float(ours["grad_norm"][""]) ** 2, whole, rtol=1e-12)
    # Two activations and what they are in; the second step is not due.
    assert sum(float(v) > 0.05 for v in seen[0]["zero_activations"].values()) > 1
    assert {float(v) for v in seen[1]["zero_activations"].values()} == {-1.0}
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
    gradients = {
        k: rng.normal(size=(3, 4)) for k in ("fine", "a.nan", "b.inf", "c.large", "d.small", "e.zero")
    }
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
OURS, THEIRS = (
    {k: jnp.asarray(v) for k, v in POINT.items()},
    {k: torch.from_numpy(v) for k, v in POINT.items()},
)


def smooth(p):
    return (jnp.tanh(p["w"] @ p["b"]) ** 3 * jnp.exp(-(p["w"].sum(1) ** 2))).sum()


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


class Logs(nn.Module):
    def __call__(self, x):
        return jnp.log(x)


class Root(nn.Module):
    def __call__(self, x):
        return jnp.sqrt((x * 0) ** 2)


class Masked(nn.Module):
    """Its NaN is masked away, and its gradient is finite."""

    def __call__(self, x):
        return jnp.where(jax.lax.stop_gradient(jnp.log(-jnp.abs(x) - 1)) > 0, 0.0, x)


class TorchLogs(torch.nn.Module):
    def forward(self, x):
        return x.log()


class TorchRoot(torch.nn.Module):
    def forward(self, x):
        return ((x * 0) ** 2).sqrt()


class TorchMasked(torch.nn.Module):
    def forward(self, x):
        return torch.where((-x.abs() - 1).log().detach() > 0, 0.0, x)


class Rematerialised(nn.Module):
    def __call__(self, x):
        return jax.checkpoint(lambda x: jnp.log(x))(x)


def squares(model, x):
    return (model(x) ** 2).sum()


def line_of(anomaly):
    """The text of the line that an anomaly names."""
    file, number = anomaly.line.split(" ")[0].split(":")
    assert file == "parity_tests/rooms/test_autodiff.py"
    return (Path(__file__).parents[2] / file).read_text().splitlines()[int(number) - 1]


@pytest.mark.parametrize(
    ("ours", "theirs", "primitive", "phase", "line"),
    [
        (Logs, TorchLogs, "log", "forward", "log("),
        (Root, TorchRoot, "mul", "backward", "** 2)"),
        (Rematerialised, TorchLogs, "log", "forward", "log("),
    ],
)
def test_anomaly_is_named(ours, theirs, primitive, phase, line):
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(4, 3, rngs=nnx.Rngs(0)), Masked(), nn.Sequential(ours(), Masked()))
    his = torch.nn.Sequential(
        torch.nn.Linear(4, 3), TorchMasked(), torch.nn.Sequential(theirs(), TorchMasked())
    )
    his.double()
    load_state_dict(mine, his.state_dict())
    x = np.random.default_rng(0).normal(size=(4, 4))
    says = rf"produced by {primitive}, {phase}, in module 2\.0, at"
    with pytest.raises(autodiff.AnomalyError, match=says) as caught:
        autodiff.detect_anomaly(squares, mine, jnp.asarray(x))
    with pytest.raises(reference.AnomalyError, match=rf"NaN .* {phase}, in module 2\.0, at") as other:
        reference.detect_anomaly(squares, his, torch.from_numpy(x))
    assert line in line_of(caught.value.anomaly)
    assert line in line_of(other.value.anomaly)
    bad = x * np.nan
    for check, model, x in ((autodiff, mine, jnp.asarray(bad)), (reference, his, torch.from_numpy(bad))):
        found = check.first_anomaly(squares, model, x)
        assert found.primitive == "argument"
        assert str(found) == "argument [1] was already non-finite"


def test_no_anomaly_costs_nothing_but_a_test():
    mine = nn.Sequential(nn.Linear(4, 3, rngs=nnx.Rngs(0)), Masked())
    his = torch.nn.Sequential(torch.nn.Linear(4, 3), TorchMasked()).double()
    load_state_dict(mine, his.state_dict())
    x = np.random.default_rng(0).normal(size=(4, 4))
    loss, gradients = autodiff.detect_anomaly(squares, mine, jnp.asarray(x))
    expected, theirs = reference.detect_anomaly(squares, his, torch.from_numpy(x))
    gradients["0.weight"] = gradients["0.weight"].T
    close({"loss": loss, **gradients}, {"loss": expected, **theirs})
    assert autodiff.first_anomaly(squares, mine, jnp.asarray(x)) is None
    assert reference.first_anomaly(squares, his, torch.from_numpy(x)) is None


def test_a_monitored_step_knows_its_modules():
    """A compiled training step, taken apart after the fact."""
    model = nn.Sequential(nn.Linear(4, 3, rngs=nnx.Rngs(0)), nn.Sequential(Logs()))
    graph, params, rest = state.split(model)
    optimizer = optim.create_optimizer("sgd", learning_rate=1e-2)
    now = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state={"model": optimizer.init(params)},
        ema_params={},
    )
    monitor = autodiff.AutogradMonitor(model)
    advance = step.make_train_step(graph, tasks.task("classification"), optimizer, monitor=monitor)
    batch = {"input": -jnp.ones((2, 4)) * params["0.weight"].sum(1), "label": jnp.zeros(2, int)}
    found = autodiff.first_anomaly(advance, now, batch)
    assert (found.primitive, found.module, found.phase) == ("log", "1.0", "forward")
    assert "log(x)" in line_of(found)


def test_profiler(tmp_path):
    for check, work in (
        (autodiff, lambda: jnp.ones((64, 64)) @ jnp.ones((64, 64))),
        (reference, lambda: torch.ones(64, 64) @ torch.ones(64, 64)),
    ):
        profiler = check.AutogradProfiler()
        folder = tmp_path / check.__name__
        with profiler.trace(folder):
            for _ in range(2):
                with profiler.section("step"):
                    with profiler.section("forward") as section:
                        section.watch(work())
                    with profiler.section("backward"):
                        time.sleep(0.01)
            with profiler.section("evaluation"):
                pass
        rows = {r.path: r for r in profiler.rows()}
        assert [(p, r.calls) for p, r in rows.items()] == [
            (("step",), 2), (("step", "forward"), 2), (("step", "backward"), 2), (("evaluation",), 1)
        ]  # fmt: skip
        assert rows[("step", "backward")].total >= 0.02
        own = rows[("step",)].own + rows[("step", "forward")].total + rows[("step", "backward")].total
        assert own == pytest.approx(rows[("step",)].total)
        assert [line.split()[0] for line in profiler.summary().splitlines()[1:]] == [p[-1] for p in rows]
        assert any(p.stat().st_size for p in folder.rglob("*.json*"))


@pytest.mark.parametrize("bias", [True, False])
def test_custom_linear(bias):
    torch.manual_seed(0)
    his = reference.CustomLinear(4, 3, bias).double()
    mine = autodiff.CustomLinear(4, 3, bias, rngs=nnx.Rngs(0))
    load_state_dict(mine, his.state_dict())
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    graph, params, rest = state.split(mine)

    def cubes(p):
        return (state.merge(graph, {k: p[k] for k in params}, rest)(p["x"]) ** 3).sum()

    flat = {**params, "x": jnp.asarray(x)}
    value, gradients = jax.value_and_grad(cubes)(flat)
    theirs = torch.from_numpy(x).requires_grad_()
    expected = (his(theirs) ** 3).sum()
    expected.backward()
    gradients["weight"] = gradients["weight"].T
    wanted = {"x": theirs.grad, **{k: p.grad for k, p in his.named_parameters()}}
    close({"value": value, **gradients}, {"value": expected.detach(), **wanted})
    assert max(autodiff.verify_gradients(cubes, flat).values()) < 1e-7


STEPS = 100


def test_curvature():
    """On both sides one function of flat dictionaries in one layout."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 6), "b": (6,), "c": (6, 3)}
    params, vector = ({k: rng.normal(size=s) for k, s in shapes.items()} for _ in range(2))
    x, labels = rng.normal(size=(5, 4)), rng.integers(0, 3, 5)

    def logits(p, x):
        return jnp.tanh(x @ p["a"] + p["b"]) @ p["c"]

    def torch_logits(p, x):
        return torch.tanh(x @ p["a"] + p["b"]) @ p["c"]

    def loss(p):
        return -jax.nn.log_softmax(logits(p, jnp.asarray(x)))[jnp.arange(5), labels].mean()

    mine = autodiff.AutogradOptimizer(loss, logits)
    his = reference.AutogradOptimizer(
        lambda p: torch.nn.functional.cross_entropy(
            torch_logits(p, torch.from_numpy(x)), torch.from_numpy(labels)
        ),
        torch_logits,
    )
    ours, theirs = (
        {k: as_array(v) for k, v in params.items()} for as_array in (jnp.asarray, torch.from_numpy)
    )
    our_vector, their_vector = ({k: f(v) for k, v in vector.items()} for f in (jnp.asarray, torch.from_numpy))
    close(mine.hvp(ours, our_vector), his.hvp(theirs, their_vector))
    found = mine.fisher_diagonal(ours, jnp.asarray(x), jnp.asarray(labels))
    close(found, his.fisher_diagonal(theirs, torch.from_numpy(x), torch.from_numpy(labels)))
    true = mine.fisher_diagonal(ours, jnp.asarray(x))
    close(true, his.fisher_diagonal(theirs, torch.from_numpy(x)))
    value, direction = mine.top_eigenvalue(ours, our_vector, steps=STEPS)
    expected, their_direction = his.top_eigenvalue(theirs, their_vector, steps=STEPS)
    np.testing.assert_allclose(float(value), float(expected), rtol=1e-10)
    close(direction, their_direction, 1e-8)
    flat, back = jax.flatten_util.ravel_pytree(ours)
    whole = np.asarray(jax.jit(jax.hessian(lambda v: loss(back(v))))(flat))
    assert float(value) == pytest.approx(max(np.linalg.eigvalsh(whole), key=abs), rel=1e-6)
    # Logits are linear in c, so there the Hessian is the Gauss-Newton matrix, which is the true Fisher.
    np.testing.assert_allclose(back(jnp.asarray(whole.diagonal()))["c"], true["c"], rtol=1e-10)


@pytest.mark.parametrize(
    "limits", [{"max_norm": 0.7}, {"max_value": 0.3}, {"max_norm": 0.7, "max_value": 0.3}]
)
def test_clipper(limits):
    rng = np.random.default_rng(0)
    gradients = {k: rng.normal(size=(3, 2)) for k in "ab"}
    clipper = autodiff.GradientClipper(**limits)
    ours, _ = clipper.update({k: jnp.asarray(v) for k, v in gradients.items()}, clipper.init({}))
    theirs = {k: torch.zeros(3, 2, dtype=torch.float64, requires_grad=True) for k in gradients}
    for k, p in theirs.items():
        p.grad = torch.from_numpy(gradients[k].copy())
    reference.GradientClipper(**limits).clip(theirs.values())
    close(ours, {k: p.grad for k, p in theirs.items()})
    with pytest.raises(UsageError, match="max_norm None or max_value None"):
        autodiff.GradientClipper()


def test_accumulator():
    rng = np.random.default_rng(0)
    start, targets = rng.normal(size=(3, 2)), rng.normal(size=(10, 3, 2))
    optimizer = autodiff.GradientAccumulator(optim.create_optimizer("adamw", learning_rate=1e-2), 3)
    params = {"w": jnp.asarray(start)}
    kept = optimizer.init(params)
    theirs = torch.from_numpy(start.copy()).requires_grad_()
    accumulator = reference.GradientAccumulator(torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.0), 3)
    update = jax.jit(optimizer.update)
    for i, target in enumerate(targets):
        gradients = jax.grad(lambda p, t: ((p["w"] - t) ** 2).sum())(params, jnp.asarray(target))
        updates, kept = update(gradients, kept, params)
        params = optax.apply_updates(params, updates)
        stepped = accumulator.backward(((theirs - torch.from_numpy(target)) ** 2).sum())
        assert stepped == (i % 3 == 2) == bool(np.any(updates["w"]))
        np.testing.assert_allclose(params["w"], theirs.detach(), rtol=1e-10)


def test_device_and_memory():
    infos = [check.device_info() for check in (autodiff, reference)]
    assert infos[0].keys() == infos[1].keys()
    assert infos[0]["devices"][0].keys() == infos[1]["devices"][0].keys()
    assert len(infos[0]["devices"]) == 8
    assert infos[0]["host_memory"] == infos[1]["host_memory"] > infos[0]["host_peak"] > 0
    kept = []
    for check, make in (
        (autodiff, lambda: jnp.arange(2.0**17)),
        (reference, lambda: torch.zeros(2**17).double()),
    ):
        with check.memory_monitor("a table") as report:
            kept.append(make())
        assert (report.left, report.arrays) == (2**20, 1)
        assert str(report).startswith("a table: 1.0 MiB left in 1 ")
