"""Schedules: torch.optim.lr_scheduler's rate at every step, over the whole range and beyond it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs
from torch.optim import swa_utils as torch_swa

from jaxarch import nn, optim
from jaxarch.errors import UsageError
from jaxarch.optim import lr_scheduler, schedules, swa_utils
from torchref import schedules as torch_schedules

LONG = 60
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
rate = st.floats(1e-5, 1.0)
gamma = st.floats(0.05, 1.0)
count = st.integers(1, 40)
share = st.floats(0.01, 1.0)


def torch_rates(rate, make, steps=LONG, value=lambda group: group["lr"]):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate, momentum=0.9)
    scheduler = make(optimizer)
    found = []
    for i in range(steps):
        found.append(value(optimizer.param_groups[0]))
        if i < steps - 1:
            optimizer.step()
            scheduler.step()
    return np.array(found)


def our_rates(schedule, steps=LONG):
    """All steps at once. Outside jit a number that changes compiles nothing anew."""
    return np.asarray(jax.vmap(schedule)(jnp.arange(LONG)))[:steps]


def same(ours, theirs, rate):
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * rate)


# torch's class, which is ours too, and its arguments
FUNCTIONS = {
    "ConstantLR": {"factor": share, "total_iters": count},
    "LinearLR": {"start_factor": share, "end_factor": share, "total_iters": count},
    "StepLR": {"step_size": count, "gamma": gamma},
    "MultiStepLR": {"milestones": st.lists(count, max_size=4), "gamma": gamma},
    "ExponentialLR": {"gamma": gamma},
    "PolynomialLR": {"total_iters": count, "power": st.floats(0.3, 3.0)},
    "CosineAnnealingLR": {"T_max": count, "eta_min": st.floats(0, 0.1)},
    "CosineAnnealingWarmRestarts": {"T_0": count, "T_mult": st.integers(1, 3), "eta_min": st.floats(0, 0.1)},
    "LambdaLR": {"lr_lambda": st.sampled_from([lambda s: 0.9**s, lambda s: 1 / (1 + s // 4), lambda s: 1.0])},
    "MultiplicativeLR": {"lr_lambda": st.sampled_from([lambda s: 0.9, lambda s: 1 - 1 / (s + 2)])},
    "SWALR": {
        "swa_lr": rate,
        "anneal_epochs": st.integers(0, 40),
        "anneal_strategy": st.sampled_from(["cos", "linear"]),
    },
}
# What torch has and no function of the step can be, and where it is instead.
ELSEWHERE = {"ReduceLROnPlateau": "it follows a metric: two pure functions, see test_reduce_on_plateau"}
# Arguments of torch's that have no meaning for a function of the step, and why.
WITHOUT_MEANING = {
    "optimizer": "the learning rate takes its place",
    "last_epoch": "a function of the step begins at any step",
}


def both(name):
    """(our function, torch's class)"""
    if name == "SWALR":
        return swa_utils.SWALR, torch_swa.SWALR
    return getattr(lr_scheduler, name), getattr(theirs, name)


def test_no_schedule_of_torch_is_missing():
    """torch's names, and the names, order and defaults of their arguments."""
    base = theirs.LRScheduler
    torchs = {k for k, v in vars(theirs).items() if isinstance(v, type) and issubclass(v, base)}
    torchs -= {"LRScheduler", "_LRScheduler"}
    assert torchs | {"SWALR"} == {
        *FUNCTIONS,
        *ELSEWHERE,
        "OneCycleLR",
        "CyclicLR",
        "SequentialLR",
        "ChainedScheduler",
    }
    used = set()
    for name in torchs | {"SWALR"}:
        ours, cls = (inspect.signature(f).parameters.values() for f in both(name))
        expected = [(p.name, p.default) for p in cls if p.name not in WITHOUT_MEANING]
        used |= {p.name for p in inspect.signature(both(name)[1]).parameters.values()} & set(WITHOUT_MEANING)
        actual = [(p.name, p.default) for p in ours if p.name != "lr" and p.kind is p.POSITIONAL_OR_KEYWORD]
        assert actual == expected, name
    assert used == set(WITHOUT_MEANING)


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(data=st.data())
def test_rates_are_torchs(name, data):
    ours, cls = both(name)
    base, options = data.draw(rate), {k: data.draw(s, label=k) for k, s in FUNCTIONS[name].items()}
    found = our_rates(ours(base, **options))
    same(found, torch_rates(base, lambda optimizer: cls(optimizer, **options)), max(base, 0.1))


@few
@given(data=st.data())
def test_cycles(data):
    """CyclicLR in all modes, and the momentum that it cycles."""
    base, top = data.draw(rate), data.draw(rate)
    options = {
        "step_size_up": data.draw(st.integers(1, 20)),
        "step_size_down": data.draw(st.one_of(st.none(), st.integers(1, 20))),
        "mode": data.draw(st.sampled_from(lr_scheduler.MODES)),
        "gamma": data.draw(st.floats(0.9, 1.0)),
        "scale_fn": data.draw(st.sampled_from([None, lambda x: 1 / (1 + x)])),
        "scale_mode": data.draw(st.sampled_from(["cycle", "iterations"])),
        "base_momentum": data.draw(st.floats(0, 0.5)),
        "max_momentum": data.draw(st.floats(0.5, 0.99)),
    }
    schedule = lr_scheduler.CyclicLR(base, top, **options)
    make = lambda optimizer: theirs.CyclicLR(optimizer, base, top, **options)  # noqa: E731
    same(our_rates(schedule), torch_rates(base, make), 1)
    same(our_rates(schedule.momentum), torch_rates(base, make, value=lambda group: group["momentum"]), 1)
    assert lr_scheduler.CyclicLR(base, top, cycle_momentum=False).momentum is None


def cycles(draw):
    total = draw(st.integers(5, 50))
    pct = draw(st.floats(0.05, 0.95))
    three = draw(st.booleans())
    assume(pct * total > 1.01 and (2 * pct * total < total if three else True))
    return {
        "total_steps": total, "pct_start": pct, "three_phase": three,
        "anneal_strategy": draw(st.sampled_from(lr_scheduler.ANNEALS)),
    }  # fmt: skip


@settings(few, max_examples=25)
@given(data=st.data())
def test_one_cycle(data):
    base, options = data.draw(rate), cycles(data.draw)
    factors = {"div_factor": data.draw(st.floats(1, 50)), "final_div_factor": data.draw(st.floats(1, 1e5))}
    momenta = {"base_momentum": data.draw(st.floats(0, 0.5)), "max_momentum": data.draw(st.floats(0.5, 0.99))}
    steps = options["total_steps"] + 1  # torch takes one more than it says

    def make(optimizer):
        return theirs.OneCycleLR(optimizer, base, **options, **factors, **momenta)

    schedule = lr_scheduler.OneCycleLR(base, **options, **factors, **momenta)
    same(our_rates(schedule, steps), torch_rates(base, make, steps), base)
    found = torch_rates(base, make, steps, lambda group: group["momentum"])
    same(our_rates(schedule.momentum, steps), found, 1)
    if options["total_steps"] % 5 == 0:
        options |= {"total_steps": None, "epochs": 5, "steps_per_epoch": options["total_steps"] // 5}
        again = lr_scheduler.OneCycleLR(base, **options, **factors, **momenta)
        np.testing.assert_array_equal(our_rates(again, steps), our_rates(schedule, steps))


def parts(lib, swa, args, options):
    """A schedule of each kind that is chained or put in sequence, of ours or of torch's."""
    first, second, g, end = options
    return {
        "constant": lib.ConstantLR(args, 0.2, total_iters=first),
        "linear": lib.LinearLR(args, 0.1, total_iters=second),
        "steps": lib.MultiStepLR(args, [first, second], g),
        "step": lib.StepLR(args, second, g),
        "exponential": lib.ExponentialLR(args, g),
        "polynomial": lib.PolynomialLR(args, end, 1.5),
        "cosine": lib.CosineAnnealingLR(args, end, 1e-3),
        "restarts": lib.CosineAnnealingWarmRestarts(args, end),
        "lambda": lib.LambdaLR(args, lambda s: 1 / (1 + s)),
        "product": lib.MultiplicativeLR(args, lambda s: 0.97),
        "swa": swa(args, 0.05, anneal_epochs=first),
    }


class Deferred:
    """torch's constructors change the optimizer: each is called when its schedule is picked, in that order."""

    def __init__(self, lib):
        self.lib = lib

    def __getattr__(self, name):
        return lambda *args, **kwargs: lambda: getattr(self.lib, name)(*args, **kwargs)


def picked(names, args, options):
    """The schedules of those names, of torch's."""
    made = parts(Deferred(theirs), Deferred(torch_swa).SWALR, args, options)
    return [made[name]() for name in names]


@settings(few, max_examples=12)
@given(data=st.data())
def test_sequences(data):
    base = data.draw(rate)
    options = data.draw(count), data.draw(count), data.draw(gamma), data.draw(st.integers(10, 40))
    ours = parts(lr_scheduler, swa_utils.SWALR, base, options)
    names = data.draw(st.lists(st.sampled_from(sorted(ours)), min_size=2, max_size=3, unique=True))
    milestones = sorted(
        data.draw(st.lists(count, min_size=len(names) - 1, max_size=len(names) - 1, unique=True))
    )

    def make(optimizer):
        return theirs.SequentialLR(optimizer, picked(names, optimizer, options), milestones)

    schedule = lr_scheduler.SequentialLR([ours[n] for n in names], milestones)
    same(our_rates(schedule), torch_rates(base, make), max(base, 0.1))


@settings(few, max_examples=12)
@given(data=st.data())
def test_chains(data):
    base = data.draw(rate)
    options = data.draw(count), data.draw(count), data.draw(gamma), data.draw(st.integers(10, 40))
    ours = parts(lr_scheduler, swa_utils.SWALR, base, options)
    names = data.draw(st.lists(st.sampled_from(sorted(ours)), min_size=1, max_size=3, unique=True))
    make = lambda o: theirs.ChainedScheduler(picked(names, o, options))  # noqa: E731
    found = torch_rates(base, make)
    chosen = [ours[n] for n in names]
    same(our_rates(lr_scheduler.ChainedScheduler(chosen, total_steps=LONG)), found, max(base, 0.1))
    if any(s.factor is None for s in chosen):
        with pytest.raises(UsageError, match="needs total_steps"):
            lr_scheduler.ChainedScheduler(chosen)


@few
@given(data=st.data())
def test_averaged_models(data):
    """torch's AveragedModel, of parameters and of buffers."""
    decay = data.draw(st.one_of(st.none(), st.floats(0.5, 0.99)))
    use_buffers = data.draw(st.booleans())
    average = swa_utils.get_swa_avg_fn() if decay is None else swa_utils.get_ema_avg_fn(decay)
    torch_average = torch_swa.get_swa_avg_fn() if decay is None else torch_swa.get_ema_avg_fn(decay)
    model = torch.nn.BatchNorm1d(3).double()
    own = torch_swa.AveragedModel(model, avg_fn=torch_average, use_buffers=use_buffers)
    averaging = swa_utils.AveragedModel(average, use_buffers=use_buffers)

    def leaves(module):
        arrays = lambda named: {k: jnp.asarray(v.detach().numpy().copy()) for k, v in named}  # noqa: E731
        return arrays(module.named_parameters()), arrays(
            (k, v) for k, v in module.named_buffers() if k != "num_batches_tracked"
        )

    state = averaging.init(*leaves(model))
    for i in range(4):
        for tensor in (*model.parameters(), model.running_mean, model.running_var):
            tensor.data = torch.from_numpy(np.random.default_rng(i).normal(size=3))
        own.update_parameters(model)
        state = averaging.update(state, *leaves(model))
    assert int(state.n_averaged) == int(own.n_averaged) == 4
    for ours, expected in zip((state.params, state.buffers), leaves(own.module), strict=True):
        for k, v in expected.items():
            np.testing.assert_allclose(ours[k], v, rtol=1e-12)
    with pytest.raises(UsageError, match="decay"):
        swa_utils.get_ema_avg_fn(2.0)


def test_batch_norms_without_momentum_average_as_update_bn_does():
    batches = np.random.default_rng(0).normal(size=(3, 5, 4))
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4)).double()
    torch_swa.update_bn(torch.from_numpy(batches), model)
    ours = nn.BatchNorm1d(4, momentum=None)
    ours.train()
    for batch in batches:
        ours(jnp.asarray(batch))
    np.testing.assert_allclose(ours.running_mean[...], model[0].running_mean, rtol=1e-12)
    np.testing.assert_allclose(ours.running_var[...], model[0].running_var, rtol=1e-12)


OPTIONS = {
    "step": {"step_size": 3, "gamma": 0.7},
    "multi_step": {"milestones": [4, 9], "gamma": 0.3},
    "exponential": {"gamma": 0.9},
    "cosine_restarts": {"T_0": 4, "T_mult": 2},
    "polynomial": {"power": 2.0},
    "onecycle": {"pct_start": 0.4},
    "constant_factor": {"factor": 0.3, "total_iters": 7},
    "linear_factor": {"start_factor": 0.1},
    "cyclic": {"base_lr": 0.01, "step_size_up": 4, "mode": "triangular2"},
    "swa": {"swa_lr": 0.02, "anneal_epochs": 6},
    "sequential": {
        "schedulers": [{"schedule": "constant_factor", "factor": 0.5}, {"schedule": "step", "step_size": 3}],
        "milestones": [5],
    },
    "chained": {
        "schedulers": [
            {"schedule": "linear_factor", "total_iters": 4},
            {"schedule": "cosine_annealing", "T_max": 12},
        ],
    },
}


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_recipes(kind):
    options = OPTIONS.get(kind, {})
    for warmup in (0, 1, 6):
        if kind in schedules.OWN_WARMUP and warmup:
            continue
        ours = our_rates(optim.create_schedule(kind, 0.3, warmup, 20, **options), 21)
        make = lambda o, w=warmup: torch_schedules.create_schedule(o, kind, w, 20, **options)  # noqa: E731
        same(ours, torch_rates(0.3, make, 21), 0.3)


@settings(few, max_examples=20)
@given(data=st.data())
def test_reduce_on_plateau(data):
    options = {
        "mode": data.draw(st.sampled_from(["min", "max"])),
        "factor": data.draw(st.floats(0.1, 0.9)),
        "patience": data.draw(st.integers(0, 4)),
        "threshold": data.draw(st.floats(0, 0.2)),
        "threshold_mode": data.draw(st.sampled_from(["rel", "abs"])),
        "cooldown": data.draw(st.integers(0, 3)),
        "min_lr": data.draw(st.floats(0, 0.01)),
        "eps": data.draw(st.sampled_from([1e-8, 1e-2])),
    }
    values = st.sampled_from([1.0, 0.95, 0.9, 0.5, 1.5, -0.5, float("nan"), float("inf")])
    metrics = data.draw(st.lists(values, min_size=25, max_size=25))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    scheduler = theirs.ReduceLROnPlateau(optimizer, **options)
    plateau = lr_scheduler.ReduceLROnPlateau(0.5, **options)

    def step(state, metric):
        state = plateau.update(state, metric)
        return state, state.learning_rate

    _, found = jax.lax.scan(step, plateau.init(), jnp.asarray(metrics))
    for metric, ours in zip(metrics, found, strict=True):
        scheduler.step(metric)
        assert float(ours) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_schedules_hold_inside_jit_and_stay_after_their_end():
    cycle = lr_scheduler.OneCycleLR(0.1, 10)
    assert float(jax.jit(cycle)(jnp.int32(100))) == float(cycle(10))
    assert float(optim.create_schedule("cosine", 0.1, 2, 10)(50)) == 0


def test_what_is_refused():
    def refused(match, kind, warmup=0, total=10, **options):
        with pytest.raises(UsageError, match=match):
            optim.create_schedule(kind, 0.1, warmup, total, **options)

    refused("did you mean 'onecycle'", "one_cycle")
    refused("unknown option of schedule step 'size'", "step", size=3)
    refused("unknown option of schedule cosine 'total_iters'", "cosine", total_iters=3)
    refused("needs step_size", "step")
    refused("must be between 0 and steps", "cosine", warmup=11)
    for kind in schedules.OWN_WARMUP:
        refused("its own warm-up", kind, warmup=2, **OPTIONS[kind])
    refused("name of a schedule", "chained", schedulers=[{"gamma": 0.1}])
    refused("unknown schedule 'steps'", "sequential", schedulers=[{"schedule": "steps"}], milestones=[])
    refused("needs base_lr", "cyclic")
    refused("unknown mode", "cyclic", base_lr=0.1, mode="square")
    refused("step_size 0", "step", step_size=0)
    refused("without a step", "onecycle", pct_start=0.1)
    refused("anneal_strategy", "onecycle", anneal_strategy="cosine")
    with pytest.raises(UsageError, match="2 schedules need 1"):
        lr_scheduler.SequentialLR([lr_scheduler.ExponentialLR(0.1, 0.5)] * 2, [])
    with pytest.raises(UsageError, match="unknown mode"):
        lr_scheduler.ReduceLROnPlateau(0.1, mode="low")
