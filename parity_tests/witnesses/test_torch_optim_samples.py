"""Every optimizer of torch.optim with the options of PyTorch's own samples: parameters after each of ten steps."""

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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

STEPS = 10
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


def lbfgs_pair(kwargs, steps=STEPS):
    parameters = {k: torch.tensor(v, requires_grad=True) for k, v in LBFGS_START.items()}
    optimizer = torch.optim.LBFGS(list(parameters.values()), **kwargs)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(parameters, torch)
        loss.backward()
        return loss

    theirs = []
    for _ in range(steps):
        optimizer.step(closure)
        theirs.append({k: p.detach().numpy().copy() for k, p in parameters.items()})
    rule = optim.LBFGS(**{k: to_ours(v) for k, v in kwargs.items()})
    value_fn = lambda p: loss_of(p, jnp)  # noqa: E731

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(value_fn)(params)
        updates, state = rule.update(grads, state, params, value=value, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params = {k: jnp.asarray(v) for k, v in LBFGS_START.items()}
    state, ours = rule.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        ours.append(params)
    return ours, theirs, state, optimizer


@pytest.mark.parametrize("sample", [s for s, (name, _) in SAMPLES.items() if name == "LBFGS"])
def test_ten_steps_with_a_closure(sample):
    ours, theirs, state, optimizer = lbfgs_pair(SAMPLES[sample][1])
    assert_same(ours, theirs)
    own = next(iter(optimizer.state.values()))
    assert (int(state.n_iter), int(state.func_evals)) == (own["n_iter"], own["func_evals"])
