"""Schedules: torch.optim.lr_scheduler's rate at every step, over the whole range and beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from jaxarch import optim
from jaxarch.errors import UsageError
from jaxarch.optim import schedules
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


# torch's class, ours, and its arguments
FUNCTIONS = {
    "constant_lr": (lr_scheduler.ConstantLR, {"factor": share, "total_iters": count}),
    "linear_lr": (lr_scheduler.LinearLR, {"start_factor": share, "end_factor": share, "total_iters": count}),
    "step_lr": (lr_scheduler.StepLR, {"step_size": count, "gamma": gamma}),
    "multi_step_lr": (lr_scheduler.MultiStepLR, {"milestones": st.lists(count, max_size=4), "gamma": gamma}),
    "exponential_lr": (lr_scheduler.ExponentialLR, {"gamma": gamma}),
    "polynomial_lr": (lr_scheduler.PolynomialLR, {"total_iters": count, "power": st.floats(0.3, 3.0)}),
    "cosine_annealing_lr": (lr_scheduler.CosineAnnealingLR, {"T_max": count, "eta_min": st.floats(0, 0.1)}),
    "cosine_annealing_warm_restarts": (
        lr_scheduler.CosineAnnealingWarmRestarts,
        {"T_0": count, "T_mult": st.integers(1, 3), "eta_min": st.floats(0, 0.1)},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@few
@given(data=st.data())
def test_rates_are_torchs(name, data):
    cls, strategies = FUNCTIONS[name]
    base, options = data.draw(rate), {k: data.draw(s, label=k) for k, s in strategies.items()}
    ours = our_rates(getattr(schedules, name)(base, **options))
    same(ours, torch_rates(base, lambda optimizer: cls(optimizer, **options)), max(base, 0.1))


def cycles(draw):
    total = draw(st.integers(5, 50))
    pct = draw(st.floats(0.05, 0.95))
    three = draw(st.booleans())
    assume(pct * total > 1.01 and (2 * pct * total < total if three else True))
    return {
        "total_steps": total, "pct_start": pct, "three_phase": three,
        "anneal_strategy": draw(st.sampled_from(schedules.ANNEALS)),
    }  # fmt: skip


@settings(few, max_examples=25)
@given(data=st.data())
def test_one_cycle(data):
    base, options = data.draw(rate), cycles(data.draw)
    factors = {"div_factor": data.draw(st.floats(1, 50)), "final_div_factor": data.draw(st.floats(1, 1e5))}
    momenta = {"base_momentum": data.draw(st.floats(0, 0.5)), "max_momentum": data.draw(st.floats(0.5, 0.99))}
    steps = options["total_steps"] + 1  # torch takes one more than it says

    def make(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, base, **options, **factors, **momenta)

    same(
        our_rates(schedules.one_cycle_lr(base, **options, **factors), steps),
        torch_rates(base, make, steps),
        base,
    )
    found = torch_rates(base, make, steps, lambda group: group["momentum"])
    same(our_rates(schedules.one_cycle_momentum(**options, **momenta), steps), found, 1)


@few
@given(data=st.data())
def test_sequences_and_chains(data):
    base, first, second = data.draw(rate), data.draw(count), data.draw(count)
    g, end = data.draw(gamma), data.draw(st.integers(10, 40))

    def sequence(optimizer):
        parts = [
            lr_scheduler.LinearLR(optimizer, 0.1, total_iters=first),
            lr_scheduler.CosineAnnealingLR(optimizer, end),
            lr_scheduler.ExponentialLR(optimizer, g),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [first, first + second])

    parts = [
        schedules.linear_lr(base, 0.1, total_iters=first),
        schedules.cosine_annealing_lr(base, end),
        schedules.exponential_lr(base, g),
    ]
    same(
        our_rates(schedules.sequential_lr(parts, [first, first + second])), torch_rates(base, sequence), base
    )

    def chain(optimizer):
        return lr_scheduler.ChainedScheduler(
            [
                lr_scheduler.ConstantLR(optimizer, 0.2, total_iters=first),
                lr_scheduler.MultiStepLR(optimizer, [first, second], g),
                lr_scheduler.CosineAnnealingLR(optimizer, end),
            ]
        )

    parts = [
        schedules.constant_lr(1.0, 0.2, total_iters=first),
        schedules.multi_step_lr(1.0, [first, second], g),
        schedules.cosine_annealing_lr(1.0, end),
    ]
    same(our_rates(schedules.chained_lr(base, parts), end + 1), torch_rates(base, chain, end + 1), base)


OPTIONS = {
    "step": {"step_size": 3, "gamma": 0.7},
    "multi_step": {"milestones": [4, 9], "gamma": 0.3},
    "exponential": {"gamma": 0.9},
    "cosine_restarts": {"T_0": 4, "T_mult": 2},
    "polynomial": {"power": 2.0},
    "onecycle": {"pct_start": 0.4},
}


@pytest.mark.parametrize("kind", schedules.SCHEDULES)
def test_recipes(kind):
    options = OPTIONS.get(kind, {})
    for warmup in (0, 1, 6):
        if kind == "onecycle" and warmup:
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
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    plateau = schedules.reduce_on_plateau(0.5, **options)

    def step(state, metric):
        state = plateau.update(state, metric)
        return state, state.learning_rate

    _, found = jax.lax.scan(step, plateau.init(), jnp.asarray(metrics))
    for metric, ours in zip(metrics, found, strict=True):
        scheduler.step(metric)
        assert float(ours) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_schedules_hold_inside_jit_and_stay_after_their_end():
    cycle = schedules.one_cycle_lr(0.1, 10)
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
    refused("its own warm-up", "onecycle", warmup=2)
    refused("step_size 0", "step", step_size=0)
    refused("without a step", "onecycle", pct_start=0.1)
    refused("anneal_strategy", "onecycle", anneal_strategy="cosine")
    with pytest.raises(UsageError, match="2 schedules need 1"):
        schedules.sequential_lr([abs, abs], [])
    with pytest.raises(UsageError, match="unknown mode"):
        schedules.reduce_on_plateau(0.1, mode="low")
