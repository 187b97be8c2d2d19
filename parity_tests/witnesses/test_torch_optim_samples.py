"""Every optimizer of torch.optim with the options of PyTorch's own samples: parameters after each of ten steps."""

import copy
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.experimental.sparse import BCOO

from jaxarch import optim
from jaxarch.convert.layout import Row
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import UsageError
from jaxarch.handover.optimizer import (
    Hyper,
    check_groups,
    from_optimizer_state_dict,
    from_torch_optimizer,
    kind_of,
    to_optimizer_state_dict,
)
from torchref.optim import Lion

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

STEPS = 10
HALF = 5
# What torch refuses and has no meaning here, by the sample's description, and why.
WITHOUT_MEANING = {
    "invalid param type": "a single array is a tree of one leaf",
    "a param group cannot have duplicate parameters": "a tree holds each leaf once",
    "duplicate parameters should not occur across param groups either": (
        "a path belongs to the first group whose glob matches it"
    ),
    "all optimizer params should be with/without names": "a tree gives every leaf a path",
    "all optimizer param groups should be with/without names.": "a tree gives every leaf a path",
    "lr as Tensor doesn't work with foreach & not capturable": "one implementation takes numbers and arrays",
    "betas must be either both floats or both Tensors": "each of the betas may be an array or a schedule",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": (
        "one implementation takes numbers and arrays"
    ),
}
DB = {info.name: info for info in optim_db}
SHAPES = {"w": (3, 2), "b": (4,), "s": (), "k": (2, 3, 2, 2)}
MATRICES = {"w": (3, 2), "v": (2, 3), "u": (3, 3)}


def inputs_of(info):
    return info.optim_inputs_func(device="cpu", dtype=torch.float64)


SAMPLES = {f"{name}: {i.desc}": (name, i.kwargs) for name, info in DB.items() for i in inputs_of(info)}


def to_ours(value):
    """A torch argument as ours: tensors as arrays."""
    if isinstance(value, torch.Tensor):
        return jnp.asarray(value.detach().numpy())
    return tuple(map(to_ours, value)) if isinstance(value, tuple) else value


def drawn(name):
    """Parameters and ten gradients of different sizes; one of them zero, some with changing signs."""
    rng = np.random.default_rng(3)
    shapes = MATRICES if name == "Muon" else SHAPES
    start = {k: rng.normal(size=s) for k, s in shapes.items()}
    gradients = {k: rng.normal(size=(STEPS, *s)) * 10 ** rng.uniform(-2, 1) for k, s in shapes.items()}
    for g in gradients.values():
        g[7] = 0
    if name == "SparseAdam":
        for g in gradients.values():
            g *= rng.permuted(np.arange(g[0].size) * np.ones((STEPS, 1)), axis=1).reshape(g.shape) % 2
    return start, gradients


def make_ours(name, kwargs, start):
    options = {k: to_ours(v) for k, v in kwargs.items()}
    if name in ("Adafactor", "Muon"):
        options["axes"] = dict.fromkeys(start)
    return getattr(optim, name)(**options)


def our_walk(optimizer, start, gradients, state=None, sparse=False):
    """The parameters after every step, and the last state."""
    params = {k: jnp.asarray(v) for k, v in start.items()}
    state = optimizer.init(params) if state is None else state
    found = []
    for i in range(len(next(iter(gradients.values())))):
        grads = {k: jnp.asarray(g[i]) for k, g in gradients.items()}
        grads = {k: BCOO.fromdense(g, nse=max(g.size // 2, 1)) for k, g in grads.items()} if sparse else grads
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found, state


def torch_walk(optimizer, parameters, gradients, sparse=False):
    found = []
    for i in range(len(next(iter(gradients.values())))):
        for k, p in parameters.items():
            g = torch.tensor(gradients[k][i])
            p.grad = g.to_sparse() if sparse else g
        optimizer.step()
        found.append({k: p.detach().numpy().copy() for k, p in parameters.items()})
    return found


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for k, expected in b.items():
            assert np.isfinite(expected).all()
            error = np.abs(np.asarray(a[k]) - expected).max()
            assert error <= 1e-10 * max(np.abs(expected).max(), 1), (step, k, error)


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


# torch rounds the factor 1 - lr * weight_decay to the dtype of a tensor lr, here float32: both get it in float64.
ROUNDED = ("Muon: Tensor lr",)


@pytest.mark.parametrize("sample", [s for s, (name, _) in SAMPLES.items() if name != "LBFGS"])
def test_ten_steps(sample):
    name, kwargs = SAMPLES[sample]
    if sample in ROUNDED:
        kwargs = {**kwargs, "lr": kwargs["lr"].double()}
    ten_steps(name, kwargs)


def ten_steps(name, kwargs):
    start, gradients = drawn(name)
    parameters = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    sparse = name == "SparseAdam"
    theirs = torch_walk(
        getattr(torch.optim, name)(list(parameters.values()), **kwargs), parameters, gradients, sparse
    )
    ours, _ = our_walk(make_ours(name, kwargs, start), start, gradients, sparse=sparse)
    assert_same(ours, theirs)


RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))


def loss_of(params, lib):
    """A convex function whose surface is curved, in either framework."""
    x, y = (X, Y) if lib is jnp else (torch.tensor(X), torch.tensor(Y))
    h = lib.exp(0.5 * (x @ params["w"] + params["b"])) - y * (x @ params["w"])
    return h.mean() + 0.05 * (params["w"] ** 2).sum() + 0.05 * (params["b"] ** 2).sum()


LBFGS_START = {"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=2)}


def torch_lbfgs(kwargs, start, steps, state=None):
    """(the parameters after every step, the optimizer)"""
    parameters = {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in start.items()}
    optimizer = torch.optim.LBFGS(list(parameters.items()), **kwargs)
    if state is not None:
        optimizer.load_state_dict({k: v for k, v in state.items() if k != "step"})

    def closure():
        optimizer.zero_grad()
        loss = loss_of(parameters, torch)
        loss.backward()
        return loss

    theirs = []
    for _ in range(steps):
        optimizer.step(closure)
        theirs.append({k: p.detach().numpy().copy() for k, p in parameters.items()})
    return theirs, optimizer


def our_lbfgs(rule, rows, params, state, steps):
    """The parameters after every step, and the last state."""
    perms = {r.path: r.perm for r in rows}

    def value_fn(params):
        return loss_of({k: v if perms[k] is None else v.transpose(perms[k]) for k, v in params.items()}, jnp)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = rule.update(grads, state, params, value=value, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params, ours = {k: jnp.asarray(v) for k, v in params.items()}, []
    for _ in range(steps):
        params, state = step(params, state)
        ours.append(params)
    return ours, state


def lbfgs_pair(kwargs, steps=STEPS):
    theirs, optimizer = torch_lbfgs(kwargs, LBFGS_START, steps)
    rule = optim.LBFGS(**{k: to_ours(v) for k, v in kwargs.items()})
    rows = [Row(k, k, None, True) for k in LBFGS_START]
    ours, state = our_lbfgs(rule, rows, LBFGS_START, rule.init(LBFGS_START), steps)
    return ours, theirs, state, optimizer


@pytest.mark.parametrize("sample", [s for s, (name, _) in SAMPLES.items() if name == "LBFGS"])
def test_ten_steps_with_a_closure(sample):
    ours, theirs, state, optimizer = lbfgs_pair(SAMPLES[sample][1])
    assert_same(ours, theirs)
    own = next(iter(optimizer.state.values()))
    assert (int(state.n_iter), int(state.func_evals)) == (own["n_iter"], own["func_evals"])


def test_no_optimizer_of_torch_is_missing():
    """torch's names, the order of their arguments, and their defaults; `params` apart, which optax takes later."""
    theirs = {
        k: v
        for k, v in vars(torch.optim).items()
        if isinstance(v, type) and issubclass(v, torch.optim.Optimizer) and v is not torch.optim.Optimizer
    }
    assert set(theirs) == set(DB)
    assert {k.lower() for k in theirs} | {"lion"} == set(optim.OPTIMIZERS)
    for name, cls in {**theirs, "Lion": Lion}.items():
        _, *expected = inspect.signature(cls).parameters.values()
        actual = [p for p in inspect.signature(getattr(optim, name)).parameters.values() if p.name != "axes"]
        assert [(p.name, p.kind, p.default) for p in actual] == [
            (p.name, p.kind, p.default) for p in expected
        ], name


def errors_of(name):
    return DB[name].optim_error_inputs_func(device="cpu", dtype=torch.float64)


@pytest.mark.parametrize("name", DB)
def test_what_torch_refuses_is_refused(name):
    """In one line that names the optimizer."""
    refused = 0
    for error in errors_of(name):
        given = error.optimizer_error_input
        if given.desc in WITHOUT_MEANING:
            continue
        params = given.params if given.params is not None else [torch.zeros(2, 2)]
        tensors = [t for group in params for t in (group["params"] if isinstance(group, dict) else [group])]
        arrays = {
            str(i): BCOO.fromdense(jnp.zeros(t.shape)) if t.is_sparse else jnp.asarray(t.detach().numpy())
            for i, t in enumerate(tensors)
        }
        with pytest.raises(UsageError, match=f"^{name}[: ]") as caught:
            getattr(optim, name)(**{k: to_ours(v) for k, v in given.kwargs.items()}).init(arrays)
        assert "\n" not in str(caught.value)
        refused += 1
    assert refused


def test_what_has_no_meaning_is_not_stale():
    """Each row describes a sample of torch's, and its arguments are taken here."""
    given = {
        e.optimizer_error_input.desc: (name, e.optimizer_error_input) for name in DB for e in errors_of(name)
    }
    assert set(WITHOUT_MEANING) <= set(given)
    for desc in WITHOUT_MEANING:
        name, sample = given[desc]
        getattr(optim, name)(**{k: to_ours(v) for k, v in sample.kwargs.items()}).init(
            {"w": jnp.zeros((2, 2))}
        )
    for sample in ROUNDED:
        with pytest.raises(AssertionError):
            ten_steps(*SAMPLES[sample])


# Where torch's implementations differ from one another: the foreach one of ASGD does not keep its rate in float32.
UNLIKE = (("ASGD", "foreach"),)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in DB if n not in ("LBFGS", "Muon", "SparseAdam")])
@pytest.mark.parametrize("switch", ["foreach", "differentiable", "capturable", "fused"])
def test_implementations_of_torch_are_one_here(name, switch):
    """torch's other implementations give the same numbers; ours takes the switch and has one."""
    options = inspect.signature(getattr(torch.optim, name)).parameters
    if switch not in options:
        return
    options = dict(inputs_of(DB[name])[-1].kwargs)
    options = {k: v for k, v in options.items() if not isinstance(v, torch.Tensor)}
    start, gradients = drawn(name)
    ours, _ = our_walk(make_ours(name, {**options, switch: True}, start), start, gradients)
    plain, _ = our_walk(make_ours(name, options, start), start, gradients)
    jax.tree.map(np.testing.assert_array_equal, ours, plain)
    if switch == "foreach" or (switch == "fused" and "cpu" in DB[name].supports_fused_on):
        parameters = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
        optimizer = getattr(torch.optim, name)(list(parameters.values()), **options, **{switch: True})
        theirs = torch_walk(optimizer, parameters, gradients)
        if (name, switch) in UNLIKE:
            with pytest.raises(AssertionError):
                assert_same(ours, theirs)
        else:
            assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Rprop", "ASGD", "Adagrad"])
def test_complex_parameters(name):
    """Real and imaginary parts are two parameters, as in torch."""
    rng = np.random.default_rng(5)
    draw = lambda *s: rng.normal(size=s) + 1j * rng.normal(size=s)  # noqa: E731
    start, gradients = {"z": draw(3, 2)}, {"z": draw(STEPS, 3, 2)}
    kwargs = {"Adam": {"amsgrad": True, "weight_decay": 0.1}, "Adagrad": {"initial_accumulator_value": 0.1}}
    kwargs = kwargs.get(name, {})
    parameters = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    theirs = torch_walk(
        getattr(torch.optim, name)(list(parameters.values()), **kwargs), parameters, gradients
    )
    ours, _ = our_walk(getattr(optim, name)(**kwargs), start, gradients)
    assert_same(ours, theirs)


def test_rows_without_a_gradient_stay_under_sparse_adam():
    """A dense gradient counts as that of an embedding: rows that are all zero keep their moments."""
    rule = optim.SparseAdam(lr=0.1)
    params = {"table": jnp.ones((4, 2))}
    state = rule.init(params)
    for row in (0, 2):
        grads = {"table": jnp.zeros((4, 2)).at[row, 0].set(1.0)}
        updates, state = rule.update(grads, state, params)
        changed = np.flatnonzero(np.asarray(updates["table"]).any(1))
        np.testing.assert_array_equal(changed, [row])
    np.testing.assert_array_equal(np.flatnonzero(state.slots["exp_avg"]["table"][:, 0]), [0, 2])


# --------------------------------------------------------------------------- the state, there and back

PERMS = {2: (1, 0), 4: (2, 3, 1, 0)}


def handed(name, kwargs, start):
    """(rows of weights whose axes JAX keeps in another order, our optimizer, its description)"""
    rows = [Row(k, k, PERMS.get(v.ndim), True) for k, v in start.items()]
    options = {k: to_ours(v) for k, v in kwargs.items()}
    axes = {"axes": {r.path: r.perm for r in rows}} if name in ("Adafactor", "Muon") else {}
    hyper = {
        "learning_rate": options.pop("lr", inspect.signature(getattr(optim, name)).parameters["lr"].default)
    }
    groups = None
    if "weight_decay" in inspect.signature(getattr(optim, name)).parameters:
        default = inspect.signature(getattr(optim, name)).parameters["weight_decay"].default
        hyper["weight_decay"] = options.pop("weight_decay", default)
        groups = {"*": {"weight_decay": hyper["weight_decay"]}}
    rule = getattr(optim, name)(**{k: to_ours(v) for k, v in kwargs.items()}, **axes)
    return rows, rule, Hyper(name.lower(), **hyper, groups=groups, options=options)


def turned(rows, values, lead=0):
    """Arrays of torch's layout in ours."""
    perms = {r.path: r.perm for r in rows}
    return {
        k: v if perms[k] is None else v.transpose((*range(lead), *(p + lead for p in perms[k])))
        for k, v in values.items()
    }


def back_turned(rows, found):
    return [to_torch(rows, params) for params in found]


def part(gradients, steps):
    return {k: g[steps] for k, g in gradients.items()}


LAST = {f"{name}: {inputs_of(info)[-1].desc}" for name, info in DB.items()}
CASES = [
    pytest.param(s, marks=[] if s in LAST else pytest.mark.slow)
    for s, (n, _) in SAMPLES.items()
    if n != "LBFGS"
]


@pytest.mark.parametrize("sample", CASES)
def test_states_go_both_ways(sample):
    """Five steps in one framework and five in the other are ten in one."""
    name, kwargs = SAMPLES[sample]
    kwargs = {k: v.double() if sample in ROUNDED else v for k, v in kwargs.items()}
    start, gradients = drawn(name)
    first, second = part(gradients, slice(HALF)), part(gradients, slice(HALF, None))
    rows, rule, hyper = handed(name, kwargs, start)
    sparse = name == "SparseAdam"

    def fresh(values, state=None):
        parameters = {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in values.items()}
        optimizer = getattr(torch.optim, name)(list(parameters.items()), **kwargs)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy({k: v for k, v in state.items() if k != "step"}))
        return optimizer, parameters

    optimizer, parameters = fresh(start)
    half = torch_walk(optimizer, parameters, first, sparse)[-1]
    saved = copy.deepcopy(optimizer.state_dict())
    # torch itself rounds NAdam's and ASGD's scalars otherwise once it has loaded a state.
    reloaded = torch_walk(*fresh(half, saved), second, sparse)
    whole = torch_walk(optimizer, parameters, second, sparse)

    slots, _, groups = from_optimizer_state_dict(rows, saved)
    our_start = {k: jnp.asarray(v) for k, v in turned(rows, start).items()}
    check_groups(rows, our_start, hyper, groups)
    assert kind_of(groups) == hyper.kind
    state = from_torch_optimizer(rows, slots, rule.init(our_start), step=HALF)
    found, _ = our_walk(rule, turned(rows, half), turned(rows, second, 1), state, sparse)
    assert_same(back_turned(rows, found), whole)

    found, state = our_walk(rule, our_start, turned(rows, first, 1), sparse=sparse)
    written = to_optimizer_state_dict(rows, our_start, state, hyper)
    there = fresh(back_turned(rows, found)[-1], written)
    assert_same(torch_walk(*there, second, sparse), reloaded)


LBFGS_CASES = [
    pytest.param(s, marks=[] if s in LAST else pytest.mark.slow)
    for s, (n, _) in SAMPLES.items()
    if n == "LBFGS"
]


@pytest.mark.parametrize("sample", LBFGS_CASES)
def test_states_of_lbfgs_go_both_ways(sample):
    """With a history that has wrapped around."""
    kwargs = {**SAMPLES[sample][1], "history_size": 7, "max_iter": 4}
    rows, rule, hyper = handed("LBFGS", kwargs, LBFGS_START)
    _, theirs, _, _ = lbfgs_pair(kwargs)
    (*_, half), optimizer = torch_lbfgs(kwargs, LBFGS_START, HALF)
    slots, _, groups = from_optimizer_state_dict(rows, optimizer.state_dict())
    our_start = {k: jnp.asarray(v) for k, v in turned(rows, LBFGS_START).items()}
    check_groups(rows, our_start, hyper, groups)
    state = from_torch_optimizer(rows, slots, rule.init(our_start), step=HALF)
    found, _ = our_lbfgs(rule, rows, turned(rows, half), state, HALF)
    assert_same(back_turned(rows, found), theirs[HALF:])
    found, state = our_lbfgs(rule, rows, our_start, rule.init(our_start), HALF)
    written = to_optimizer_state_dict(rows, our_start, state, hyper)
    found, _ = torch_lbfgs(kwargs, back_turned(rows, found)[-1], HALF, written)
    assert_same(found, theirs[HALF:])
