"""A run moved between PyTorch and JAX continues on the same curve, both ways: optimizer state there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxarch import catalog, losses, nn, optim, state
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.commands.convert import convert
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.errors import ConversionError, UsageError
from jaxarch.handover.optimizer import (
    Hyper,
    check_groups,
    from_optimizer_state_dict,
    from_torch_optimizer,
    step_of,
    to_optimizer_state_dict,
    to_torch_optimizer,
    torch_rows,
)
from jaxarch.train import fit
from jaxarch.train.recipe import schedule_of
from torchref import losses as torch_losses
from torchref import train as torch_train

STEPS, MIDDLE = 16, 7
SCHEDULE = optim.create_schedule("cosine", 2e-2, 4, 20)
GROUPS = {"up.bias": {"lr_scale": 0.5, "weight_decay": 0.03}}
KINDS = {
    "sgd": Hyper("sgd", SCHEDULE, 0.01),
    "momentum": Hyper("sgd", SCHEDULE, 0.01, None, {"momentum": 0.9, "nesterov": True}),
    "dampening": Hyper("sgd", SCHEDULE, 0.01, GROUPS, {"momentum": 0.9, "dampening": 0.2}),
    "adam": Hyper("adam", SCHEDULE, 0.01),
    "adamw": Hyper("adamw", SCHEDULE, 0.1, GROUPS, {"betas": (0.8, 0.99)}),
    "amsgrad": Hyper("adamw", SCHEDULE, 0.1, None, {"amsgrad": True}),
    "rmsprop": Hyper("rmsprop", SCHEDULE, 0.0, None, {"alpha": 0.9}),
    "rmsprop centered": Hyper("rmsprop", SCHEDULE, 0.0, None, {"centered": True, "momentum": 0.5}),
    "adagrad": Hyper("adagrad", SCHEDULE, 0.01, None, {"lr_decay": 0.01}),
}


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
        self.double()

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Ours(nnx.Module):
    def __init__(self):
        self.up, self.down = nn.Linear(3, 4, rngs=nnx.Rngs(0)), nn.Linear(4, 2, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)))


ROWS = torch_rows(Ours)
_rng = np.random.default_rng(0)
BATCHES = [(_rng.normal(size=(5, 3)), _rng.normal(size=(5, 2))) for _ in range(STEPS)]


def start():
    torch.manual_seed(0)
    return Theirs().state_dict()


def options_of(hyper):
    return {"weight_decay": hyper.weight_decay, "groups": hyper.groups, "max_grad_norm": 0.3, **hyper.options}


def params_of(model):
    return state.split(model).params


def torch_run(hyper, weights, part, moments=None, at=0):
    """(losses, weights, what optimizer.state_dict() gives)"""
    model = Theirs()
    model.load_state_dict(weights)
    found, optimizer = torch_train.train_steps(
        model,
        [tuple(map(torch.from_numpy, b)) for b in part],
        lambda m, b: torch_losses.mse_loss(m(b[0]), b[1]),
        learning_rate=lambda i: float(SCHEDULE(i)),
        optimizer=hyper.kind,
        optimizer_state=moments,
        start_step=at,
        **options_of(hyper),
    )
    return found, model.state_dict(), optimizer.state_dict()


def jax_run(hyper, weights, part, opt_state=None):
    """(losses, weights, parameters, the optimizer's state)"""
    model = Ours()
    load_state_dict(model, weights)
    graph, params, rest = state.split(model)
    optimizer = optim.create_optimizer(hyper.kind, learning_rate=hyper.learning_rate, **options_of(hyper))

    def step(carry, batch):
        params, opt_state = carry
        loss = lambda p: losses.mse_loss(state.merge(graph, p, rest)(batch[0]), batch[1])  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    opt_state = optimizer.init(params) if opt_state is None else opt_state
    stacked = [jnp.stack(column) for column in zip(*part, strict=True)]
    (params, opt_state), found = jax.jit(lambda c, b: jax.lax.scan(step, c, b))((params, opt_state), stacked)
    tensors = {k: as_tensor(v) for k, v in to_state_dict(state.merge(graph, params, rest)).items()}
    return found, tensors, params, opt_state


def plain(state_dict):
    return {i: {k: as_numpy(v) for k, v in slots.items()} for i, slots in state_dict["state"].items()}


@pytest.mark.parametrize("kind", KINDS)
def test_hand_over_in_mid_schedule_both_ways(kind, tmp_path):
    hyper = KINDS[kind]
    first, later = BATCHES[:MIDDLE], BATCHES[MIDDLE:]
    whole, _, _ = torch_run(hyper, start(), BATCHES)
    _, weights, saved = torch_run(hyper, start(), first)
    begun, our_weights, params, opt_state = jax_run(hyper, start(), first)
    np.testing.assert_allclose(begun, whole[:MIDDLE], rtol=1e-10)

    # torch -> jax, through files
    torch.save(saved, tmp_path / "optimizer.pt")
    slots, at, groups = from_optimizer_state_dict(
        ROWS, torch.load(tmp_path / "optimizer.pt", weights_only=True)
    )
    assert at == (MIDDLE if kind not in ("sgd", "momentum", "dampening") else None)
    check_groups(ROWS, params, hyper, groups)
    taken = from_torch_optimizer(ROWS, slots, opt_state, step=MIDDLE)
    found, _, _, _ = jax_run(hyper, weights, later, taken)
    np.testing.assert_allclose(found, whole[MIDDLE:], rtol=1e-10)

    # and back, bit for bit, with what torch says of its groups
    back = to_optimizer_state_dict(ROWS, params, taken, hyper)
    assert back["step"] == step_of(taken) == MIDDLE
    jax.tree.map(np.testing.assert_array_equal, plain(back), plain(saved))
    for ours, theirs in zip(back["param_groups"], saved["param_groups"], strict=True):
        own = {k: v for k, v in theirs.items() if k != "lr"}
        assert {k: v for k, v in ours.items() if k in own} == own
        assert set(ours) - set(own) <= {"lr"}

    # jax -> torch
    written = to_optimizer_state_dict(ROWS, params, opt_state, hyper)
    torch.save(written, tmp_path / "ours.pt")
    moments = torch.load(tmp_path / "ours.pt", weights_only=True)
    found, _, _ = torch_run(hyper, our_weights, later, moments, MIDDLE)
    np.testing.assert_allclose(found, whole[MIDDLE:], rtol=1e-10)


def test_names_come_from_groups_or_from_a_single_group():
    _, _, saved = torch_run(KINDS["adamw"], start(), BATCHES[:2])
    named, _, _ = from_optimizer_state_dict(ROWS, {"optimizer": saved, "epoch": 3})
    optimizer = torch.optim.AdamW(Theirs().parameters())
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    alone, at, _ = from_optimizer_state_dict(ROWS, optimizer.state_dict())
    assert set(alone) == set(named) == {r.torch for r in ROWS}
    assert at == 1
    for row in ROWS:
        assert alone[row.torch]["exp_avg"].shape == named[row.torch]["exp_avg"].shape
    for group in saved["param_groups"]:
        del group["param_names"]
    with pytest.raises(ConversionError, match="named_parameters"):
        from_optimizer_state_dict(ROWS, saved)
    _, _, saved = torch_run(KINDS["momentum"], start(), BATCHES[:2])
    assert from_optimizer_state_dict(ROWS, {"optimizer": saved, "step": 2})[1] == 2
    _, _, groups = from_optimizer_state_dict(
        ROWS, torch.optim.SGD(Theirs().named_parameters(), maximize=True).state_dict()
    )
    with pytest.raises(ConversionError, match=r"maximize of up\.weight is True, the recipe's is False"):
        check_groups(ROWS, params_of(Ours()), Hyper("sgd"), groups)
    with pytest.raises(ConversionError, match="lacks state"):
        from_optimizer_state_dict(ROWS, {"up.weight": 1})


def test_what_does_not_fit_is_refused():
    _, _, adam = torch_run(KINDS["adam"], start(), BATCHES[:2])
    slots, _, groups = from_optimizer_state_dict(ROWS, adam)
    _, _, params, momentum = jax_run(KINDS["momentum"], start(), BATCHES[:2])
    _, _, _, amsgrad = jax_run(KINDS["amsgrad"], start(), BATCHES[:2])
    _, _, _, adam_state = jax_run(KINDS["adam"], start(), BATCHES[:2])

    def refused(match, function, *args, **kwargs):
        with pytest.raises(ConversionError, match=match):
            function(*args, **kwargs)

    refused("lacks momentum_buffer", from_torch_optimizer, ROWS, slots, momentum)
    refused("lacks max_exp_avg_sq", from_torch_optimizer, ROWS, slots, amsgrad)
    more = {k: {**v, "max_exp_avg_sq": v["exp_avg_sq"]} for k, v in slots.items()}
    refused("has max_exp_avg_sq", from_torch_optimizer, ROWS, more, adam_state)
    fewer = {k: v for k, v in slots.items() if k != "up.bias"}
    refused("missing: up.bias", from_torch_optimizer, ROWS, fewer, adam_state)
    refused("beyond the 1 steps", from_torch_optimizer, ROWS, slots, adam_state, step=1)
    begun = {**slots, "up.bias": {}}
    refused("keeps no state of up.bias", from_torch_optimizer, ROWS, begun, adam_state)
    buffers = {k: {"momentum_buffer": v["exp_avg"]} for k, v in slots.items()}
    refused("does not say its step", from_torch_optimizer, ROWS, buffers, momentum)
    refused("no momentum", check_groups, ROWS, params, KINDS["momentum"], groups)
    other = KINDS["adam"]._replace(weight_decay=0.3)
    refused("weight_decay of up.weight is 0.01", check_groups, ROWS, params, other, groups)
    refused(
        "decoupled_weight_decay", check_groups, ROWS, params, KINDS["adam"]._replace(kind="adamw"), groups
    )
    refused("torch has no optimizer lion", to_optimizer_state_dict, ROWS, params, adam_state, Hyper("lion"))


def test_states_of_optax():
    """optax's own Adam, SGD and Lion keep what torch does; what only looks like it is refused by name."""
    params = params_of(Ours())

    def refused(match, function, *args, **kwargs):
        with pytest.raises(ConversionError, match=match):
            function(*args, **kwargs)

    foreign = optax.adam(0.1).init(params)
    slots = to_torch_optimizer(ROWS, foreign)
    assert set(slots["up.bias"]) == {"step", "exp_avg", "exp_avg_sq"}
    apart = {k: {**v, "step": np.float32(i)} for i, (k, v) in enumerate(slots.items())}
    refused("different steps", from_torch_optimizer, ROWS, apart, foreign)
    refused("torch's radam", to_optimizer_state_dict, ROWS, params, foreign, Hyper("radam"))
    hyper = Hyper("adam", options={"amsgrad": True})
    refused("torch's adam", to_optimizer_state_dict, ROWS, params, foreign, hyper)
    refused("maximum after", to_torch_optimizer, ROWS, optax.amsgrad(0.1).init(params))
    refused("counts no steps", to_torch_optimizer, ROWS, optax.rmsprop(0.1).init(params))
    refused("no optimizer of torch's has it", to_torch_optimizer, ROWS, optax.adabelief(0.1).init(params))


def test_parameters_at_different_steps_or_without_state():
    """A bias that torch trains from the third step on: its own count of steps goes both ways."""
    model = Theirs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    rng = np.random.default_rng(0)
    grads = [{k: rng.normal(size=tuple(p.shape)) for k, p in model.named_parameters()} for _ in range(6)]

    def torch_steps(part, without=()):
        for g in part:
            for name, p in model.named_parameters():
                p.grad = None if name in without else torch.from_numpy(g[name])
            optimizer.step()

    order = [name for name, _ in model.named_parameters()]
    rule = optim.create_optimizer("adam", learning_rate=0.1)
    torch_steps(grads[:2], without=("up.bias",))
    slots, step, _ = from_optimizer_state_dict(ROWS, optimizer.state_dict(), order=order)
    assert (slots["up.bias"], step) == ({}, 2)
    params = params_of(Ours())
    assert set(to_torch_optimizer(ROWS, from_torch_optimizer(ROWS, slots, rule.init(params)))) == {
        name for name in order if name != "up.bias"
    }
    torch_steps(grads[2:3])
    ours = Ours()
    load_state_dict(ours, model.state_dict())
    params = params_of(ours)
    slots, step, _ = from_optimizer_state_dict(ROWS, optimizer.state_dict(), order=order)
    opt_state = from_torch_optimizer(ROWS, slots, rule.init(params))
    back = to_torch_optimizer(ROWS, opt_state)
    assert {k: v["step"] for k, v in back.items()} == {**dict.fromkeys(order, 3), "up.bias": 1}
    for g in grads[3:]:
        torch_steps([g])
        updates, opt_state = rule.update({k: jnp.asarray(v.T) for k, v in g.items()}, opt_state, params)
        params = optax.apply_updates(params, updates)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(np.asarray(params[name]).T, p.detach(), rtol=1e-10)
    with pytest.raises(ConversionError, match="4 parameters, 3 names are given"):
        from_optimizer_state_dict(ROWS, optimizer.state_dict(), order=order[:3])
    strange = {"state": {}, "param_groups": [{"params": [0, 1, 2, 3], "lr": 0.1, "trust": 3}]}
    with pytest.raises(ConversionError, match="no optimizer of torch's has the options lr, trust"):
        from_optimizer_state_dict(ROWS, strange)


RUN = {"variant": "small", "progress": False}


def continued_in_torch(begun, folder):
    """(losses, model, optimizer) of steps 4 to 8 in torch, from the folder that the command wrote at step 4."""
    model = catalog.create_model("mlp", "small", package="torchref").double()
    tensors = read_tensors(folder / "model.safetensors")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    recipe, schedule = begun.recipe, schedule_of(begun.recipe)
    batches = [begun.source.batch(recipe.seed, i, recipe.batch_size) for i in range(4, 8)]
    found, optimizer = torch_train.train_steps(
        model,
        [{k: torch.from_numpy(v) for k, v in b.items()} for b in batches],
        lambda m, b: torch_losses.cross_entropy(m(b["x"].double()), b["label"].long()),
        learning_rate=lambda i: float(schedule(i)),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optimizer_state=torch.load(folder / "optimizer.pt", weights_only=True),
        start_step=4,
    )
    return found, model, optimizer


def test_the_command_carries_a_run(tmp_path):
    """jaxarch to step 4, torch to step 8, jaxarch to step 12: the curve of a run that never left jaxarch."""
    ours, theirs, back = tmp_path / "ours", tmp_path / "theirs", tmp_path / "back"
    begun = fit("mlp", out=ours, stop_at=4, **RUN).run
    assert "adamw at step 4" in convert(str(ours), str(theirs))
    whole = [row["loss"] for row in fit("mlp", out=ours, resume=True, stop_at=12, **RUN).history]
    found, model, optimizer = continued_in_torch(begun, theirs)
    np.testing.assert_allclose(found, whole[4:8], rtol=1e-10)

    later = tmp_path / "later"
    write_tensors(later / "model.safetensors", {k: as_numpy(v) for k, v in model.state_dict().items()})
    torch.save(optimizer.state_dict(), later / "optimizer.pt")
    assert "adamw at step 8" in convert(str(later), str(back), model="mlp", variant="small")
    assert "adamw at step 8" in convert(str(back), str(tmp_path / "again"))
    again = torch.load(tmp_path / "again" / "optimizer.pt", weights_only=True)
    jax.tree.map(np.testing.assert_array_equal, plain(again), plain(optimizer.state_dict()))
    weights = read_tensors(tmp_path / "again" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights, read_tensors(later / "model.safetensors"))
    end = fit("mlp", out=back, resume=True, stop_at=12, **RUN)
    np.testing.assert_allclose([row["loss"] for row in end.history], whole[8:], rtol=1e-10)
    assert_refused_by_the_command(ours, later, back, tmp_path / "x")


def assert_refused_by_the_command(ours, later, back, out):
    """A folder without its model's name, folders that exist, weights of another dtype, a damaged optimizer."""
    with pytest.raises(UsageError, match="--model"):
        convert(str(later), str(out))
    with pytest.raises(ConversionError, match="exists"):
        convert(str(later), str(back), model="mlp", variant="small")
    with pytest.raises(ConversionError, match="exists"):
        convert(str(ours), str(back))
    single = {k: v.astype(np.float32) for k, v in read_tensors(later / "model.safetensors").items()}
    write_tensors(later / "model.safetensors", single)
    with pytest.raises(ConversionError, match="is float32, training keeps float64"):
        convert(str(later), str(out), model="mlp", variant="small")
    (later / "optimizer.pt").write_bytes(b"no")
    with pytest.raises(ConversionError, match="damaged"):
        convert(str(later), str(out), model="mlp", variant="small")
