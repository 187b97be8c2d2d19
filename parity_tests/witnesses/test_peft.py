"""LoRA and P-tuning: torch = jax, merged = unmerged, frozen = untouched, and the peft library's own files."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from flax import nnx

import jaxarch.peft as ours_peft
import torchref.peft as theirs_peft
from comparison import assert_close, assert_same_vjp, assert_twins_agree, error, jax_vjp, torch_vjp
from jaxarch import catalog, state
from jaxarch.convert import load_state_dict
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import ConversionError, UsageError
from jaxarch.parity.catalog_cases import unweighted

CASES = [
    ("gpt2", "*.c_attn|*.mlp.c_proj"),
    ("advanced_transformer", "*.w_q|*.w_v"),
]


def weights(model):
    return state.flat(nnx.state(model, nnx.Not(nnx.RngState)))


def twins(name, match):
    torch.manual_seed(0)
    theirs = catalog.create_model(name, "tiny", package="torchref").double().eval()
    ours = unweighted(lambda: catalog.create_model(name, "tiny"))
    load_state_dict(ours, theirs.state_dict())
    found = ours_peft.apply_lora(ours, match, 3, 6.0, 0.0, rngs=nnx.Rngs(0))
    assert found == theirs_peft.apply_lora(theirs, match, 3, 6.0, 0.0)
    assert len(found) == 4
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    load_state_dict(ours, theirs.state_dict())
    ours.eval()
    return theirs, ours, found


@pytest.mark.parametrize(("which", "match"), CASES, ids=[c[0] for c in CASES])
def test_adapters(which, match, tmp_path):
    """The same outputs and gradients, only of adapters; merge = unmerged; unmerge is bitwise; files."""
    theirs, ours, found = twins(which, match)
    ids = np.random.default_rng(0).integers(0, 40, (2, 6))
    want, cotangents = torch_vjp(theirs, {"ids": ids}, call=logits)
    params = state.split(ours).params
    names = {f"{p}.{leaf}.weight" for p in found for leaf in ("lora_A", "lora_B")}
    assert set(params) == names == {k for k, p in theirs.named_parameters() if p.requires_grad}
    rows = layout(ours)
    assert {r.torch for r in rows} == set(theirs.state_dict())
    assert {r.torch for r in rows if r.trainable} == names
    run = jax_vjp(ours, logits)
    assert_same_vjp(run({"ids": ids}, cotangents), want)
    assert want.parameters.keys() == optax.adam(0.1).init(params)[0].mu.keys() == names

    def output(replaced):
        return run({"ids": ids}, cotangents, replaced).outputs[""]

    assert_merged_is_unmerged(theirs, ours, found, ids, want.outputs[""], output)
    assert_files_hold_the_adapters(ours, which, found, tmp_path)


def logits(model, ids):
    return model(ids)["logits"]


def assert_merged_is_unmerged(theirs, ours, found, ids, want, output):
    """Merged layers give the same, and unmerging brings back every bit.

    `output` is the unmerged model's, compiled, as a function of the arrays that replace some of its own.
    """
    _, params, rest = state.split(ours)
    before = {k: np.asarray(v) for k, v in weights(ours).items()}
    for layer in (*ours_peft.lora_layers(ours).values(), *theirs_peft.lora_layers(theirs).values()):
        layer.merge()
        assert layer.merged
    assert_close(theirs(torch.tensor(ids))["logits"], want)
    values = weights(ours)
    key = f"{found[0]}.base_layer.weight"
    assert not np.array_equal(values[key], before[key])
    # The same compiled function on the merged weights, with adapters that add nothing.
    silent = {k: jnp.zeros_like(v) for k, v in params.items()}
    assert_close(output({**silent, **{k: values[k] for k in rest if k in values}}), want)
    for layer in (*ours_peft.lora_layers(ours).values(), *theirs_peft.lora_layers(theirs).values()):
        layer.unmerge()
    after = weights(ours)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[k], before[k]) for k in before)
    exported = to_torch(layout(ours), after)
    assert all(torch.equal(v, torch.tensor(exported[k])) for k, v in theirs.state_dict().items())


def assert_files_hold_the_adapters(ours, which, found, folder):
    """Saved adapters load into a new model in every bit, and removing them leaves the model's own layers."""
    ours_peft.save_adapter(ours, folder)
    fresh = unweighted(lambda: catalog.create_model(which, "tiny"))
    assert ours_peft.load_adapter(fresh, folder, rngs=nnx.Rngs(1)) == sorted(found)
    params, again = state.split(ours).params, state.split(fresh).params
    assert again.keys() == params.keys()
    assert all(np.array_equal(again[k], params[k]) for k in params)
    ours_peft.remove_lora(fresh)
    assert {r.torch for r in layout(fresh)} == {
        r.torch for r in layout(nnx.eval_shape(lambda: catalog.create_model(which, "tiny")))
    }


# peft asks transformers for what that calls deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_peft_library_reads_and_writes_the_same_files(tmp_path):
    """An adapter of ours on a transformers model, and one of the library's own on ours."""
    theirs, ours, found = twins(*CASES[0])
    arguments = catalog.arguments("gpt2", "tiny")
    sizes = {k: arguments[k] for k in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    base = transformers.GPT2LMHeadModel(config).double().eval()
    held = {k.replace(".base_layer", ""): v for k, v in theirs.state_dict().items() if ".lora_" not in k}
    base.load_state_dict({**held, "lm_head.weight": held["transformer.wte.weight"]})
    ids = torch.randint(0, 40, (2, 6))
    want = theirs(ids)["logits"].detach()
    assert error(base(ids).logits.detach(), want) > 1e-3
    ours_peft.save_adapter(ours, tmp_path / "ours")
    library = peft.PeftModel.from_pretrained(base, tmp_path / "ours", autocast_adapter_dtype=False).eval()
    assert_close(library(ids).logits, want)
    library.save_pretrained(tmp_path / "library")
    fresh = unweighted(lambda: catalog.create_model("gpt2", "tiny"))
    assert ours_peft.load_adapter(fresh, tmp_path / "library", rngs=nnx.Rngs(1)) == sorted(found)
    params = state.split(ours).params
    assert all(np.array_equal(v, params[k]) for k, v in state.split(fresh).params.items())

    plain = unweighted(lambda: catalog.create_model("gpt2", "tiny"))
    settings = json.loads((tmp_path / "library/adapter_config.json").read_text())
    for change, says in (
        ({"use_dora": True}, "use_dora is True, only False"),
        ({"r": 4}, r"lora_A.weight has shape \(3, 15\), the model needs \(4, 15\)"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ):
        (tmp_path / "library/adapter_config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(ConversionError, match=says):
            ours_peft.load_adapter(plain, tmp_path / "library", rngs=nnx.Rngs(1))
    with pytest.raises(UsageError, match="unknown linear layer"):
        ours_peft.apply_lora(plain, "*.c_atn", rngs=nnx.Rngs(1))
    with pytest.raises(UsageError, match="the model has adapters"):
        ours_peft.apply_lora(ours, "*.c_attn", rngs=nnx.Rngs(1))
    with pytest.raises(UsageError, match="rank must be at least 1"):
        ours_peft.apply_lora(plain, "*.c_attn", 0, rngs=nnx.Rngs(1))


@pytest.mark.parametrize("encoder", ["embedding", "mlp", "lstm"])
def test_prompts(encoder):
    theirs = theirs_peft.PTuningLayer(6, 3, 0.0, encoder).double()
    ours = ours_peft.P_TuningLayer(6, 3, 0.0, encoder, rngs=nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    x = np.random.default_rng(0).normal(size=(2, 4, 6))
    assert_twins_agree(theirs, ours, {"x": x}, call=lambda layer, x: layer(x))
    mask, labels = np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), np.arange(8).reshape(2, 4)
    for name, given, first in (("extend_mask", mask, 1), ("extend_labels", labels, -100)):
        long = np.asarray(getattr(ours, name)(jnp.asarray(given)))
        assert np.array_equal(long, getattr(theirs, name)(torch.tensor(given)))
        assert np.array_equal(long, np.concatenate([np.full((2, 3), first), given], 1))
    assert ours.extend_mask(jnp.asarray(mask > 0)).dtype == bool


TABLES = [
    ("gpt2", "transformer.wte"),
    ("advanced_transformer", "word_embedding"),
    ("bert", "*.word_embeddings"),
]


def with_prompts(which, match):
    """(torchref's model, its prompt layer, ours, our layer) with the same weights; a second prompt is refused."""
    torch.manual_seed(0)
    theirs = catalog.create_model(which, "tiny", package="torchref").double().eval()
    ours = unweighted(lambda: catalog.create_model(which, "tiny"))
    load_state_dict(ours, theirs.state_dict())
    with pytest.raises(ValueError, match=r"several|unknown"):
        ours_peft.apply_prompt(ours, "*embedding*" if which == "bert" else "*.x", rngs=nnx.Rngs(0))
    layer = ours_peft.apply_prompt(ours, match, 3, 0.0, "mlp", rngs=nnx.Rngs(0))
    twin = theirs_peft.apply_prompt(theirs, match, 3, 0.0, "mlp")
    for model, package in ((ours, ours_peft), (theirs, theirs_peft)):
        with pytest.raises(ValueError, match="has adapters"):
            package.apply_prompt(model, match, **({"rngs": nnx.Rngs(0)} if model is ours else {}))
    load_state_dict(ours, theirs.state_dict())
    ours.eval()
    return theirs, twin, ours, layer


@pytest.mark.parametrize(("which", "match"), TABLES, ids=[c[0] for c in TABLES])
def test_a_prompt_is_put_on_any_model(which, match):
    """Both packages agree, only the prompt trains, padding stays unseen, and removal restores the model."""
    theirs, twin, ours, layer = with_prompts(which, match)
    params = state.split(ours).params
    assert set(params) == {k for k, p in theirs.named_parameters() if p.requires_grad}
    assert all(".prompt." in k for k in params)
    ids, mask = np.random.default_rng(0).integers(0, 40, (2, 6)), np.arange(6) < np.array([[6], [4]])
    key = "last_hidden_state" if which == "bert" else "logits"
    given = [(w, a(ids), a(mask)) for w, a in ((layer, jnp.asarray), (twin, torch.tensor))]
    ours_in, theirs_in = [(w.extend_ids(i), w.extend_mask(m)) for w, i, m in given]

    def call(model, ids, mask):
        return model(ids, mask)[key]

    expected, cotangents = torch_vjp(theirs, dict(zip(("ids", "mask"), theirs_in, strict=True)), call=call)
    run, (longer, mask) = jax_vjp(ours, call), ours_in
    actual = run({"ids": longer, "mask": mask}, cotangents)
    assert actual.outputs[""].shape[1] == 9
    assert_same_vjp(actual, expected)
    assert all(np.abs(g).max() > 0 for g in actual.parameters.values())
    again = run({"ids": longer.at[1, 7:].set(5), "mask": mask}, cotangents)
    assert_close(again.outputs[""][1, :7], actual.outputs[""][1, :7])
    with pytest.raises(ValueError, match=r"44.*out of range"):
        layer(jnp.asarray([44]))
    ours_peft.remove_prompt(ours)
    plain = nnx.eval_shape(lambda: catalog.create_model(which, "tiny"))
    assert set(state.split(ours).params) == set(state.split(plain).params)
