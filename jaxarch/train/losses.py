"""The former place of `jaxarch.losses`; imports of it still work."""

from jaxarch.losses import *  # noqa: F403
