"""A model's state as flat dictionaries from path to array, and the random streams that models are built with.

The path is the attribute path joined by dots, which is torch's state_dict key. Optimizers, checkpoints,
sharding rules and the parity harness all work on these dictionaries.
"""

from typing import NamedTuple

import jax
from flax import nnx

Flat = dict[str, jax.Array]


class Split(NamedTuple):
    """A split model: its structure, its trainable parameters, and the remaining state (running statistics,
    buffers, random streams)."""

    graph: nnx.GraphDef
    params: Flat
    rest: Flat


def join(path: tuple) -> str:
    """An nnx path as a dotted string."""
    return ".".join(map(str, path))


def part(path: str) -> tuple:
    """A dotted string as an nnx path; digits are indices of lists, but for `parametrizations.NAME.0`, beside names."""
    names = path.split(".")
    beside_names = {i + 2 for i, name in enumerate(names) if name == "parametrizations"}
    return tuple(int(p) if p.isdigit() and i not in beside_names else p for i, p in enumerate(names))


def flat(state: nnx.State) -> Flat:
    """An nnx State as a flat dictionary of arrays."""
    return {join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def split(model: nnx.Module) -> Split:
    """Split a model; `merge` is the inverse."""
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    return Split(graph, flat(params), flat(rest))


def merge(graph: nnx.GraphDef, *states: Flat) -> nnx.Module:
    """A model from its structure and flat dictionaries that together hold all of its state."""
    pairs = [(part(path), value) for state in states for path, value in state.items()]
    return nnx.merge(graph, nnx.from_flat_state(pairs))


def update(model: nnx.Module, values: Flat) -> None:
    """Set the leaves of a model that `values` names, in place."""
    variables = {join(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    pairs = [(part(path), variables[path].replace(value)) for path, value in values.items()]
    nnx.update(model, nnx.from_flat_state(pairs))


def rest_of(model: nnx.Module) -> Flat:
    """The remaining state of a model, such as running statistics that a call has updated."""
    return split(model).rest


def set_by_call(model: nnx.Module, params: Flat) -> Flat:
    """The parameters that a call has set in place, as an Embedding's `max_norm` does; `params` are those before."""
    return {k: v for k, v in split(model).params.items() if k in params and v is not params[k]}


class Stream(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted without inspecting the sharding of the count.

    While a model is traced that inspection fails, after formatting the whole trace, for every key anew.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def make_rngs(seed: int) -> nnx.Rngs:
    """`nnx.Rngs(seed)`, with which models are built faster."""
    rngs = nnx.Rngs(seed)
    rngs.default = Stream(rngs["default"].key[...], tag="default")  # type: ignore[attr-defined]
    return rngs
