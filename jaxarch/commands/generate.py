"""Text from a trained language model: what `jaxarch generate` does."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxarch.data.text import load_tokenizer
from jaxarch.errors import UsageError
from jaxarch.generate import generate
from jaxarch.train import checkpoint as checkpoints


def continue_text(
    checkpoint: str | os.PathLike,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """The prompt and what a trained language model writes after it; a run's folder is the checkpoint.

    Raises:
        CheckpointError: no intact checkpoint is there.
        DataError: no tokenizer is there, or prompt and continuation are longer than the model allows.
        UsageError: a sampling argument is out of range, or the prompt is empty.
    """
    restored = checkpoints.load(Path(checkpoint))
    tokenizer = load_tokenizer(restored.run)
    ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise UsageError("the prompt is empty: give at least one character")
    model = restored.model()
    model.eval()
    tokens = generate(
        model,
        jnp.asarray([ids]),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(seed) if temperature > 0 else None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return str(tokenizer.decode(tokens[0].tolist(), skip_special_tokens=True))
