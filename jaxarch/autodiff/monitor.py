"""What gradients, updates and activations look like while a model trains, measured inside the jitted step."""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jaxarch.convert.layout import layout
from jaxarch.nn import accumulation_dtype
from jaxarch.observe import observe

Flat = Mapping[str, Any]
Measures = dict[str, dict[str, Any]]
WHOLE = ""  # the path of the model itself: norms over all parameters
TINY = 1e-12  # a weight of norm zero gives a large ratio, not an infinite one


class AutogradMonitor:
    """Per path: norms of gradient, update and weight, their ratio, dead rows, zeros, histograms.

    The measures are a dictionary from measure to path to array; the path "" is the whole model:

    - `grad_norm`, `update_norm`, `weight_norm`: 2-norms; `ratio`: update over weight.
    - `dead_rows`: of a weight of two or more dimensions, the fraction of output units without any gradient.
    - `zero_activations`: of each module's output, the fraction that is exactly zero, from `watch`.
    - `histogram`: how many gradient entries have log10 |g| in each of `bins` equal parts of [`low`, `high`);
      what lies outside is in the first or last. Left out with `bins` 0.

    Args:
        model: gives the paths, and the axis of the output units of each weight.
        activations: glob of the module paths whose output is watched; "" for none.
        every: zeros and histograms, which read every entry again, are measured at each `every`-th step and
            are -1 at the others. The step is an argument of `watch` and `measure`; without it they are
            measured.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        activations: str = "*",
        every: int = 10,
        bins: int = 0,
        low: float = -12.0,
        high: float = 4.0,
    ):
        self.units = {
            row.path: 0 if row.perm is None else row.perm.index(0) for row in layout(model) if row.trainable
        }
        self.activations, self.every = activations, every
        self.edges = [float(e) for e in 10 ** np.linspace(low, high, bins + 1)[1:-1]] if bins else None

    @contextlib.contextmanager
    def watch(self, model: nnx.Module, step: Any = None) -> Iterator[dict[str, Array]]:
        """Fills the dictionary with each module's fraction of zero outputs, the mean over its calls.

        Every operation carries its module's path as a name scope, visible in traces and error reports. Calls
        inside loops and rematerialised blocks are not recorded; the block itself is.
        """
        zeros: dict[str, Array] = {}
        calls: dict[str, int] = {}
        outer = jax.extend.core.get_opaque_trace_state(convention="nnx")

        def hook(path: str, run: Callable[[], Any]) -> Any:
            with jax.named_scope(path) if path else contextlib.nullcontext():
                output = run()
            inner = jax.extend.core.get_opaque_trace_state(convention="nnx") != outer
            if inner or not is_float(output) or not fnmatch.fnmatchcase(path, self.activations):
                return output
            fixed = jax.lax.stop_gradient(output)
            value, n = self._due(step, lambda: fraction(fixed == 0)), calls.get(path, 0)
            zeros[path] = (zeros[path] * n + value) / (n + 1) if n else value
            calls[path] = n + 1
            return output

        with observe(model, hook):
            yield zeros

    def measure(self, params: Flat, gradients: Flat, updates: Flat, step: Any = None) -> Measures:
        """The measures of one step except `zero_activations`; all three are by path, `params` before the step."""
        grad_norm, update_norm, weight_norm = (norms(x) for x in (gradients, updates, params))
        measures: Measures = {
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "weight_norm": weight_norm,
            "ratio": {k: u / jnp.maximum(weight_norm[k], TINY) for k, u in update_norm.items()},
            "dead_rows": {k: dead_rows(g, self.units[k]) for k, g in gradients.items() if g.ndim > 1},
        }
        if (edges := self.edges) is not None:
            measures["histogram"] = self._due(
                step, lambda: {k: histogram(g, edges) for k, g in gradients.items()}
            )
        return measures

    def _due(self, step: Any, measure: Callable[[], Any]) -> Any:
        """The measure at each `every`-th step, -1 at the others."""
        if step is None or self.every == 1:
            return measure()
        shapes = jax.eval_shape(measure)
        skip = lambda: jax.tree.map(lambda x: jnp.full(x.shape, -1, x.dtype), shapes)  # noqa: E731
        return jax.lax.cond(step % self.every == 0, measure, skip)

    def table(self, measures: Measures, measure: str = "grad_norm") -> str:
        """The measures of one step as text, a line for each path, the largest `measure` first."""
        columns = [m for m in ("grad_norm", "update_norm", "ratio", "dead_rows") if m in measures]
        paths = sorted(measures[measure], key=lambda k: -float(measures[measure][k]))
        width = max(len(p or "all") for p in paths)
        lines = [f"{'path':{width}}" + "".join(f"{c:>13}" for c in columns)]
        for path in paths:
            cells = [
                f"{float(measures[c][path]):13.3e}" if path in measures[c] else " " * 13 for c in columns
            ]
            lines.append(f"{path or 'all':{width}}" + "".join(cells))
        return "\n".join(line.rstrip() for line in lines)


def is_float(output: Any) -> bool:
    """Whether a module's output is one array of floats."""
    return isinstance(output, jax.Array) and jnp.issubdtype(output.dtype, jnp.floating)


def fraction(true: Array) -> Array:
    """The fraction of a boolean array that is true."""
    return true.mean(dtype=jnp.result_type(float))


def norms(values: Flat) -> dict[str, Array]:
    """The 2-norm of each array, and under "" that of all of them."""
    squares = {k: (v.astype(accumulation_dtype(v.dtype)) ** 2).sum() for k, v in values.items()}
    return {WHOLE: jnp.sqrt(sum(squares.values())), **{k: jnp.sqrt(v) for k, v in squares.items()}}


def dead_rows(gradient: Array, axis: int) -> Array:
    """The fraction of slices along `axis` that are zero throughout."""
    others = tuple(i for i in range(gradient.ndim) if i != axis)
    return fraction((gradient == 0).all(others))


def histogram(values: Array, edges: list[float]) -> Array:
    """How many absolute values lie between neighbouring edges, below the first and above the last."""
    size = jnp.abs(values)
    # Comparisons instead of a scatter: they vectorise, and a sharded array stays sharded.
    below = [jnp.zeros((), int), *((size < e).sum() for e in edges), jnp.full((), values.size, int)]
    return jnp.diff(jnp.stack(below))
