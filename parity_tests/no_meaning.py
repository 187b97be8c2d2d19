"""What torch.nn has and JAX cannot have, each with its reason."""

# A module, or a module and `argument=value` of the constructor or the call.
NO_MEANING: dict[str | tuple[str, str], str] = {}

# Modules of which not every sample agrees yet: each line goes with the change that makes them agree.
PENDING = {
    # recurrent layers, attention
    "GRU",
    "LSTM",
    "MultiheadAttention",
    "RNN",
    "TransformerEncoderLayer",
}
