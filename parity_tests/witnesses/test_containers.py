"""Containers against torch's: keys, order, indexing and editing, also after a split and a merge."""

from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from jaxarch import nn, state
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import UsageError
from jaxarch.handover.optimizer import _registered

X = np.random.default_rng(0).normal(size=(2, 3))


class Torch:
    """torch's layers, built without random keys."""

    nn = tnn

    @staticmethod
    def linear(i, o):
        return tnn.Linear(i, o)

    @staticmethod
    def array(*shape):
        return tnn.Parameter(torch.ones(shape))


class Jax:
    """The same calls in JAX."""

    nn = nn
    rngs = nnx.Rngs(0)

    @classmethod
    def linear(cls, i, o):
        return nn.Linear(i, o, rngs=cls.rngs)

    @staticmethod
    def array(*shape):
        return jnp.ones(shape)


def named(lib):
    return lib.nn.Sequential(
        OrderedDict([("up", lib.linear(3, 4)), ("act", lib.nn.Tanh()), ("down", lib.linear(4, 3))])
    )


def numbered(lib):
    return lib.nn.Sequential(lib.linear(3, 4), lib.nn.Tanh(), lib.linear(4, 3))


def edited(lib):
    net = numbered(lib)
    net.append(lib.nn.ReLU()).extend([lib.linear(3, 5), lib.linear(5, 3)])
    net.insert(1, lib.linear(4, 4))
    net[0] = lib.linear(3, 4)
    del net[2]
    net.pop(-1)
    return net


def parameter_dict(lib):
    table = lib.nn.ParameterDict({"z": lib.array(2), "a": lib.array(3)})
    table["m"] = lib.array(4)
    del table["a"]
    table.update({"a": lib.array(5)})
    return table


def parameter_list(lib):
    values = lib.nn.ParameterList([lib.array(2), lib.array(3)])
    values.append(lib.array(4)).extend([lib.array(5)])
    values[1] = lib.array(6)
    return values


BUILDS = {
    "numbered": numbered,
    "named": named,
    "edited": edited,
    "slice of a sequential": lambda lib: numbered(lib)[1:],
    "slice of names": lambda lib: named(lib)[:-1],
    "sum": lambda lib: numbered(lib) + named(lib),
    "list": lambda lib: lib.nn.ModuleList([lib.linear(3, 3)]).append(lib.linear(3, 4)),
    "slice of a list": lambda lib: lib.nn.ModuleList(numbered(lib))[1:],
    "sum of lists": lambda lib: lib.nn.ModuleList([lib.linear(3, 3)]) + lib.nn.ModuleList([lib.linear(3, 4)]),
    "dictionary": lambda lib: lib.nn.ModuleDict({"z": lib.linear(3, 4), "a": lib.linear(4, 3)}),
    "dictionary of digits": lambda lib: lib.nn.ModuleDict({"7": lib.linear(3, 4), "10": lib.linear(4, 3)}),
    "parameters": parameter_list,
    "parameters by name": parameter_dict,
}


@pytest.mark.parametrize("name", BUILDS)
def test_keys_order_and_strict_loading_both_ways(name):
    theirs, ours = BUILDS[name](Torch).double(), BUILDS[name](Jax)
    load_state_dict(ours, theirs.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(ours).items()}, strict=True)
    merged = state.merge(*state.split(ours))
    assert list(_registered(ours)) == [k for k, _ in theirs.named_parameters()]
    for container in (ours, merged):
        assert len(container) == len(theirs)
        names = [str(i) for i in range(len(theirs))] if isinstance(theirs, tnn.ParameterList) else None
        names = names or list(vars(theirs).get("_keys", theirs._modules))
        assert [k for k, _ in nn.named_children(container)] == names
        if isinstance(theirs, tnn.ModuleDict | tnn.ParameterDict):
            assert list(container) == list(theirs.keys())
        if isinstance(theirs, tnn.Sequential) and len(theirs) > 2:
            expected = theirs(torch.from_numpy(X)).detach().numpy()
            np.testing.assert_allclose(container(jnp.asarray(X)), expected, atol=1e-14)


def test_indexing():
    net = named(Jax)
    assert net[0] is net.up
    assert net[-1] is net.down
    assert next(iter(net[1:])) is net.act
    assert isinstance(net[1:], nn.Sequential)
    assert isinstance(nn.ModuleList(net)[:1], nn.ModuleList)
    with pytest.raises(IndexError):
        net[3]
    table = nn.ModuleDict([("a", nn.Tanh())])
    assert "a" in table
    with pytest.raises(KeyError):
        table["train"]


def test_train_and_eval_reach_every_child():
    net = nn.Sequential(
        {"drop": nn.Dropout(rngs=Jax.rngs), "all": nn.ModuleDict({"norm": nn.BatchNorm1d(3)})}
    )
    net.eval()
    assert net.drop.deterministic
    assert net.all["norm"].use_running_average


@pytest.mark.parametrize(
    "build", [lambda k: nn.ModuleDict({k: nn.Tanh()}), lambda k: nn.Sequential({k: nn.Tanh()})]
)
@pytest.mark.parametrize("key", ["", "a.b", "train", "pop"])
def test_a_name_that_cannot_be_a_key(build, key):
    with pytest.raises(UsageError, match="name"):
        build(key)


def test_digits_and_other_names_in_one_container():
    """Flax sorts the paths of a state, and cannot compare an index with a name."""
    with pytest.raises(UsageError, match="'a' and '0'"):
        nn.ModuleDict({"a": nn.Tanh(), "0": nn.Tanh()})
