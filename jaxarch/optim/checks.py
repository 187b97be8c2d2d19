"""The types and ranges of the optimizers' options, as torch checks them."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxarch.errors import UsageError

# What a value must be, in words, and whether it is.
Check = tuple[str, Callable[[Any], bool]]


def check_options(name: str, options: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Check options by their names; schedules and traced arrays pass.

    Args:
        name: of the optimizer.
        labels: option -> the name it has in messages.

    Raises:
        UsageError: a value has another type or is out of range.
    """
    for option, value in options.items():
        words, holds = OWN.get((name.lower(), option)) or CHECKS[option]
        label = (labels or {}).get(option, option)
        if isinstance(value, jax.Array | np.ndarray) and value.size != 1:
            raise UsageError(f"{name}: {label} must be a single number, not an array of shape {value.shape}")
        if not holds(_concrete(value)):
            raise UsageError(f"{name}: {label} {words}, not {value!r}")
    if options.get("nesterov") and name.lower() == "sgd":
        if not _open(options["momentum"]) and options["momentum"] <= 0:
            raise UsageError(f"{name}: nesterov needs a momentum and no dampening")
        if _open(options["dampening"]) or options["dampening"] != 0:
            raise UsageError(f"{name}: nesterov needs a momentum and no dampening")


def _concrete(value: Any) -> Any:
    """A value with its arrays of one element as numbers."""
    if isinstance(value, tuple | list):
        return tuple(map(_concrete, value))
    if (
        isinstance(value, jax.Array | np.ndarray)
        and not isinstance(value, jax.core.Tracer)
        and value.size == 1
    ):
        return value.item()
    return value


def _open(value: Any) -> bool:
    """Whether a value cannot be known before the step: a schedule or a traced number."""
    return callable(value) or isinstance(value, jax.core.Tracer)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value


def _number(words: str, holds: Callable[[Any], bool] = lambda v: True) -> Check:
    return words, lambda v: _open(v) or (_is_number(v) and holds(v))


def _numbers(n: int, words: str, holds: Callable[..., bool] = lambda *v: True) -> Check:
    """Several numbers; they are compared with one another only if all of them are known."""

    def check(value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) != n:
            return False
        known = [v for v in value if not _open(v)]
        return all(map(_is_number, known)) and (len(known) < n or holds(*value))

    return words, check


def _pair_of_betas(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(_open(v) or (_is_number(v) and 0 <= v < 1) for v in value)


def _integer(low: int, high: float = float("inf")) -> Check:
    top = "" if high == float("inf") else f" and below {high}"
    return (
        f"must be an integer of at least {low}{top}",
        lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and low <= int(v) < high,
    )


def _one_of(*known: str | None) -> Check:
    return f"must be {' or '.join(map(repr, known))}", lambda v: v in known


NON_NEGATIVE = _number("must not be negative, but a number of at least 0", lambda v: v >= 0)
POSITIVE = _number("must be a positive number", lambda v: v > 0)
ANY = _number("must be a number")
FLAG: Check = ("must be True or False", lambda v: isinstance(v, bool))
SWITCH: Check = ("must be True, False or None", lambda v: v is None or isinstance(v, bool))

CHECKS: dict[str, Check] = {
    **dict.fromkeys(("lr", "eps", "weight_decay", "lr_decay", "initial_accumulator_value"), NON_NEGATIVE),
    **dict.fromkeys(("momentum", "momentum_decay", "tolerance_grad", "tolerance_change"), NON_NEGATIVE),
    **dict.fromkeys(("dampening", "lambd", "t0", "alpha"), ANY),
    **dict.fromkeys(("amsgrad", "nesterov", "centered", "maximize", "decoupled_weight_decay"), FLAG),
    **dict.fromkeys(("capturable", "differentiable"), FLAG),
    **dict.fromkeys(("foreach", "fused"), SWITCH),
    "betas": ("must be two numbers in [0, 1): betas", _pair_of_betas),
    "rho": _number("must be a number in [0, 1]", lambda v: 0 <= v <= 1),
    "etas": _numbers(2, "must be two numbers 0 < a < 1 < b", lambda a, b: 0 < a < 1 < b),
    "step_sizes": _numbers(2, "must be two numbers 0 <= a <= b", lambda a, b: 0 <= a <= b),
    "beta2_decay": _number("must be a number of at most 0", lambda v: v <= 0),
    "d": _number("must be a number of at least 1", lambda v: v >= 1),
    "ns_coefficients": _numbers(3, "must be three numbers"),
    "ns_steps": _integer(0, 100),
    "adjust_lr_fn": _one_of(None, "original", "match_rms_adamw"),
    "max_iter": _integer(1),
    "max_eval": ("must be None or an integer of at least 1", lambda v: v is None or _integer(1)[1](v)),
    "history_size": _integer(1),
    "line_search_fn": _one_of(None, "strong_wolfe"),
}
# An optimizer's own bounds.
OWN: dict[tuple[str, str], Check] = {
    ("adafactor", "eps"): (
        "must be two numbers of at least 0, the first of which may be None",
        lambda v: (
            isinstance(v, tuple | list)
            and len(v) == 2
            and all(_open(x) or (_is_number(x) and x >= 0) for x in (v if v[0] is not None else v[1:]))
        ),
    ),
    ("rmsprop", "alpha"): NON_NEGATIVE,
    ("sparseadam", "lr"): POSITIVE,
    ("sparseadam", "eps"): POSITIVE,
}
