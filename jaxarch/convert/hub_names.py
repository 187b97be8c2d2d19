"""Names that Hugging Face's tensors have had: on disk, in memory, of older releases, with and without a prefix.

Names on disk are the ones used here. An architecture that has always had one set of names needs no entry: its prefix
is `base_model_prefix` of its config dataclass, or its `model_type`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxarch.convert.tensors import Tensor
from jaxarch.convert.ties import drop_tied, same_bits
from jaxarch.errors import ConversionError, listed


@dataclass(frozen=True)
class Family:
    """What the models of one `model_type` have called their tensors.

    Attributes:
        heads: keys that belong to heads or options, which a model without them omits.
        unused: keys of buffers that hold no weights.
        tied: keys that repeat another.
        renamed: patterns of names that `transformers` has used, and the names on disk.
    """

    heads: str = "$^"
    unused: str = "$^"
    tied: Mapping[str, str] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        heads=r"(multiple_choice_head|score|classifier)\.",
        unused=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$",
        tied={"lm_head.weight": "transformer.wte.weight"},
    ),
    "bert": Family(
        heads=r"(cls|classifier|qa_outputs|(bert\.)?pooler)\.",
        unused=r"(bert\.)?embeddings\.(position_ids|token_type_ids)$",
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        # Names in the first release, converted from TensorFlow.
        renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ),
    "vit": Family(
        heads=r"(classifier|decoder|(vit\.)?pooler)\.|(vit\.)?embeddings\.mask_token$",
        # Names in memory since transformers 5.
        renamed=(
            (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
            (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1_proj."),
            (r"\.q_proj\.", ".query."),
            (r"\.k_proj\.", ".key."),
            (r"\.v_proj\.", ".value."),
            (r"\.attention\.o_proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        ),
    ),
}


class Fitted(NamedTuple):
    """Tensors under the names of a model, and what became of the others.

    Attributes:
        omitted: keys of heads that the model lacks.
        unused: keys of buffers that hold no weights.
        tied: keys that repeat another, and that other.
    """

    tensors: dict[str, Tensor]
    omitted: list[str]
    unused: list[str]
    tied: dict[str, str]


def fit(
    tensors: Mapping[str, Tensor],
    needed: set[str],
    *,
    kind: str,
    base: str,
    metadata: Mapping[str, str],
    where: object,
) -> Fitted:
    """The tensors of a folder under the names of a model that needs `needed`.

    Args:
        kind: the model_type.
        base: the attribute of a model with a head that holds the model without one.
        metadata: of safetensors, in which `save_model` names the tensors that repeat another.

    Raises:
        ConversionError: two tensors claim one name, or a tied tensor differs from its original.
    """
    family = FAMILIES.get(kind, Family())
    unused = [k for k in tensors if re.match(family.unused, k)]
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in unused:
            continue
        name = key
        for pattern, repl in family.renamed:
            name = re.sub(pattern, repl, name)
        if name in named:
            raise ConversionError(f"{where} holds {name} twice, under two names")
        named[name] = value
    named = _with_prefix(named, needed, base, family.tied)
    tied = {k: v for k, v in metadata.items() if k in needed and k not in named and v in named}
    named.update({k: named[v] for k, v in tied.items()})
    for key, original in family.tied.items():
        if key in needed or key not in named:
            continue
        if original in needed and not same_bits(named[key], named.setdefault(original, named[key])):
            raise ConversionError(f"{where}: {key} differs from {original}, but the model ties them")
        if original in needed:
            tied[key] = original
            del named[key]
    named, repeated = drop_tied(named, needed, family.heads)
    omitted = sorted(k for k in named if k not in needed and re.match(family.heads, k))
    kept = {k: v for k, v in named.items() if k not in omitted}
    return Fitted(kept, omitted, unused, {**tied, **repeated})


def _with_prefix(
    tensors: dict[str, Tensor], needed: set[str], base: str, tied: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors with the prefix that the model has, where one of the two has none."""
    prefix = f"{base}."
    needs, has = (any(k.startswith(prefix) for k in keys) for keys in (needed, tensors))
    if needs and not has:
        top_level = {k.split(".")[0] for k in (*needed, *tied)}
        return {k if k.split(".")[0] in top_level else prefix + k: v for k, v in tensors.items()}
    if has and not needs:
        bare = {k.removeprefix(prefix): v for k, v in tensors.items()}
        if len(bare) != len(tensors):
            twice = sorted(k for k in tensors if k.startswith(prefix) and k.removeprefix(prefix) in tensors)
            raise ConversionError(f"two tensors have one name without {prefix}: {listed(twice)}")
        return bare
    return tensors
