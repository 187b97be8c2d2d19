"""The text of Python's own language reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxarch.data import text
from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Source


def load(*, out: Path, arguments: Mapping[str, Any]) -> Source:
    """The text of pydoc_data.topics as windows of byte-level BPE tokens; every tenth topic is for testing.

    The tokenizer is trained on the training topics, with the model's vocabulary, and stored in `out`.
    `extra` holds the perplexities of a unigram and of an interpolated bigram model on the test tokens.
    """
    vocab_size, length = arguments["vocab_size"], arguments["max_seq_len"]
    # Training windows overlap by half, so that a token is seen in more than one context.
    windows = text.pydoc_windows(out, vocab_size, length, stride=length // 2)
    return ArraySource(
        train={"input_ids": windows.train, "labels": windows.train},
        test={"input_ids": windows.test, "labels": windows.test},
        classes=vocab_size,
        items=length,
        unit="tokens",
        extra={"baselines": windows.baselines},
    )
