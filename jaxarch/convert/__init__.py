"""Weights between torch, jaxarch and files: strict, both ways, without name tables."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.convert.files import create_tensors, open_tensors, read_tensors, write_tensors
from jaxarch.convert.state_dict import load_state_dict, to_state_dict
