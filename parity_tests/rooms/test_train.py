"""Training: torch's optimizer step for step, 1 device = 8 devices, resumed = uninterrupted, and what is refused."""

import json
import math
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxarch import catalog, data, optim, state
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.layout import layout
from jaxarch.errors import CheckpointError, ConversionError, DivergenceError, UsageError
from jaxarch.handover.optimizer import from_torch_optimizer, to_torch_optimizer
from jaxarch.losses import cross_entropy
from jaxarch.train import checkpoint, fit, step, tasks
from jaxarch.train.log import METRICS, MONITOR
from jaxarch.train.recipe import schedule_of
from torchref import losses as torch_losses
from torchref import train as torch_train

QUICK = {"train.steps": "12", "train.eval_every": "4", "train.batch_size": "16"}
EIGHT = "data=2,fsdp=2,tensor=2"


def losses_of(result):
    return [row["loss"] for row in result.history]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """An uninterrupted run whose mesh splits rows only."""
    return fit(
        "mlp", settings=QUICK, mesh="data=8", out=tmp_path_factory.mktemp("one") / "run", progress=False
    )


def test_learning_rates_are_those_of_lambda_lr():
    for kind, after in {
        "cosine": lambda f: 0.5 * (1 + math.cos(math.pi * f)),
        "linear": lambda f: 1 - f,
        "constant": lambda f: 1.0,
    }.items():

        def factor(i, after=after):
            return (i + 1) / 5 if i < 5 else after(min((i - 5) / 15, 1))

        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        ours = optim.create_schedule(kind, 0.3, 5, 20)
        for i in range(25):
            assert float(ours(i)) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-15)
            optimizer.step()
            scheduler.step()


@pytest.fixture(scope="module")
def twins():
    torch.manual_seed(0)
    theirs = catalog.create_model("mlp", "tiny", package="torchref").double().eval()
    ours = catalog.create_model("mlp", "tiny")
    load_state_dict(ours, theirs.state_dict())
    ours.eval()
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(6, 10)), "label": rng.integers(0, 5, 6)} for _ in range(20)]
    return theirs, ours, batches


def loss_of(model, batch):
    return torch_losses.cross_entropy(model(batch["x"]), batch["label"])


def as_torch(batches):
    return [{k: torch.from_numpy(v) for k, v in b.items()} for b in batches]


SETTINGS = {"weight_decay": 0.1, "max_grad_norm": 0.5}
SCHEDULE = optim.create_schedule("cosine", 1e-2, 4, 24)


def run_torch(weights, moments, part, start):
    """(losses, the model, its optimizer's slots by parameter) after the batches of a part, from step `start`."""
    model = catalog.create_model("mlp", "tiny", package="torchref").double().eval()
    model.load_state_dict(weights)
    found, optimizer = torch_train.train_steps(
        model,
        as_torch(part),
        loss_of,
        learning_rate=lambda i: float(SCHEDULE(i)),
        optimizer_state=moments,
        start_step=start,
        **SETTINGS,
    )
    slots = {k: {s: as_numpy(v) for s, v in optimizer.state[p].items()} for k, p in model.named_parameters()}
    return found, model, slots


def jax_runner(graph, rest, optimizer):
    """A function of parameters, optimizer state and batches -> (losses, the state after them), compiled once."""
    advance = step.make_train_step(graph, tasks.task("classification"), optimizer)

    def run(params, opt_state, part):
        params, opt_state = jax.tree.map(jnp.copy, (params, opt_state))
        now = step.TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            rest=jax.tree.map(jnp.copy, rest),
            opt_state=opt_state,
            ema_params={},
        )
        found = []
        for batch in part:
            now, results = advance(now, {k: jnp.asarray(v) for k, v in batch.items()})
            found.append(float(results["loss"]))
        return found, now

    return run


def assert_same_moments(exported, slots):
    """Adam's moments, by parameter and in torch's layout, are torch's."""
    for name, own in slots.items():
        for slot in ("exp_avg", "exp_avg_sq"):
            error = np.linalg.norm(exported[name][slot] - own[slot])
            assert error <= 1e-10 * max(np.linalg.norm(own[slot]), 1e-6), (name, slot)


def test_hand_over_in_the_middle_both_ways(twins):
    theirs, ours, batches = twins
    optimizer = optim.create_optimizer("adamw", learning_rate=SCHEDULE, **SETTINGS)
    graph, params, rest = state.split(ours)
    rows = [r for r in layout(ours) if r.trainable]
    run_jax = jax_runner(graph, rest, optimizer)
    whole_torch, model, slots = run_torch(theirs.state_dict(), None, batches, 0)
    whole_jax, end = run_jax(params, {"model": optimizer.init(params)}, batches)
    np.testing.assert_allclose(whole_jax, whole_torch, rtol=1e-10)
    assert_same_moments(to_torch_optimizer(rows, end.opt_state), slots)

    # jax -> torch
    _, middle = run_jax(params, {"model": optimizer.init(params)}, batches[:9])
    weights = to_state_dict(state.merge(graph, middle.params, middle.rest))
    weights = {k: as_tensor(v) for k, v in weights.items()}
    later, _, _ = run_torch(weights, to_torch_optimizer(rows, middle.opt_state), batches[9:], 9)
    np.testing.assert_allclose(later, whole_torch[9:], rtol=1e-10)

    # torch -> jax
    _, model, slots = run_torch(theirs.state_dict(), None, batches[:9], 0)
    half = catalog.create_model("mlp", "tiny")
    load_state_dict(half, model.state_dict())
    taken = from_torch_optimizer(rows, slots, {"model": optimizer.init(params)})
    for name, own in to_torch_optimizer(rows, taken).items():
        chex.assert_trees_all_equal(own["exp_avg"], slots[name]["exp_avg"])
    later, _ = run_jax(state.split(half).params, taken, batches[9:])
    np.testing.assert_allclose(later, whole_torch[9:], rtol=1e-10)

    with pytest.raises(ConversionError, match=r"missing: network\.0\.weight"):
        from_torch_optimizer(rows, {k: v for k, v in slots.items() if k != "network.0.weight"}, end.opt_state)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_twins(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 7, 5)), rng.integers(0, 5, (4, 7))
    labels[0, :3] = -100
    theirs = torch.from_numpy(logits).requires_grad_()
    expected = torch_losses.cross_entropy(theirs, torch.from_numpy(labels), label_smoothing=smoothing)
    expected.backward()
    value, gradient = jax.value_and_grad(cross_entropy)(
        jnp.asarray(logits), jnp.asarray(labels), label_smoothing=smoothing
    )
    np.testing.assert_allclose(float(value), expected.detach().item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-14)
    none = np.full((4, 7), -100)
    assert float(cross_entropy(jnp.asarray(logits), jnp.asarray(none))) == 0
    assert torch_losses.cross_entropy(theirs.detach(), torch.from_numpy(none)).item() == 0


def test_clipping_uses_torchs_epsilon():
    tiny = {"w": np.array([1.2e-5, 1.6e-5])}
    parameter = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.from_numpy(tiny["w"].copy())
    torch.nn.utils.clip_grad_norm_([parameter], 1e-5)
    clip = optim.clip_by_global_norm(1e-5)
    clipped, _ = clip.update({"w": jnp.asarray(tiny["w"])}, optax.EmptyState())
    np.testing.assert_allclose(clipped["w"], parameter.grad, rtol=1e-14)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_optimizers_are_torchs(kind):
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(20, 3, 2))
    ours = optim.create_optimizer(kind, learning_rate=1e-2, weight_decay=0.1)
    parameter = torch.from_numpy(start.copy()).requires_grad_()
    classes = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    theirs = classes[kind]([parameter], lr=1e-2, weight_decay=0.1)
    params = {"w": jnp.asarray(start)}
    opt_state = ours.init(params)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        theirs.step()
        updates, opt_state = ours.update({"w": jnp.asarray(gradient)}, opt_state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], parameter.detach(), rtol=0, atol=1e-12)


def test_eight_devices_as_one(one, tmp_path):
    sharded = fit("mlp", settings=QUICK, mesh=EIGHT, out=tmp_path / "run", progress=False)
    np.testing.assert_allclose(losses_of(sharded), losses_of(one), rtol=1e-10)
    single = single_device_losses(sharded.run)
    np.testing.assert_allclose(losses_of(sharded), single, rtol=1e-10)
    for path, leaf in sharded.state.params.items():
        assert leaf.sharding == sharded.run.abstract.params[path].sharding, path
    assert any("fsdp" in str(x.sharding.spec) for x in sharded.state.params.values())


def single_device_losses(run):
    """The same steps without a mesh, on the first device alone."""
    device = jax.devices()[0]
    with jax.default_device(device):
        now = jax.device_put(run.init(), device)
        optimizer = optim.create_optimizer(
            learning_rate=schedule_of(run.recipe),
            weight_decay=run.recipe.weight_decay,
            max_grad_norm=run.recipe.max_grad_norm,
        )
        advance = step.make_train_step(run.graph, run.task, optimizer)
        found = []
        for i in range(run.recipe.steps):
            batch = run.place(run.source.batch(run.recipe.seed, i, run.recipe.batch_size))
            now, results = advance(now, jax.device_put(batch, device))
            found.append(float(results["loss"]))
    return found


def test_resumed_is_uninterrupted_bitwise(one, tmp_path):
    out = tmp_path / "run"
    fit("mlp", settings=QUICK, mesh="data=8", out=out, progress=False, stop_at=6)
    resumed = fit("mlp", settings=QUICK, mesh="data=8", out=out, progress=False, resume=True)
    assert losses_of(resumed) == losses_of(one)
    assert resumed.metrics == one.metrics
    for path, value in one.state.params.items():
        np.testing.assert_array_equal(value, resumed.state.params[path])
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in logged if "loss" in r] == losses_of(one)


def test_resuming_on_another_mesh_is_reported(one, tmp_path, caplog):
    out = tmp_path / "run"
    shutil.copytree(one.out, out)
    shutil.rmtree(out / checkpoint.FOLDER / "12")
    resumed = fit("mlp", settings=QUICK, mesh=EIGHT, out=out, progress=False, resume=True)
    assert "mesh" in caplog.text
    assert "versions" not in caplog.text
    np.testing.assert_allclose(losses_of(resumed), losses_of(one), rtol=1e-10)


def test_tensorboard_holds_what_the_log_holds(one):
    from tensorboardX.proto.event_pb2 import Event

    seen = {}
    for file in (one.out / "tensorboard").iterdir():
        content = file.read_bytes()
        while content:  # a record: length (8 bytes), its checksum (4), data, the data's checksum (4)
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            seen |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
            content = content[16 + length :]
    rows = [json.loads(line) for line in (one.out / METRICS).read_text().splitlines()]
    logged = {(r["step"], k): v for r in rows for k, v in r.items() if k != "step"}
    assert seen == pytest.approx(logged, rel=1e-6)
    assert {"loss", "lr", "grad_norm", "eval_accuracy"} <= {tag for _, tag in seen}


def test_monitored_run_is_the_same_run(one, tmp_path):
    seen = fit(
        "mlp",
        settings={**QUICK, "train.monitor": "true"},
        mesh="data=8",
        out=tmp_path / "run",
        progress=False,
    )
    np.testing.assert_allclose(losses_of(seen), losses_of(one), rtol=1e-12)
    rows = [json.loads(line) for line in (tmp_path / "run" / MONITOR).read_text().splitlines()]
    assert [r["step"] for r in rows] == [4, 8, 12]
    logged = {r["step"]: r["grad_norm"] for r in seen.history}
    assert rows[1]["grad_norm"][""] == pytest.approx(logged[8], rel=1e-9)
    assert rows[1]["update_norm"].keys() == rows[1]["grad_norm"].keys() == {"", *seen.state.params}


def test_accumulated_gradient_is_the_batchs(tmp_path):
    plain = {**QUICK, "model.batch_norm": "false", "model.dropout_rate": "0.0", "train.steps": "4"}
    whole = fit("mlp", settings=plain, mesh="data=8", out=tmp_path / "a", progress=False)
    parts = {**plain, "train.accumulate": "2"}
    accumulated = fit("mlp", settings=parts, mesh="data=8", out=tmp_path / "b", progress=False)
    np.testing.assert_allclose(losses_of(accumulated), losses_of(whole), rtol=1e-10)


def test_mixed_precision_keeps_state_in_full_precision(tmp_path):
    settings = {**QUICK, "train.steps": "4", "train.mixed_precision": "true"}
    result = fit("mlp", settings=settings, mesh="data=8", out=tmp_path / "run", progress=False)
    floats = [x for x in jax.tree.leaves(result.state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float64)}
    assert "bf16" in str(
        jax.make_jaxpr(lambda s, b: _stepped(result.run, s, b))(result.state, _batch(result.run))
    )
    assert math.isfinite(result.history[-1]["loss"])


def _batch(run):
    return run.place(run.source.batch(0, 0, run.recipe.batch_size))


def _stepped(run, now, batch):
    return step.make_train_step(run.graph, run.task, run.optimizers, mixed_precision=True)(now, batch)


def test_nan_is_named_and_never_saved(tmp_path, monkeypatch):
    batches = data.ArraySource.batch

    def poisoned(self, seed, at, size):
        batch = batches(self, seed, at, size)
        return {**batch, "x": batch["x"] * np.nan} if at == 6 else batch

    monkeypatch.setattr(data.ArraySource, "batch", poisoned)
    with pytest.raises(DivergenceError, match="the loss of step 7 is nan"):
        fit("mlp", settings=QUICK, mesh="data=8", out=tmp_path / "run", progress=False)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [4]
    restored = checkpoint.load(tmp_path / "run")
    assert all(np.isfinite(v).all() for v in restored.params.values())


def test_early_stopping_and_best(tmp_path):
    settings = {**QUICK, "train.learning_rate": "0.0", "train.patience": "1", "train.steps": "40"}
    settings |= {"model.batch_norm": "false"}
    result = fit("mlp", settings=settings, mesh="data=8", out=tmp_path / "run", progress=False)
    assert result.history[-1]["step"] == 8
    assert json.loads((tmp_path / "run" / "best" / "about.json").read_text())["step"] == 4


def test_interrupting_keeps_a_checkpoint(tmp_path, monkeypatch):
    batches = data.ArraySource.batch

    def interrupted(self, seed, at, size):
        if at == 7:
            raise KeyboardInterrupt
        return batches(self, seed, at, size)

    monkeypatch.setattr(data.ArraySource, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit("mlp", settings=QUICK, mesh="data=8", out=tmp_path / "run", progress=False)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 7


@pytest.mark.parametrize(
    ("settings", "mesh", "says"),
    [
        ({"train.learning_rat": "1"}, "data=8", "did you mean 'learning_rate'"),
        ({"model.activaton": "relu"}, "data=8", "did you mean 'activation'"),
        ({"trian.lr": "1"}, "data=8", "unknown setting"),
        ({"train.steps": "0"}, "data=8", "at least 1"),
        ({"train.steps": "x"}, "data=8", "must be int"),
        ({"train.updates": "x"}, "data=8", "cannot be set: write"),
        ({"train.optimizer": "adamv"}, "data=8", "did you mean 'adam' or 'adamw'"),
        ({"train.batch_size": "12"}, "data=8", "batch size 12 is not divisible"),
        ({"train.warmup_steps": "99", "train.steps": "5"}, "data=8", "warmup_steps 99"),
        ({}, "data=3", "takes 3 devices, there are 8"),
        ({}, "date=8", "did you mean 'data'"),
        ({"model.hidden_dims": "[255]"}, "tensor=8", None),
    ],
)
def test_wrong_settings(tmp_path, settings, mesh, says):
    out = tmp_path / "run"
    if says is None:  # mlp has no tensor-parallel pattern: an odd width stays whole
        fit("mlp", settings={**QUICK, **settings, "train.steps": "1"}, mesh=mesh, out=out, progress=False)
        return
    with pytest.raises(UsageError, match=says):
        fit("mlp", settings=settings, mesh=mesh, out=out, progress=False)
    assert not out.exists()


def test_a_folder_is_not_overwritten(one, tmp_path):
    with pytest.raises(UsageError, match="--resume or choose another"):
        fit("mlp", settings=QUICK, mesh="data=8", out=one.out, progress=False)
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        fit("mlp", settings=QUICK, mesh="data=8", out=tmp_path / "none", progress=False, resume=True)
    other = {**QUICK, "train.lr": "0.5"}
    with pytest.raises(UsageError, match="trained with another recipe"):
        fit("mlp", settings=other, mesh="data=8", out=one.out, progress=False, resume=True)


@pytest.mark.parametrize("net", ["mlp", "advanced_cnn"])
def test_digits_are_learned(tmp_path, net, first_devices):
    jax.config.update("jax_enable_x64", False)  # as users train
    try:
        result = fit(net, mesh="data=1", out=tmp_path / "run", progress=False)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert result.metrics["accuracy"] >= 0.97
