"""Proof that a torch and an nnx module are the same model; for the catalog and for any pair of yours."""

from jaxarch.parity.compare import BOUND
from jaxarch.parity.pair import Pair, draw_inputs
from jaxarch.parity.report import (
    Case,
    CaseResult,
    cases,
    check,
    check_pair,
    run_cases,
    to_json,
    write_html,
    write_json,
)
