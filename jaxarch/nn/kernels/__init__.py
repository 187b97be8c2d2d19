"""Kernels: arrays in, arrays out, each equal to a plain computation that runs when `use_kernel` switches it off."""

from jaxarch.nn.kernels.switches import use_kernel
