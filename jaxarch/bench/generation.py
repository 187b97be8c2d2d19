"""`jaxarch bench generation`: tokens per second of greedy generation with a key-value cache, next to torchref's.

A causal model of 4 layers, width 256, 4 heads and 4,096 tokens continues prompts of 32 tokens by 96.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxarch import catalog, reference
from jaxarch.bench import OURS, Contest
from jaxarch.convert import load_state_dict
from jaxarch.generate import generate

SIZE: dict[str, Any] = {
    "vocab_size": 4096,
    "d_model": 256,
    "n_layers": 4,
    "n_heads": 4,
    "d_ff": 1024,
    "max_seq_len": 128,
}
PROMPT, NEW = 32, 96
BATCHES = (1, 8)


def contests(*, compiled: bool) -> Iterator[Contest]:
    """Each batch size by one call of `generate`; both generate the same tokens, whose sum they return."""
    import torch

    torch.manual_seed(0)
    theirs = catalog.create_model("advanced_transformer", "tiny", package="torchref", **SIZE).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(3.0)  # logits that differ by more than float32 rounds
    ours = catalog.create_model("advanced_transformer", "tiny", **SIZE)
    load_state_dict(ours, theirs.state_dict())
    ours.eval()
    torch_generate = reference.load("generate", "bench").generate
    for batch in BATCHES:
        ids = np.random.default_rng(0).integers(0, SIZE["vocab_size"], (batch, PROMPT))
        runs = {
            OURS: functools.partial(total, generate, ours, jnp.asarray(ids)),
            "torch": functools.partial(total, torch_generate, theirs, torch.tensor(ids)),
        }
        yield Contest(f"generation, batch {batch}", runs, tokens=batch * NEW)


def total(generate: Callable[..., Any], model: Any, ids: Any) -> float:
    """The sum of the tokens that a call of either package's `generate` returns."""
    return float(np.asarray(generate(model, ids, NEW)).sum())
