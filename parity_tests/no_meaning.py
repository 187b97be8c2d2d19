"""What torch.nn has and JAX cannot have, each with its reason."""

# A module, or a module and `argument=value` of the constructor or the call.
NO_MEANING: dict[str | tuple[str, str], str] = {}

# Classes of torch.nn that are not here.
CLASSES = {
    "Container": "torch deprecates it: it is Module under its older name",
    "CrossMapLRN2d": "its sums keep the first channel, its gradient is not that of its output: LocalResponseNorm",
    "DataParallel": "a batch is sharded over devices by jax.jit: jaxarch.parallel",
    "Parameter": "flax's nnx.Param",
    "RNNBase": "the abstract base class of RNN, LSTM and GRU",
    "RNNCellBase": "the abstract base class of the cells",
    "UninitializedBuffer": "a lazy layer has no array before its first input",
    "UninitializedParameter": "a lazy layer has no array before its first input",
}
# Functions of torch.nn.functional that are not here.
IN_PLACE = "arrays are not changed in place: the function without the underscore"
FUNCTIONS = {
    **dict.fromkeys(
        ("celu_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"), IN_PLACE
    ),
    "assert_int_or_pair": "a helper of torch's own",
    "grouped_mm": "a GPU kernel in bfloat16: jax.lax.ragged_dot",
    "scaled_grouped_mm": "a GPU kernel of scaled 8-bit matrices",
    "scaled_mm": "a GPU kernel of scaled 8-bit matrices: jax.nn.scaled_matmul",
}
# Classes and functions whose arguments, but for `rngs`, `device` and `dtype`, are not torch's.
OTHER_ARGUMENTS = {
    "CosineSimilarity": "torch's default dim=1 is the channel axis, which is last here",
    "EmbeddingBag": "_freeze is its own, for from_pretrained",
    "Hardtanh": "min_value and max_value are deprecated in torch",
    "Sequential": "its layers are *layers, not *args",
    "normalize": "torch's default dim=1 is the channel axis, which is last here; out= changes an array in place",
    "pad": "channels_last says how the axes of an array are meant",
}
