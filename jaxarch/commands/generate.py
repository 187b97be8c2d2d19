"""`jaxarch generate`: continue a text with a trained language model."""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxarch.data.text import load_tokenizer
from jaxarch.errors import UsageError
from jaxarch.generate import generate
from jaxarch.train import checkpoint as checkpoints


def run(args: argparse.Namespace) -> int:
    """Print the prompt and its continuation."""
    text = continue_text(
        args.checkpoint,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    print(text)
    return 0


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
    """The prompt and the text that a trained language model generates after it; `checkpoint` is a run's folder.

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
