"""What torch.nn has and JAX cannot have, each with its reason."""

# A module, or a module and `argument=value` of the constructor or the call.
NO_MEANING: dict[str | tuple[str, str], str] = {}
