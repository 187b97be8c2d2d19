"""Optimizer states of checkpoints written before their slots had torch's names, under the names of today."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxarch.convert.tensors import Tensor

# torch's slot -> the fields that held it.
FORMER_FIELDS = {
    "exp_avg": ("mu",),
    "exp_avg_sq": ("nu",),
    "max_exp_avg_sq": ("nu_max",),
    "exp_inf": ("nu",),
    "momentum_buffer": ("trace",),
    "square_avg": ("nu",),
    "grad_avg": ("mu",),
    "sum": ("sum_of_squares",),
}
_LEAF = re.compile(
    r"(?P<state>opt_state/.+?)/(?:count|scalars/(?P<scalar>\w+)|slots/(?P<slot>\w+)/(?P<path>.+))$"
)


def with_current_slots(tensors: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays of a checkpoint with those of an older optimizer state under the names that `like` has.

    All parameters of an older state are at its one step. What has no counterpart is left out, for the reader to name.
    """
    missing = [key for key in like if key.startswith("opt_state/") and key not in tensors]
    if not missing:
        return dict(tensors)
    former = {key: t for key, t in tensors.items() if key.startswith("opt_state/") and key not in like}
    found: dict[str, Tensor] = {}
    for key in missing:
        match = _LEAF.match(key)
        if match is None:
            continue
        slot, scalar = match["slot"], match["scalar"]
        if slot:
            fields = [f"{field}/{match['path']}" for field in FORMER_FIELDS.get(slot, ())]
        else:
            fields = ["count" if scalar in (None, "step") else scalar]
        pattern = re.compile(rf"{re.escape(match['state'])}(?:/\d+)*/(?:{'|'.join(map(re.escape, fields))})$")
        source = next((t for k, t in former.items() if fields and pattern.match(k)), None)
        if source is None:
            continue
        if scalar:
            leaf = like[key]
            source = Tensor.of(np.full(leaf.shape, np.asarray(source.read()), leaf.dtype))
        found[key] = source
    return {**{k: t for k, t in tensors.items() if k not in former}, **found}
