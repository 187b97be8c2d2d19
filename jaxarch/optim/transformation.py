"""torch.optim's step as an optax transformation, around the rule of one parameter.

A rule is written for one real parameter, as torch's `_single_tensor_...` functions are; what all of them share is
here: options that are schedules, maximize, weight decay, complex parameters, sparse gradients, the state.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.experimental.sparse import BCOO

from jaxarch.errors import UsageError

Transformation: TypeAlias = optax.GradientTransformationExtraArgs
# Whether weight decay acts on the parameter of a path.
Decays = Callable[[str, jax.Array], bool]
# path -> the permutation from torch's axes to JAX's, as `convert.layout.Row` has it.
Axes = Mapping[str, tuple[int, ...] | None]
State = dict[str, jax.Array]


class OptimizerState(NamedTuple):
    """The state of any of torch's optimizers, by torch's names.

    Attributes:
        count: the updates so far, which schedules take.
        scalars: name -> one number for each parameter, in the order of the leaves: "step", "mu_product", "eta", "mu".
        slots: name -> a tree like the parameters: "exp_avg", "momentum_buffer", ... A parameter that has no slot
            of the name, such as a vector under Adafactor, is not among its leaves.
    """

    count: Any  # type: ignore[assignment]  # as optax calls it; it hides tuple.count
    scalars: dict[str, jax.Array]
    slots: dict[str, Any]


class Parameter(NamedTuple):
    """One parameter at one step, real and dense.

    Attributes:
        grad: its gradient, negated if the optimizer maximizes, before weight decay.
        state: its slots and scalars before the step.
        step: the number of this step, from 1, as a float.
        weight_decay: 0 if it does not act on this parameter.
        perm: the permutation from torch's axes to JAX's; None for the same order.
        touched: where a sparse gradient has entries; None for a dense one.
    """

    value: jax.Array
    grad: jax.Array
    state: State
    step: jax.Array
    lr: Any
    weight_decay: Any
    perm: tuple[int, ...] | None
    touched: jax.Array | None


class Rule(NamedTuple):
    """An update rule.

    Attributes:
        slots: the initial slots of a parameter, given the options and its permutation.
        update: what is added to the parameter, and the slots and scalars that change.
        scalars: names of further numbers, of float32 as in torch, -> their initial values, given the options.
        sparse: "dense" if a sparse gradient is read as a dense one, "lazy" if only its entries change anything,
            "refused".
        is_complex: whether it takes complex parameters, as pairs of real numbers.
        only_matrices: whether it takes arrays of two dims alone.
    """

    slots: Callable[[jax.Array, SimpleNamespace, tuple[int, ...] | None], State]
    update: Callable[[Parameter, SimpleNamespace], tuple[jax.Array, State]]
    scalars: Callable[[SimpleNamespace], dict[str, Any]] = lambda options: {}
    sparse: str = "refused"
    is_complex: bool = True
    only_matrices: bool = False


def per_parameter(
    name: str, rule: Rule, options: Mapping[str, Any], decays: Decays | None = None, axes: Axes | None = None
) -> Transformation:
    """The transformation of a rule.

    Args:
        name: of the optimizer, for messages.
        options: torch's arguments, any of which may be a schedule of the number of updates so far.
        decays: where weight decay acts; everywhere if None.
        axes: the permutations of the parameters by path. Without them matrices are (in, out), as those of
            `nn.Linear`, and other arrays in torch's order. Only Muon and Adafactor look at the order of axes.
    """

    def init(params: Any) -> OptimizerState:
        count = jnp.zeros((), jnp.int32)
        now = values_at(options, count)
        paths, leaves, treedef = flatten(params)
        states = []
        for path, leaf in zip(paths, leaves, strict=True):
            _check_parameter(name, path, leaf, rule)
            slots = rule.slots(as_real(leaf), now, perm_of(path, leaf, axes))
            states.append({k: like(v, leaf) for k, v in slots.items()})
        n = len(leaves)
        scalars = {k: jnp.full((n,), v, jnp.float32) for k, v in rule.scalars(now).items()}
        step = jnp.zeros((n,), jnp.int32)
        return OptimizerState(count, {"step": step, **scalars}, _by_slot(states, params, treedef))

    def update(
        updates: Any, state: OptimizerState, params: Any = None, **extra: Any
    ) -> tuple[Any, OptimizerState]:
        if params is None:
            raise UsageError(f"{name} needs the parameters: update(gradients, state, params)")
        now = values_at(options, state.count)
        paths, leaves, treedef = flatten(params)
        grads = treedef.flatten_up_to(updates)
        states = _by_parameter(state, params, treedef)
        step = state.scalars["step"] + 1
        deltas, new_states = [], []
        for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
            old = states[i]
            grad, touched = _dense(name, path, grads[i], rule)
            has_decay = decays is None or decays(path, leaf)
            parameter = Parameter(
                value=as_real(leaf),
                grad=as_real(-grad if getattr(now, "maximize", False) else grad),
                state={k: as_real(v) for k, v in old.items()},
                step=step[i].astype(jnp.result_type(float)),
                lr=now.lr,
                weight_decay=getattr(now, "weight_decay", 0.0) if has_decay else 0.0,
                perm=perm_of(path, leaf, axes),
                touched=touched,
            )
            delta, changed = rule.update(parameter, now)
            deltas.append(like(delta, leaf))
            new_states.append({k: like(changed.get(k, v), v) for k, v in old.items()})
        scalars = {
            k: step if k == "step" else jnp.stack([s[k] for s in new_states]) for k in state.scalars if leaves
        } or state.scalars
        slots = [{k: v for k, v in s.items() if k not in state.scalars} for s in new_states]
        new_state = OptimizerState(state.count + 1, scalars, _by_slot(slots, params, treedef, state.slots))
        return jax.tree.unflatten(treedef, deltas), new_state

    return with_standard_promotion(Transformation(init, update))


def with_standard_promotion(rule: optax.GradientTransformation) -> Transformation:
    """The rule under standard dtype promotion: integer counts are mixed with floats, which strict promotion refuses."""
    inner = optax.with_extra_args_support(rule)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return Transformation(rule.init, update)


def values_at(options: Mapping[str, Any], count: jax.Array) -> SimpleNamespace:
    """The options with the values of those that are schedules, alone or within a pair."""

    def value(v: Any) -> Any:
        if isinstance(v, tuple | list):
            return tuple(map(value, v))
        v = v(count) if callable(v) else v
        # torch reads a number out of a tensor: what is computed with it is not rounded to the tensor's dtype.
        return v.reshape(()).astype(jnp.result_type(float)) if isinstance(v, jax.Array) else v

    return SimpleNamespace(**{k: value(v) for k, v in options.items()})


def flatten(params: Any) -> tuple[list[str], list[jax.Array], Any]:
    """(paths joined by dots, leaves, structure) of a tree of parameters."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_sparse)
    paths = [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in keyed]
    return paths, [leaf if is_sparse(leaf) else jnp.asarray(leaf) for _, leaf in keyed], treedef


def perm_of(path: str, leaf: jax.Array, axes: Axes | None) -> tuple[int, ...] | None:
    """The permutation from torch's axes to JAX's of a parameter."""
    if axes is None:
        return (1, 0) if leaf.ndim == 2 else None
    if path not in axes:
        raise UsageError(f"axes has no permutation for {path}")
    return axes[path]


def is_sparse(value: Any) -> bool:
    """Whether a gradient is a sparse array."""
    return isinstance(value, BCOO)


def as_real(x: jax.Array) -> jax.Array:
    """torch.view_as_real of a complex array; the identity for others."""
    return jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x


def like(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """A result in the dtype of a leaf, complex where the leaf is."""
    if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(x):
        x = jax.lax.complex(*(part.astype(leaf.real.dtype) for part in (x[..., 0], x[..., 1])))
    return x.astype(leaf.dtype)


def _check_parameter(name: str, path: str, leaf: Any, rule: Rule) -> None:
    if is_sparse(leaf):
        raise UsageError(f"{name} takes dense parameters: {path} is sparse")
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise UsageError(f"{name} takes floating parameters: {path} is {leaf.dtype}")
    if jnp.iscomplexobj(leaf) and not rule.is_complex:
        raise UsageError(f"{name} takes real parameters: {path} is {leaf.dtype}")
    if rule.only_matrices and leaf.ndim != 2:
        raise UsageError(f"{name} takes matrices only: give {path} another optimizer in a group")


def _dense(name: str, path: str, grad: Any, rule: Rule) -> tuple[jax.Array, jax.Array | None]:
    """(a gradient as a dense array, where it has entries)"""
    if not is_sparse(grad):
        # The gradient of a table of embeddings has entries in the rows that were looked up.
        rows = tuple(range(1, grad.ndim))
        lazy = rule.sparse == "lazy"
        return grad, jnp.broadcast_to((grad != 0).any(rows, keepdims=True), grad.shape) if lazy else None
    if rule.sparse == "refused":
        raise UsageError(f"{name} does not take sparse gradients, such as that of {path}")
    ones = BCOO((jnp.ones_like(grad.data), grad.indices), shape=grad.shape)
    return grad.todense(), ones.todense() != 0


def _by_slot(states: list[State], params: Any, treedef: Any, old: Mapping[str, Any] | None = None) -> Any:
    """name -> a tree like the parameters, of the slots of each; a flat dictionary where some have none."""
    names = list(old) if old is not None else list(dict.fromkeys(k for s in states for k in s))
    paths = flatten(params)[0]
    return {
        k: (
            jax.tree.unflatten(treedef, [s[k] for s in states])
            if all(k in s for s in states)
            else {path: s[k] for path, s in zip(paths, states, strict=True) if k in s}
        )
        for k in names
    }


def _by_parameter(state: OptimizerState, params: Any, treedef: Any) -> list[State]:
    """The slots and scalars of each parameter."""
    paths, leaves, _ = flatten(params)
    states: list[State] = [{k: v[i] for k, v in state.scalars.items()} for i in range(len(leaves))]
    for name, tree in state.slots.items():
        if jax.tree.structure(tree) == treedef:
            values = dict(zip(paths, jax.tree.leaves(tree), strict=True))
        else:
            values = dict(tree)
        for path, s in zip(paths, states, strict=True):
            if path in values:
                s[name] = values[path]
    return states
