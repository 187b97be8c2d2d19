"""Weights between torch, jaxarch and files: strict, both ways, without name tables."""

from jaxarch.convert.state_dict import load_state_dict, to_state_dict
