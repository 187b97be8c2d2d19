"""torch.optim.LBFGS: several iterations of L-BFGS in one step, which evaluate the loss again.

    updates, state = optimizer.update(grads, state, params, value=loss, value_fn=loss_fn)

is optax's protocol for optimizers that call the objective: `loss_fn(params)` is the loss of the same batch, which is
torch's closure without its `backward()`; `loss` and `grads` are its value and gradient at `params`. Without `value`
the loss is evaluated once more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import UsageError
from jaxarch.optim.line_search import Objective, Point, strong_wolfe
from jaxarch.optim.transformation import Transformation, values_at, with_standard_promotion


class LBFGSState(NamedTuple):
    """torch's state, by its names. What torch keeps as flat vectors are trees like the parameters.

    Attributes:
        count: the updates so far.
        n_iter, func_evals: the iterations and evaluations so far.
        stored: the pairs that were ever stored: pair k is row k modulo the history's size.
        d: the last direction.
        old_dirs, old_stps: the history of differences of gradients and of points, along a leading axis.
        ro: 1 over their products.
    """

    count: Any  # type: ignore[assignment]  # it hides tuple.count
    n_iter: Int[Array, ""]
    func_evals: Int[Array, ""]
    stored: Int[Array, ""]
    d: Any
    t: Float[Array, ""]
    old_dirs: Any
    old_stps: Any
    ro: Float[Array, "h"]
    H_diag: Float[Array, ""]
    prev_flat_grad: Any
    prev_loss: Float[Array, ""]


class Iteration(NamedTuple):
    """Where the iterations of one step are."""

    x: Float[Array, "n"]
    loss: Float[Array, ""]
    grad: Float[Array, "n"]
    n: Int[Array, ""]
    evals: Int[Array, ""]
    stop: Bool[Array, ""]
    state: LBFGSState


def lbfgs(
    lr: Any,
    max_iter: int,
    max_eval: int | None,
    tolerance_grad: float,
    tolerance_change: float,
    history_size: int,
    line_search_fn: str | None,
) -> Transformation:
    """See `jaxarch.optim.LBFGS`."""
    most_evals = max_iter * 5 // 4 if max_eval is None else max_eval

    def init(params: Any) -> LBFGSState:
        flat, _ = ravel_pytree(params)
        if not jnp.issubdtype(flat.dtype, jnp.floating):
            raise UsageError(f"LBFGS takes real parameters, not {flat.dtype}")
        zero, number = jnp.zeros((), jnp.int32), jnp.zeros((), flat.dtype)
        history = jax.tree.map(lambda x: jnp.zeros((history_size, *x.shape), x.dtype), params)
        return LBFGSState(
            count=zero,
            n_iter=zero,
            func_evals=zero,
            stored=zero,
            d=jax.tree.map(jnp.zeros_like, params),
            t=number,
            old_dirs=history,
            old_stps=jax.tree.map(jnp.copy, history),
            ro=jnp.zeros((history_size,), flat.dtype),
            H_diag=jnp.ones((), flat.dtype),
            prev_flat_grad=jax.tree.map(jnp.zeros_like, params),
            prev_loss=number,
        )

    def update(
        updates: Any,
        state: LBFGSState,
        params: Any = None,
        *,
        value: Any = None,
        value_fn: Any = None,
        **extra: Any,
    ) -> tuple[Any, LBFGSState]:
        if params is None or value_fn is None:
            raise UsageError(
                "LBFGS evaluates the loss: update(grads, state, params, value=loss, value_fn=loss_of_params)"
            )
        x, unravel = ravel_pytree(params)
        grad = ravel_pytree(updates)[0].astype(x.dtype)
        rate = values_at({"lr": lr}, state.count).lr

        def objective(x: Float[Array, "n"]) -> tuple[Float[Array, ""], Float[Array, "n"]]:
            value, gradient = jax.value_and_grad(value_fn)(unravel(x))
            return value.astype(x.dtype), ravel_pytree(gradient)[0].astype(x.dtype)

        value = value_fn(params) if value is None else value

        def iterate(now: Iteration) -> Iteration:
            state, t = _directed(now, rate)
            slope = now.grad @ state.d
            at = now._replace(state=state._replace(t=t), n=now.n + 1)
            flat = slope > -tolerance_change
            return jax.lax.cond(flat, lambda: at._replace(stop=jnp.ones((), bool)), lambda: move(at, slope))

        def move(now: Iteration, slope: Float[Array, ""]) -> Iteration:
            new, evals = _moved(objective, now, slope, max_iter, most_evals, line_search_fn)
            state = now.state._replace(t=new.t)
            small_step = jnp.abs(state.d * new.t).max() <= tolerance_change
            small_change = jnp.abs(new.f - state.prev_loss) < tolerance_change
            optimal = (jnp.abs(new.g).max() <= tolerance_grad) & (evals > 0)
            total = now.evals + evals
            stop = (now.n == max_iter) | (total >= most_evals) | optimal | small_step | small_change
            return Iteration(now.x + new.t * state.d, new.f, new.g, now.n, total, stop, state)

        one = jnp.ones((), jnp.int32)
        start = Iteration(
            x=x,
            loss=jnp.asarray(value).astype(x.dtype),
            grad=grad,
            n=jnp.zeros((), jnp.int32),
            evals=one,
            stop=jnp.abs(grad).max() <= tolerance_grad,
            state=_converted(state, lambda tree: ravel_pytree(tree)[0].astype(x.dtype)),
        )
        end = jax.lax.while_loop(lambda s: ~s.stop, iterate, start)
        new_state = _converted(end.state, unravel)._replace(
            count=state.count + 1, func_evals=state.func_evals + end.evals
        )
        return unravel(end.x - x), new_state

    return with_standard_promotion(Transformation(init, update))


def _converted(state: LBFGSState, convert: Any) -> LBFGSState:
    """The state with its trees as flat vectors, or the reverse."""
    rows = jax.vmap(convert)
    return state._replace(
        d=convert(state.d),
        prev_flat_grad=convert(state.prev_flat_grad),
        old_dirs=rows(state.old_dirs),
        old_stps=rows(state.old_stps),
    )


def _directed(now: Iteration, rate: Any) -> tuple[LBFGSState, Float[Array, ""]]:
    """(the state with the next direction, the first step to try along it)."""
    state = now.state
    is_first = state.n_iter == 0
    state = jax.lax.cond(is_first, lambda: state, lambda: _remembered(state, now.grad))
    d = jax.lax.cond(is_first, lambda: -now.grad, lambda: _direction(state, now.grad))
    first = jnp.minimum(1.0, 1.0 / jnp.abs(now.grad).sum()) * rate
    t = jnp.where(is_first, first, rate).astype(d.dtype)
    state = state._replace(n_iter=state.n_iter + 1, d=d, prev_flat_grad=now.grad, prev_loss=now.loss)
    return state, t


def _remembered(state: LBFGSState, grad: Float[Array, "n"]) -> LBFGSState:
    """The state with the last step in its history, if the curvature along it is positive."""
    y, s = grad - state.prev_flat_grad, state.d * state.t
    ys = y @ s
    row = state.stored % len(state.ro)
    added = state._replace(
        stored=state.stored + 1,
        old_dirs=state.old_dirs.at[row].set(y),
        old_stps=state.old_stps.at[row].set(s),
        ro=state.ro.at[row].set(1.0 / ys),
        H_diag=ys / (y @ y),
    )
    return jax.lax.cond(ys > 1e-10, lambda: added, lambda: state)


def _direction(state: LBFGSState, grad: Float[Array, "n"]) -> Float[Array, "n"]:
    """Minus the gradient times the approximate inverse Hessian (the two loops of algorithm 7.4)."""
    size = len(state.ro)
    first = jnp.maximum(state.stored - size, 0)

    def back(i: Int[Array, ""], carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, al = carry
        row = (state.stored - 1 - i) % size
        a = (state.old_stps[row] @ q) * state.ro[row]
        return q - a * state.old_dirs[row], al.at[row].set(a)

    def forth(k: Int[Array, ""], r: jax.Array) -> jax.Array:
        row = k % size
        return r + (al[row] - (state.old_dirs[row] @ r) * state.ro[row]) * state.old_stps[row]

    q, al = jax.lax.fori_loop(0, state.stored - first, back, (-grad, jnp.zeros_like(state.ro)))
    return jax.lax.fori_loop(first, state.stored, forth, q * state.H_diag)


def _moved(
    objective: Objective,
    now: Iteration,
    slope: Float[Array, ""],
    max_iter: int,
    max_eval: int,
    line_search_fn: str | None,
) -> tuple[Point, Int[Array, ""]]:
    """(the next point along the direction, the evaluations)."""
    d, t = now.state.d, now.state.t
    start = Point(jnp.zeros_like(t), now.loss, now.grad, slope)
    if line_search_fn == "strong_wolfe":
        return strong_wolfe(objective, now.x, t, d, start, max_eval - now.evals)

    def evaluated() -> tuple[Point, Int[Array, ""]]:
        value, gradient = objective(now.x + t * d)
        return Point(t, value, gradient, slope), jnp.ones((), jnp.int32)

    # torch does not evaluate after the last iteration, whose loss is of no use in a stochastic setting.
    return jax.lax.cond(now.n == max_iter, lambda: (start._replace(t=t), jnp.zeros((), jnp.int32)), evaluated)
