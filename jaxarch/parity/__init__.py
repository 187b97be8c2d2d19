"""Proof that a torch and an nnx module are the same model; for the catalog and for any pair of yours."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.parity.catalog_cases import Case, cases, catalog_pair, draw_inputs, run_cases
from jaxarch.parity.checks import CaseResult, check, check_pair
from jaxarch.parity.compare import BOUND
from jaxarch.parity.pair import Pair
from jaxarch.parity.report import to_json, write_html, write_json
