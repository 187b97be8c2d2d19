"""Adam's moments between optax and torch.optim: the rows that carry weights carry them too."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxarch.convert.layout import Row
from jaxarch.convert.state_dict import check_names, from_torch, to_torch
from jaxarch.errors import ConversionError

SLOTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}


def to_torch_optimizer(rows: Iterable[Row], opt_state: Any) -> dict[str, dict[str, Any]]:
    """The state of optax's Adam or AdamW as torch.optim keeps it, by torch's parameter names.

    Returns:
        torch's name -> {"step", "exp_avg", "exp_avg_sq"}, arrays in torch's layout.

    Raises:
        ConversionError: there is no Adam in the state, or more than one.
    """
    rows = [r for r in rows if r.trainable]
    adam = _adam(opt_state)
    slots = {slot: to_torch(rows, getattr(adam, field)) for slot, field in SLOTS.items()}
    step = int(adam.count)
    return {r.torch: {"step": step, **{slot: slots[slot][r.torch] for slot in SLOTS}} for r in rows}


def from_torch_optimizer(rows: Iterable[Row], state: Mapping[str, Mapping[str, Any]], opt_state: Any) -> Any:
    """`opt_state` with torch's moments and step; schedules count on from that step.

    Args:
        state: torch's parameter name -> {"step", "exp_avg", "exp_avg_sq"}.
        opt_state: a state of the optimizer to continue with, for its structure, shapes and dtypes.

    Raises:
        ConversionError: names, slots or shapes differ, or the parameters are at different steps.
    """
    rows = [r for r in rows if r.trainable]
    check_names([r.torch for r in rows], state)
    for name, slots in state.items():
        if missing := [s for s in ("step", *SLOTS) if s not in slots]:
            raise ConversionError(
                f"the optimizer state of {name} lacks {missing[0]}; it must be Adam's or AdamW's"
            )
    steps = {int(slots["step"]) for slots in state.values()}
    if len(steps) != 1:
        raise ConversionError(f"the parameters are at different steps: {sorted(steps)}")
    old, step = _adam(opt_state), steps.pop()
    moments = {
        field: {
            k: jnp.asarray(v)
            for k, v in from_torch(rows, {n: s[slot] for n, s in state.items()}, getattr(old, field)).items()
        }
        for slot, field in SLOTS.items()
    }

    def renewed(node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            node = node._replace(**moments)
        return node._replace(count=jnp.asarray(np.asarray(step), node.count.dtype)) if _counts(node) else node

    return jax.tree.map(renewed, opt_state, is_leaf=_counts)


def _counts(node: Any) -> bool:
    """Adam itself, and the schedules that count its steps."""
    return isinstance(node, optax.ScaleByAdamState | optax.ScaleByScheduleState)


def _adam(opt_state: Any) -> optax.ScaleByAdamState:
    found = [n for n in jax.tree.leaves(opt_state, is_leaf=_counts) if isinstance(n, optax.ScaleByAdamState)]
    if len(found) != 1:
        raise ConversionError(f"the optimizer state holds {len(found)} Adam states, not one")
    return found[0]
