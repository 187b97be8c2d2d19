"""Switches: which kernels run in place of the plain computations that they equal."""

from jaxarch.errors import unknown

_ENABLED = {
    "block_attention": True,
    "convolution": True,
    "edge_sums": True,
    "fused_attention": True,
    "lstm_cudnn": False,
    "recurrent": True,
}


def use_kernel(name: str, on: bool = True) -> None:
    """Switch a kernel on or off for what is compiled from now on; compiled programs stay as they are.

    Every kernel is on by default except "lstm_cudnn".

    Raises:
        UsageError: unknown name; the known ones are listed.
    """
    if name not in _ENABLED:
        raise unknown("kernel", name, _ENABLED)
    _ENABLED[name] = on


def is_enabled(name: str) -> bool:
    """Whether a kernel is switched on."""
    return _ENABLED[name]
