"""The text of Python's own language reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxarch.data import Source, text


def load(*, out: Path, arguments: Mapping[str, Any], seed: int) -> Source:
    """The text of pydoc_data.topics as windows of byte-level BPE tokens; every tenth topic is for testing.

    The tokenizer is trained on the training topics, with the model's vocabulary, and kept in `out`.
    `extra` holds the perplexities of a unigram and of an interpolated bigram model on the test tokens.
    """
    train, test = text.topics()
    tokenizer = text.train_tokenizer(train, arguments["vocab_size"], out)
    ids = [text.encode(tokenizer, part) for part in (train, test)]
    length = arguments["max_seq_len"]
    # Training windows overlap by half, so that a token is seen in more than one context.
    windows = [text.windows(ids[0], length, length // 2), text.windows(ids[1], length, length)]
    parts = [{"input_ids": w, "labels": w} for w in windows]
    baselines = text.baselines(ids[0], ids[1], arguments["vocab_size"], length)
    return Source(
        train=parts[0],
        test=parts[1],
        classes=arguments["vocab_size"],
        items=length,
        unit="tokens",
        extra={"baselines": baselines},
    )
