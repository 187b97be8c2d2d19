"""Optimizers: torch.optim's parameters after each of 50 steps, whatever the hyper-parameters; groups, clipping,
loss scaling."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxarch import optim
from jaxarch.errors import UsageError
from jaxarch.optim import lr_scheduler, scaler
from torchref import optim as torch_optim

STEPS = 50
SHAPES = {"w": (3, 2), "b": (4,), "s": ()}
MATRICES = {"w": (3, 2), "v": (2, 3), "u": (3, 3)}
few = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)

beta = st.floats(0.0, 0.99)
betas = st.tuples(beta, st.floats(0.5, 0.9999))
small = st.floats(1e-10, 1e-3)
rate = st.floats(1e-4, 0.5)
decay = st.one_of(st.just(0.0), st.floats(1e-4, 0.5))

# Each kind: what is compiled once, and what is drawn and passed in.
CASES = {
    "sgd": ("sgd", {}, {}),
    "sgd momentum": ("sgd", {}, {"momentum": beta}),
    "sgd nesterov": ("sgd", {"nesterov": True}, {"momentum": beta.map(lambda b: b + 0.01)}),
    "sgd dampening": ("sgd", {}, {"momentum": beta.map(lambda b: b + 0.01), "dampening": st.floats(0, 1)}),
    "adam": ("adam", {}, {"betas": betas, "eps": small}),
    "adam amsgrad": ("adam", {"amsgrad": True}, {"betas": betas, "eps": small}),
    "adamw": ("adamw", {}, {"betas": betas, "eps": small}),
    "adamw amsgrad": ("adamw", {"amsgrad": True}, {"betas": betas, "eps": small}),
    "nadam": ("nadam", {}, {"betas": betas, "eps": small, "momentum_decay": st.floats(0, 0.1)}),
    "nadam decoupled": ("nadam", {"decoupled_weight_decay": True}, {"betas": betas, "eps": small}),
    "radam": ("radam", {}, {"betas": betas, "eps": small}),
    "radam decoupled": ("radam", {"decoupled_weight_decay": True}, {"betas": betas}),
    "adamax": ("adamax", {}, {"betas": betas, "eps": small}),
    "adagrad": (
        "adagrad", {}, {"eps": small, "lr_decay": st.floats(0, 0.5), "initial_accumulator_value": st.floats(0, 1)},
    ),
    "rmsprop": ("rmsprop", {}, {"alpha": st.floats(0.1, 0.99), "eps": small}),
    "rmsprop momentum": ("rmsprop", {}, {"alpha": st.floats(0.1, 0.99), "momentum": beta.map(lambda b: b + 0.01)}),
    "rmsprop centered": (
        "rmsprop", {"centered": True}, {"alpha": st.floats(0.1, 0.99), "momentum": beta.map(lambda b: b + 0.01)},
    ),
    "lion": ("lion", {}, {"betas": betas}),
    "muon": ("muon", {}, {"momentum": beta}),
    "muon plain": ("muon", {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}, {"momentum": beta}),
}  # fmt: skip


def drawn(seed, shapes):
    """Parameters and 50 gradients of very different sizes; one of them zero."""
    rng = np.random.default_rng(seed)
    start = {k: rng.normal(size=s) for k, s in shapes.items()}
    gradients = {k: rng.normal(size=(STEPS, *s)) * 10 ** rng.uniform(-3, 1) for k, s in shapes.items()}
    for g in gradients.values():
        g[7] = 0
    return start, gradients


def walk(optimizer, params, gradients):
    """The parameters after every step."""

    def step(carry, gradient):
        params, opt_state = carry
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    return jax.lax.scan(step, (params, optimizer.init(params)), gradients)[1]


@functools.cache
def compiled(case):
    kind, fixed, _ = CASES[case]

    def run(params, gradients, learning_rate, weight_decay, options):
        groups = {"*": {"weight_decay": weight_decay}}
        optimizer = optim.create_optimizer(
            kind, learning_rate=learning_rate, groups=groups, **fixed, **options
        )
        return walk(optimizer, params, gradients)

    return jax.jit(run)


def torch_walk(make, start, gradients, after=lambda: None):
    parameters = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    optimizer = make(parameters)
    found = {k: [] for k in start}
    for i in range(STEPS):
        for k, p in parameters.items():
            p.grad = torch.tensor(gradients[k][i])
        optimizer.step()
        after()
        for k, p in parameters.items():
            found[k].append(p.detach().numpy().copy())
    return {k: np.stack(v) for k, v in found.items()}


def assert_same_walk(ours, theirs):
    for key, wanted in theirs.items():
        error = np.abs(np.asarray(ours[key]) - wanted).max()
        assert np.isfinite(wanted).all()
        assert error <= 1e-10 * max(np.abs(wanted).max(), 1), (key, error)


@pytest.fixture(autouse=True, scope="module")
def unrounded():
    """torch's own Newton-Schulz iteration without its rounding to bfloat16, as the witness of Muon."""
    module = torch.optim._muon
    own = module._zeropower_via_newtonschulz
    source = inspect.getsource(own)
    assert "grad.bfloat16()" in source
    room = dict(vars(module))
    exec(source.replace("grad.bfloat16()", "grad.clone()"), room)
    module._zeropower_via_newtonschulz = room["_zeropower_via_newtonschulz"]
    yield
    module._zeropower_via_newtonschulz = own


@pytest.mark.parametrize("kind", CASES)
@few
@given(data=st.data())
def test_fifty_steps_are_torchs(kind, data):
    name, fixed, options = CASES[kind]
    options = {k: data.draw(s, label=k) for k, s in options.items()}
    learning_rate, weight_decay = data.draw(rate), data.draw(decay)
    shapes = MATRICES if name == "muon" else SHAPES
    start, gradients = drawn(data.draw(st.integers(0, 99)), shapes)
    # Weights are (in, out) in JAX and (out, in) in torch.
    turn = (lambda x: np.swapaxes(x, -1, -2).copy()) if name == "muon" else (lambda x: x)
    turned = jax.tree.map(turn, start), jax.tree.map(turn, gradients)
    ours = compiled(kind)(*turned, learning_rate, weight_decay, options)

    def make(parameters):
        cls = torch_optim.OPTIMIZERS[name]
        return cls(list(parameters.values()), lr=learning_rate, weight_decay=weight_decay, **fixed, **options)

    assert_same_walk(jax.tree.map(lambda x: turn(np.asarray(x)), ours), torch_walk(make, start, gradients))


def test_every_optimizer_is_compared():
    """The others are compared in test_torch_optim_samples.py."""
    others = {"adadelta", "adafactor", "asgd", "lbfgs", "rprop", "sparseadam"}
    compared = {name for name, _, _ in CASES.values()} | others
    assert compared == set(optim.OPTIMIZERS) == set(torch_optim.OPTIMIZERS)
    for kind in optim.OPTIMIZERS:
        theirs = inspect.signature(torch_optim.OPTIMIZERS[kind]).parameters
        for option, value in optim.hyper_parameters(kind).items():
            assert theirs[option].default == value, (kind, option)


class Net(torch.nn.Module):
    def __init__(self, start):
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
        self.double()
        for name, p in self.named_parameters():
            p.data = torch.tensor(start[name])


@few
@given(data=st.data())
def test_groups_are_torchs(data):
    shapes = {"body.weight": (3, 2), "body.bias": (3,), "head.weight": (1, 3), "head.bias": (1,)}
    start, gradients = drawn(data.draw(st.integers(0, 99)), shapes)
    groups = data.draw(
        st.sampled_from(
            [
                {"head.*": {"learning_rate": 0.3, "weight_decay": 0.2}},
                {"*.bias": {"lr_scale": 2.0, "momentum": 0.5}, "head.*": {"weight_decay": 0.0}},
                {"body.weight": {"lr_scale": 0.0}},
                {},
            ]
        )
    )
    common = {"learning_rate": 0.05, "weight_decay": 0.1, "momentum": 0.9, "groups": groups}
    ours = walk(optim.create_optimizer("sgd", **common), start, gradients)
    model = Net(start)

    def make(parameters):
        model._parameters = {}
        for name, p in parameters.items():
            owner, leaf = name.split(".")
            setattr(getattr(model, owner), leaf, torch.nn.Parameter(p.detach()))
            parameters[name] = getattr(getattr(model, owner), leaf)
        return torch_optim.create_optimizer(model, "sgd", **common)

    assert_same_walk(ours, torch_walk(make, start, gradients))


def test_another_optimizer_for_a_group():
    start, gradients = drawn(0, {"w": (3, 2), "b": (4,)})
    groups = {"b": {"optimizer": "adamw", "learning_rate": 0.1, "betas": (0.8, 0.9)}}
    ours = walk(optim.create_optimizer("muon", learning_rate=0.02, groups=groups), start, gradients)
    make = lambda p: torch.optim.AdamW([p["b"]], lr=0.1, betas=(0.8, 0.9), weight_decay=0.0)  # noqa: E731
    only = {k: {"b": v["b"]} for k, v in {"start": start, "gradients": gradients}.items()}
    assert_same_walk({"b": ours["b"]}, torch_walk(make, only["start"], only["gradients"]))
    with pytest.raises(UsageError, match="give b another optimizer"):
        optim.create_optimizer("muon", learning_rate=0.02).init(start)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_one_cycle_moves_rate_and_momentum(kind):
    start, gradients = drawn(3, SHAPES)
    cycle = {"total_steps": STEPS, "pct_start": 0.4, "three_phase": kind == "sgd"}
    schedule = lr_scheduler.OneCycleLR(0.1, **cycle)
    momentum = schedule.momentum
    option = {"momentum": momentum} if kind == "sgd" else {"betas": (momentum, 0.99)}
    ours = walk(
        optim.create_optimizer(kind, learning_rate=schedule, **option),
        start,
        gradients,
    )
    made = []

    def make(parameters):
        cls = torch_optim.OPTIMIZERS[kind]
        extra = {"momentum": 0.9} if kind == "sgd" else {"betas": (0.9, 0.99)}
        optimizer = cls(list(parameters.values()), lr=1.0, **extra)
        made.append(torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, **cycle))
        return optimizer

    assert_same_walk(ours, torch_walk(make, start, gradients, lambda: made[0].step()))


@jax.jit
def clipped(gradients, max_norm, max_value):
    rule = optax.chain(optim.clip_by_value(max_value), optim.clip_by_global_norm(max_norm))
    return rule.update(gradients, rule.init(gradients))[0]


@few
@given(st.integers(0, 99), st.floats(1e-6, 10), st.floats(1e-3, 3))
def test_clipping(seed, max_norm, max_value):
    gradients = {k: g[0] for k, g in drawn(seed, SHAPES)[1].items()}
    parameters = {
        k: torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for k, g in gradients.items()
    }
    for k, p in parameters.items():
        p.grad = torch.tensor(gradients[k])
    torch.nn.utils.clip_grad_value_(parameters.values(), max_value)
    torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
    ours = clipped(gradients, max_norm, max_value)
    rule = optim.create_optimizer("sgd", learning_rate=1.0, max_grad_norm=max_norm, max_grad_value=max_value)
    updates, _ = rule.update(gradients, rule.init(gradients), gradients)
    for k, p in parameters.items():
        np.testing.assert_allclose(ours[k], p.grad, rtol=1e-12)
        np.testing.assert_allclose(-updates[k], p.grad, rtol=1e-12)


@pytest.mark.parametrize("script", ["ooxooooxxoooooo", "x" * 15, "o" * 15])
def test_loss_scaling_is_grad_scalers(script):
    """Scale, tracker, parameters and moments after each of a sequence of finite (o) and infinite (x) gradients."""
    numbers = {"init_scale": 2.0**126, "growth_factor": 2.0, "backoff_factor": 0.25, "growth_interval": 3}
    start = np.array([1.0, -2.0])
    gradients = np.random.default_rng(0).normal(size=(len(script), 2))
    gradients[[c == "x" for c in script], 0] = np.array([np.inf, -np.inf, np.nan])[
        np.arange(script.count("x")) % 3
    ]
    weight = torch.tensor(start, requires_grad=True)
    own = torch.optim.Adam([weight], lr=0.1)
    theirs = torch.amp.GradScaler("cpu", **numbers)
    rule = scaler.loss_scaling(optim.create_optimizer("adam", learning_rate=0.1), **numbers)

    def step(carry, gradient):
        params, state = carry
        scaled = jax.grad(lambda p: scaler.scaled((p["w"] * gradient).sum(), state))(params)
        updates, state = rule.update(scaled, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    params = {"w": jnp.asarray(start)}
    _, (found, states) = jax.jit(lambda c, g: jax.lax.scan(step, c, g))(
        (params, rule.init(params)), gradients
    )
    for i, gradient in enumerate(gradients):
        own.zero_grad()
        theirs.scale((weight * torch.tensor(gradient)).sum()).backward()
        theirs.step(own)
        theirs.update()
        assert float(states.loss_scale.scale[i]) == theirs.get_scale()
        assert int(states.loss_scale.growth_tracker[i]) == theirs._get_growth_tracker()
        np.testing.assert_allclose(found["w"][i], weight.detach(), rtol=1e-12)
    assert int(states.skipped[-1]) == script.count("x")
    with pytest.raises(UsageError, match="backoff_factor"):
        scaler.loss_scaling(rule, backoff_factor=1.0)


def test_dtypes_stay_as_they_are():
    """A state keeps its dtypes whatever the parameters', schedules included: else jit and donation would fail."""
    cycled = {"betas": (lr_scheduler.OneCycleLR(0.1, 20).momentum, 0.9)}
    cases = [
        *((kind, {}) for kind in optim.OPTIMIZERS if kind != "lbfgs"),
        ("adam", cycled),
        ("sgd", {"momentum": 0.9, "dampening": 0.1}),
    ]
    schedule = optim.create_schedule("cosine", 0.1, 2, 9)
    for kind, options in cases:
        rule = optim.create_optimizer(kind, learning_rate=schedule, max_grad_norm=1.0, **options)
        for dtype in (jnp.bfloat16, jnp.float32):
            params = {"w": jax.ShapeDtypeStruct((3, 2), dtype)}
            before = jax.eval_shape(rule.init, params)
            updates, after = jax.eval_shape(rule.update, params, before, params)
            assert updates["w"].dtype == dtype, kind
            forms = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (before, after)]
            assert forms[0] == forms[1], kind


def test_what_is_refused():
    def refused(match, kind="sgd", **options):
        with pytest.raises(UsageError, match=match):
            optim.create_optimizer(kind, **{"learning_rate": 0.1, **options}).init({"w": jnp.ones((2, 2))})

    refused("unknown optimizer 'adamm'", "adamm")
    refused("did you mean 'momentum'", momentun=0.9)
    refused("unknown option of adam 'momentum'", "adam", momentum=0.9)
    refused("nesterov needs a momentum", nesterov=True)
    refused("betas must be two numbers in", "adam", betas=5)
    refused("momentum must not be negative", momentum="much")
    refused("has no weight decay", "rprop", weight_decay=0.1)
    refused("neither groups nor clipping", "lbfgs", max_grad_norm=1.0)
    refused("no dampening", nesterov=True, momentum=0.9, dampening=0.1)
    refused("betas", "adam", betas=(0.9, 1.0))
    refused("eps must not be negative", "adam", eps=-1.0)
    refused("learning_rate must not be negative", learning_rate=-0.1)
    refused("weight_decay must not be negative", weight_decay=-0.1)
    refused("adjust_lr_fn must be None or 'original'", "muon", adjust_lr_fn="none")
    refused("matches no parameter", groups={"*.bias": {"weight_decay": 0.0}})
    refused("none that a group before it left", groups={"*": {"lr_scale": 2.0}, "w": {"lr_scale": 3.0}})
    refused("unknown field of group w 'decay'", groups={"w": {"decay": 0.0}})
    refused("not both", groups={"w": {"lr_scale": 2.0, "learning_rate": 1.0}})


def test_a_page_says_what_its_optimizer_is():
    from jaxarch import catalog
    from jaxarch.train.recipe import page_optimizer, recipe_of, schedule_of

    recipe, *_ = recipe_of("mlp", None, {})
    by_hand = optim.create_optimizer(
        recipe.optimizer,
        learning_rate=schedule_of(recipe),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
    )
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    gradients = {"w": jnp.full((2, 3), 0.3), "b": jnp.arange(3.0)}
    steps = [
        o.update(gradients, o.init(params), params)[0] for o in (page_optimizer(catalog.page("mlp")), by_hand)
    ]
    for key in params:
        np.testing.assert_array_equal(steps[0][key], steps[1][key])
    with pytest.raises(UsageError, match="for each of critic, generator"):
        page_optimizer(catalog.page("conditional_generator"))
    with pytest.raises(UsageError, match="unknown optimizer"):
        optim.create_optimizer(catalog.page("mlp"), learning_rate=1e-3)
    with pytest.raises(UsageError, match="needs a learning_rate"):
        optim.create_optimizer("adam")
