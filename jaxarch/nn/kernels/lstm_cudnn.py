"""cuDNN's LSTM by `jax.experimental.rnn`, on an NVIDIA GPU; off by default.

The tests check how weights, states and results are passed, against JAX's own reference on the CPU; the cuDNN
kernel itself has not been run.
"""

import logging
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.nn.kernels.switches import is_enabled, use_kernel

_log = logging.getLogger(__name__)
_reported: set[tuple[str, ...]] = set()

Pair = tuple[Float[Array, "..."], Float[Array, "..."]]


def cudnn_lstm(on: bool = True) -> None:
    """Let `LSTM` use cuDNN where it fits: `use_kernel("lstm_cudnn", on)`.

    It fits on a CUDA GPU, in float32 (where cuDNN may use TF32, as JAX's products do: see
    jax_default_matmul_precision), without `lengths`, projection, or dropout between layers. Whether it is used,
    and why not, is logged.
    """
    use_kernel("lstm_cudnn", on)


def serves(x: Array, weight: Array, lengths: Array | None, drops: bool, projects: bool = False) -> bool:
    """Whether cuDNN computes a call.

    `drops` says that dropout is active between layers, `projects` that the hidden state is projected.
    """
    if not is_enabled("lstm_cudnn"):
        return False
    checks = {
        "no CUDA GPU": not _has_cuda(),
        "not float32": any(v.dtype != jnp.float32 for v in (x, weight)),
        "lengths are given": lengths is not None,
        "dropout between layers": drops,
        "a projection": projects,
    }
    obstacles = tuple(name for name, present in checks.items() if present)
    if obstacles not in _reported:
        _reported.add(obstacles)
        if obstacles:
            _log.warning("LSTM: not by cuDNN, but by XLA: %s", "; ".join(obstacles))
        else:
            _log.info("LSTM: by cuDNN")
    return not obstacles


def lstm(
    x: Float[Array, "b t i"],
    h: Float[Array, "l b h"],
    c: Float[Array, "l b h"],
    weights: Sequence[Pair],
    biases: Sequence[Pair] | None,
    bidirectional: bool,
) -> tuple[Float[Array, "b t o"], Float[Array, "l b h"], Float[Array, "l b h"]]:
    """Outputs and final states by cuDNN; weights and biases as `pack` takes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental import rnn
    lengths = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
    sizes = x.shape[2], h.shape[2], len(weights) // (2 if bidirectional else 1)
    return rnn.lstm(x, h, c, pack(weights, biases), lengths, *sizes, 0.0, bidirectional)


def pack(weights: Sequence[Pair], biases: Sequence[Pair] | None) -> Float[Array, " p"]:
    """Weights as cuDNN takes them: the matrices of all layers and directions, then the biases.

    Args:
        weights: (of the input, of the hidden state) for every direction of every layer.
        biases: likewise; None stands for zeros.
    """
    if biases is None:
        biases = [(zeros := jnp.zeros(len(hidden), hidden.dtype), zeros) for _, hidden in weights]
    return jnp.concatenate([leaf.reshape(-1) for pair in (*weights, *biases) for leaf in pair])


def _has_cuda() -> bool:
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version.lower()
