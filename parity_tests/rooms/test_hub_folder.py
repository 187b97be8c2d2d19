"""What a Hugging Face folder says and holds beside its weights: checked, carried or named."""

import json
import os

import numpy as np
import pytest
from flax import nnx

from jaxarch import catalog
from jaxarch.convert.carried import carry, survey
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.hub import read_hub, write_hub
from jaxarch.convert.hub_config import check_sizes, config_class, hub_models
from jaxarch.convert.layout import layout, to_torch_layout
from jaxarch.convert.tensors import Tensor
from jaxarch.convert.ties import drop_tied
from jaxarch.errors import ConversionError
from jaxarch.state import flat


@pytest.fixture
def folder(tmp_path):
    weights = random_weights("gpt2", "tiny")
    write_hub(tmp_path / "hub", "gpt2", catalog.arguments("gpt2", "tiny"), weights)
    return tmp_path / "hub"


def random_weights(name, variant):
    model = nnx.eval_shape(lambda: catalog.create_model(name, variant))
    like, rng = flat(nnx.state(model)), np.random.default_rng(0)
    return {
        r.torch: rng.normal(size=to_torch_layout(np.empty(like[r.path].shape), r.perm).shape).astype(
            "float32"
        )
        for r in layout(model)
    }


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_page_of_the_hub_has_what_config_json_needs(tmp_path):
    """No table of architectures: a folder of any of them is written and read by its config dataclass."""
    for name in hub_models().values():
        variant = catalog.page(name).cases[0]
        arguments = catalog.arguments(name, variant)
        weights = random_weights(name, variant)
        write_hub(tmp_path / name, name, arguments, weights)
        with read_hub(tmp_path / name) as folder:
            assert folder.name == name
            assert folder.arguments == arguments
            tensors = folder.fitted(set(weights)).tensors
            assert all(tensors[k].read().tobytes() == v.tobytes() for k, v in weights.items())
        assert config_class(name).model_type == folder.config["model_type"]


WRONG = [
    ({"n_layer": "3"}, "n_layer is '3', which is no int in range"),
    ({"n_layer": -100}, "n_layer is -100"),
    ({"n_layer": 10**9}, "n_layer is 1,000,000,000, the weights have 2 layers"),
    ({"n_layer": 10**12}, "n_layer is 1000000000000, which is no int in range"),
    ({"n_layer": 2.0}, "n_layer is 2.0"),
    ({"n_layer": True}, "n_layer is True"),
    ({"n_layer": None}, "n_layer is None"),
    ({"vocab_size": 2 * 10**9}, "vocab_size is 2,000,000,000, the weights have"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
    ({"activation_function": ["gelu"] * 3}, "activation_function is"),
    ({"n_embd": [15, 16]}, r"n_embd \[15, 16\] is not square"),
    ({"n_embd": "x" * 5000}, "5,002 characters"),
    ({"n_embd": "\x1b[2J"}, r"x1b\[2J"),
    ({"model_type": ["gpt2"]}, "model_type .* is not known"),
    ({"architectures": {"GPT2LMHeadModel": 1}}, "the architecture None is not known"),
    ({"quantization_config": {"bits": 4}}, "the weights are quantized"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG, ids=[w[1] for w in WRONG])
def test_values_of_config_json_are_checked_before_a_model_is_built(folder, changes, says):
    edit(folder, **changes)
    with pytest.raises(ConversionError, match=says) as e:
        read_hub(folder)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 1000


def test_sizes_that_a_file_may_have():
    check_sizes({"n_layer": 5, "image_size": 224, "flag": True}, ["h.0.w", "h.1.w"], 10, "x")


def test_files_beside_the_weights_are_carried_or_named(folder, tmp_path):
    """Texts and files of tokenizers go along; code, links out of the folder, fifos and large files do not."""
    texts = ("tokenizer.json", "vocab.txt", "merges.txt", "README.md", "LICENSE", "generation_config.json")
    for name in texts:
        (folder / name).write_text("{}")
    (folder / "spiece.model").write_bytes(b"\x00\xff")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Y"}, "a": 1}')
    left = {
        "modeling_own.py": "it is code",
        "flax_model.msgpack": "it is no text",
        "passwd.txt": "it is a link out of the folder",
        "pipe.txt": "it is no regular file",
        "big.json": "it is larger than",
        ".hidden.json": "its name",
    }
    (folder / "modeling_own.py").write_text("")
    (folder / "flax_model.msgpack").write_text("")
    (folder / ".hidden.json").write_text("")
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.txt")
    with open(folder / "big.json", "wb") as f:
        os.truncate(f.fileno(), 1 << 30)
    found = survey(folder)
    assert set(found.files) == {*texts, "spiece.model", "1_Pooling/config.json", "tokenizer_config.json"}
    assert found.left.keys() == left.keys()
    assert all(found.left[k].startswith(v) for k, v in left.items())
    assert found.cleaned == ("tokenizer_config.json",)
    carry(folder, tmp_path / "out", found.files)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"a": 1}
    assert (tmp_path / "out" / "spiece.model").read_bytes() == b"\x00\xff"
    assert survey(tmp_path / "out").files == found.files
    (folder / "vocab.txt").write_text("[]")
    with pytest.raises(ConversionError, match=r"vocab\.txt is damaged or edited"):
        carry(folder, tmp_path / "out2", found.files)
    with pytest.raises(ConversionError, match="which is no file in it"):
        carry(folder, tmp_path / "out2", {"../x.txt": ""})


def test_links_into_the_cache_of_the_hub(folder, tmp_path):
    """The Hub's cache keeps a revision as links to blobs of the same repository."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "x").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/x")
    (snapshot / "merges.txt").symlink_to("../../../../secret")
    found = survey(snapshot)
    assert set(found.files) == {"tokenizer.json"}
    assert "merges.txt" in found.left


def test_keys_that_name_code_are_not_kept(folder, tmp_path):
    edit(folder, auto_map={"AutoModel": "modeling_own.Own"}, id2label={"0": "a"})
    with read_hub(folder) as hub:
        assert hub.code_keys() == ["auto_map"]
    weights = read_tensors(folder / "model.safetensors")
    write_hub(tmp_path / "again", "gpt2", hub.arguments, weights, hub.config)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "auto_map" not in config
    assert config["id2label"] == {"0": "a"}


def test_tied_weights_are_found_by_their_bits(folder):
    """A repeated matrix that the model lacks is dropped and named; equal vectors and even matrices are no ties."""
    rng = np.random.default_rng(0)
    a, ones = rng.normal(size=(3, 4)), np.ones((3, 4))
    values = {
        "embed": a,
        "head": a.copy(),
        "other": a + 1,
        "bias": ones[0],
        "b": ones[0],
        "c": ones,
        "d": ones,
    }
    tensors = {k: Tensor.of(v) for k, v in values.items()}
    kept, tied = drop_tied(tensors, {"embed", "bias", "c"})
    assert tied == {"head": "embed"}
    assert kept.keys() == values.keys() - {"head"}


def test_tied_weights_of_save_model(tmp_path):
    """safetensors.torch.save_model writes one of two tied tensors, and names the other in the metadata."""
    weights = random_weights("gpt2", "tiny_untied")
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    write_hub(tmp_path / "hub", "gpt2", catalog.arguments("gpt2", "tiny_untied"), weights)
    del weights["lm_head.weight"]
    file = tmp_path / "hub" / "model.safetensors"
    (tmp_path / "hub" / "checksums.json").unlink()
    file.unlink()
    write_tensors(file, weights, {"lm_head.weight": "transformer.wte.weight"})
    with read_hub(tmp_path / "hub") as hub:
        fitted = hub.fitted({*weights, "lm_head.weight"})
        assert fitted.tied == {"lm_head.weight": "transformer.wte.weight"}
        restored = fitted.tensors["lm_head.weight"].read()
    assert restored.tobytes() == weights["transformer.wte.weight"].tobytes()
