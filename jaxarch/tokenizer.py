"""Text to ids and masks and back, over `transformers`, and training of a tokenizer on text files.

Byte-level BPE: Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxarch.errors import DataError, UsageError, require

PADDINGS = (True, False, "longest", "max_length")
END = "<|endoftext|>"
PROBE_SECONDS = 10


class Tokenizer:
    """Text -> {"input_ids" (B, T) int32, "attention_mask" (B, T) bool} -> text.

    `model_name` is a folder, or a name on the Hugging Face Hub. `padding` is that of `transformers`: True or
    "longest" pads to the longest of a batch, "max_length" to `max_length`, False not at all. With
    `truncation` longer texts are cut to `max_length`. A tokenizer without a padding token pads with its end
    token. `backend` is the `transformers` tokenizer.

    Raises:
        UsageError: an unknown padding, a `max_length` below 1.
        DataError: there is no tokenizer, or the Hub cannot be reached; in a call, input that is not a string,
            a text longer than `max_length` without truncation, texts of unequal length without padding.
    """

    def __init__(
        self,
        model_name: str | Path,
        max_length: int = 512,
        padding: bool | str = True,
        truncation: bool = True,
    ):
        if padding not in PADDINGS:
            raise UsageError(f"padding must be one of {', '.join(map(repr, PADDINGS))}, not {padding!r}")
        if max_length < 1:
            raise UsageError(f"max_length must be at least 1, not {max_length}")
        self.max_length, self.padding, self.truncation = max_length, padding, truncation
        self.backend = open_tokenizer(model_name)
        if self.backend.pad_token is None:
            if self.backend.eos_token is None:
                raise DataError(f"{model_name}: the tokenizer has neither a padding token nor an end token")
            self.backend.pad_token = self.backend.eos_token

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, the special ones included: a model's `vocab_size`."""
        return len(self.backend)

    def tokenize_text(self, text: str | Sequence[str]) -> dict[str, Array]:
        """One text (B = 1) or several."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(t, str) for t in texts):
            raise DataError("give a text, or a list of texts that is not empty")
        encoded = self.backend(texts, truncation=self.truncation, max_length=self._limit, verbose=False)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        if max(lengths) > self.max_length:
            raise DataError(
                f"a text has {max(lengths)} tokens, max_length is {self.max_length}: set truncation"
            )
        if self.padding is False and len(set(lengths)) > 1:
            raise DataError(f"the texts have {min(lengths)} to {max(lengths)} tokens: set padding")
        kind = "max_length" if self.padding == "max_length" else "longest"
        padded = self.backend.pad(
            {k: encoded[k] for k in ("input_ids", "attention_mask")},
            kind,
            self.max_length,
            return_tensors="np",
        )
        ids, mask = padded["input_ids"], padded["attention_mask"]
        return {"input_ids": jnp.asarray(ids, jnp.int32), "attention_mask": jnp.asarray(mask != 0)}

    def create_attention_mask(self, input_ids: Int[Array, "b t"]) -> Bool[Array, "b t"]:
        """False on the run of padding at the padded side of each row; a padding token within the text, such
        as an end token that serves as one, is text."""
        not_padding = jnp.asarray(input_ids) != self.backend.pad_token_id
        if self.backend.padding_side == "left":
            return jnp.cumsum(not_padding, 1) > 0
        return jnp.cumsum(not_padding[:, ::-1], 1)[:, ::-1] > 0

    def decode_tokens(self, token_ids: Any, skip_special_tokens: bool = True) -> str | list[str]:
        """The text of a row (T,) of ids, or the texts of rows (B, T).

        Raises:
            DataError: ids outside the vocabulary.
        """
        ids = np.asarray(token_ids)
        bad = ids[(ids < 0) | (ids >= self.vocab_size)]
        if bad.size:
            raise DataError(f"token {bad[0]} is out of range: it must be in [0, {self.vocab_size})")
        if ids.ndim == 1:
            return self.backend.decode(ids.tolist(), skip_special_tokens=skip_special_tokens)
        return self.backend.batch_decode(ids.tolist(), skip_special_tokens=skip_special_tokens)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `Tokenizer` and `transformers.AutoTokenizer` read."""
        self.backend.save_pretrained(str(folder))

    @property
    def _limit(self) -> int | None:
        return self.max_length if self.truncation else None


def train_tokenizer(
    files: Sequence[str | Path], vocab_size: int, folder: str | Path, *, end: str = END
) -> Tokenizer:
    """Train a byte-level BPE tokenizer on text files (UTF-8) and write it to a folder.

    Decoding restores every text exactly: what is not in the vocabulary is encoded as bytes.

    Raises:
        UsageError: `vocab_size` is smaller than the 256 bytes and the end token; no files.
        DataError: a file is missing or not UTF-8.
    """
    require("transformers", "hub", "training a tokenizer")
    from transformers import PreTrainedTokenizerFast

    if not files:
        raise UsageError("give at least one file to train on")
    backend = byte_level_bpe(_lines(files), vocab_size, end)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)
    fast.save_pretrained(str(folder))
    return Tokenizer(folder)


def byte_level_bpe(texts: Iterable[str], vocab_size: int, end: str = END) -> Any:
    """A `tokenizers.Tokenizer` trained on texts, whose one special token is `end`.

    Raises:
        UsageError: `vocab_size` is smaller than the 256 bytes and the end token.
    """
    require("tokenizers", "hub", "training a tokenizer")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UsageError(f"vocab_size {vocab_size} is too small: byte-level BPE starts from 257 tokens")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def open_tokenizer(name: str | Path) -> Any:
    """The `transformers` tokenizer of a folder, of the Hub's local cache, or of the Hub.

    Raises:
        DataError: there is none, or the Hub cannot be reached.
    """
    require("transformers", "hub", "reading a tokenizer")
    from huggingface_hub import model_info
    from transformers import AutoTokenizer

    path = Path(name)
    if path.is_dir() or path.is_absolute() or str(name).startswith("."):
        if not path.is_dir():
            raise DataError(f"{name}: no such folder")
        try:
            return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as e:
            raise DataError(f"{name} holds no tokenizer: {_first_line(e)}") from e
    try:
        return AutoTokenizer.from_pretrained(str(name), local_files_only=True)
    except (OSError, ValueError):
        pass  # not in the local cache
    try:
        # Without this, an unreachable Hub costs a minute of retries.
        model_info(str(name), timeout=PROBE_SECONDS)
        return AutoTokenizer.from_pretrained(str(name))
    except Exception as e:  # the exceptions depend on the Hub client's HTTP library
        raise DataError(
            f"{name} is neither a folder nor available on the Hub: download a tokenizer to a folder and "
            f"name that ({_first_line(e)})"
        ) from e


def _lines(files: Sequence[str | Path]) -> Iterator[str]:
    for file in files:
        try:
            with open(file, encoding="utf-8", newline="") as lines:
                yield from lines
        except OSError as e:
            raise DataError(f"{file}: {e.strerror}") from None
        except UnicodeDecodeError as e:
            raise DataError(f"{file} is not UTF-8 text: {e}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
