"""Text to ids and back: both packages, the transformers library as the witness, own vocabularies."""

import json

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxarch.tokenizer as ours
import torchref.tokenizer as theirs
from jaxarch import nn

TEXTS = ["the cat sat on the mat", "naïve café 日本 🙂\r\n\ttwice  spaced", "a", "the end<|endoftext|>"]
REFUSED = (ValueError, OSError, IndexError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary of 300 on two files, trained by each package: the same bytes."""
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "a.txt").write_text("the cat sat on the mat, the dog on the log\n" * 20, encoding="utf-8")
    (path / "b.txt").write_text("naïve café, naïve the cat\r\n" * 9, encoding="utf-8")
    files = [path / "a.txt", str(path / "b.txt")]
    for package, name in ((ours, "ours"), (theirs, "theirs")):
        assert package.train_tokenizer(files, 300, path / name).vocab_size <= 300
    assert (path / "ours/tokenizer.json").read_bytes() == (path / "theirs/tokenizer.json").read_bytes()
    return path


def test_what_was_trained_is_read_by_transformers(folder, tmp_path):
    """Whole words are single tokens, no text is lost, and save and load keep all."""
    witness = transformers.AutoTokenizer.from_pretrained(folder / "ours")
    ours.Tokenizer(folder / "ours").save(tmp_path / "again")
    for tokenizer in (
        *(p.Tokenizer(tmp_path / "again") for p in (ours, theirs)),
        ours.Tokenizer(folder / "ours"),
    ):
        assert tokenizer.vocab_size == len(witness)
        assert len(witness) > 257
        for text in TEXTS:
            assert tokenizer.tokenize_text(text)["input_ids"][0].tolist() == witness(text)["input_ids"]
    assert len(witness(" the cat")["input_ids"]) == 2
    assert json.loads((tmp_path / "again/tokenizer.json").read_text())["model"]["type"] == "BPE"


def test_every_text_comes_back(folder):
    tokenizer = ours.Tokenizer(folder / "ours")

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(text=st.text(min_size=1, max_size=30))
    def check(text):
        ids = tokenizer.tokenize_text(text)["input_ids"]
        assert tokenizer.decode_tokens(ids[0]) == text
        assert tokenizer.decode_tokens(ids) == [text]

    check()


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches(folder, side):
    """Padding, masks and truncation, in both packages, as transformers has them; masks go into a layer."""
    witness = transformers.AutoTokenizer.from_pretrained(folder / "ours", padding_side=side)
    for padding, length in ((True, 50), ("max_length", 40), ("longest", 4)):
        want = witness(TEXTS, padding=padding, truncation=True, max_length=length, return_tensors="np")
        found = []
        for package in (ours, theirs):
            tokenizer = package.Tokenizer(folder / "ours", length, padding)
            tokenizer.backend.padding_side = side
            got = tokenizer.tokenize_text(TEXTS)
            for key in ("input_ids", "attention_mask"):
                assert np.array_equal(np.asarray(got[key]), want[key])
            mask = np.asarray(tokenizer.create_attention_mask(got["input_ids"]))
            # The end token pads too: the text that ends in it loses that one alone, and only where it is padded.
            assert np.array_equal(mask[:3], want["attention_mask"][:3] > 0)
            assert (want["attention_mask"][3] - mask[3]).sum() == (side == "right" and length > 4)
            texts = tokenizer.decode_tokens(got["input_ids"])
            assert texts == witness.batch_decode(want["input_ids"], skip_special_tokens=True)
            found.append(got)
        assert found[0]["input_ids"].dtype == jnp.int32
        assert found[0]["attention_mask"].dtype == bool
        assert found[1]["attention_mask"].dtype == torch.bool
    tokenizer = ours.Tokenizer(folder / "ours")
    tokens, pooling = tokenizer.tokenize_text(TEXTS), nn.Pooling("mean", 2, rngs=nnx.Rngs(0))
    assert pooling(jnp.ones((*tokens["input_ids"].shape, 2)), tokens["attention_mask"]).shape == (4, 2)
    text = tokenizer.decode_tokens(tokens["input_ids"][3], skip_special_tokens=False)
    assert text.startswith("the end<|endoftext|><|endoftext|>")


@pytest.mark.parametrize("package", [ours, theirs])
def test_bad_calls(package, folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    tokenizer = package.Tokenizer(folder / "ours", 3, padding=False, truncation=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for call, text in (
        (lambda: package.Tokenizer("no-such-tokenizer-here"), "neither a folder nor available on the Hub"),
        (lambda: package.Tokenizer(tmp_path / "absent"), "no such folder"),
        (lambda: package.Tokenizer(tmp_path / "empty"), "holds no tokenizer"),
        (lambda: package.Tokenizer(folder / "ours", padding="rihgt"), "padding must be one of"),
        (lambda: package.Tokenizer(folder / "ours", 0), "max_length"),
        (lambda: tokenizer.tokenize_text("a very long text"), "tokens, max_length is 3"),
        (lambda: tokenizer.tokenize_text(["a", "the cat"]), "set padding"),
        (lambda: tokenizer.tokenize_text([]), "a list of texts"),
        (lambda: tokenizer.tokenize_text([3]), "a list of texts"),
        (lambda: tokenizer.decode_tokens(np.array([1, 300])), "token 300 is out of range"),
        (lambda: package.train_tokenizer([folder / "a.txt"], 256, tmp_path / "t"), "256 is too small"),
        (lambda: package.train_tokenizer([], 300, tmp_path / "t"), "at least one file"),
        (lambda: package.train_tokenizer([tmp_path / "absent"], 300, tmp_path / "t"), "absent"),
        (lambda: package.train_tokenizer([tmp_path / "binary"], 300, tmp_path / "t"), "not UTF-8"),
    ):
        with pytest.raises(REFUSED, match=text) as e:
            call()
        assert "\n" not in str(e.value)
    assert not (tmp_path / "t").exists()
