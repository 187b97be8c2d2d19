"""Molecules that rdkit ships, as graphs. Target: logP after Wildman and Crippen 1999, doi:10.1021/ci990307l."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch import graphs
from jaxarch.data.array_source import ArraySource
from jaxarch.data.graph_batches import check_width, stack
from jaxarch.errors import require

ELEMENTS = ("C", "N", "O", "S", "P", "F", "Cl", "Br", "I")
FEATURES = len(ELEMENTS) + 1 + 5 + 5 + 2 + 3  # element or another, degree, hydrogens, charge, rings


def load(
    *,
    arguments: Mapping[str, Any],
    count: int = 5000,
    most_atoms: int = 32,
    fingerprints: int = 0,
) -> ArraySource:
    """The first `count` compounds of the National Cancer Institute's set, without hydrogens; a fifth is for testing.

    Nodes are atoms with their element, degree, hydrogens, charge, ring and hybridisation, edges are bonds both
    ways weighted by their order (aromatic 1.5). Salts and molecules above `most_atoms` are left out.

    Args:
        fingerprints: bits of Morgan fingerprints of radius 2, put into `extra` for a baseline; 0 for none.

    Raises:
        UsageError: rdkit is not installed.
        DataError: the model is of another width.
    """
    require("rdkit", "recipes", "data molecules")
    from rdkit import Chem, RDConfig, rdBase
    from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

    check_width(arguments, num_features=FEATURES, num_classes=1)
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines()[:count]
    with rdBase.BlockLogs():  # the set holds molecules that rdkit refuses, each with a message
        parsed = [Chem.MolFromSmiles(line.split()[0]) for line in lines if "." not in line.split()[0]]
    molecules = [m for m in parsed if m is not None and 1 < m.GetNumAtoms() <= most_atoms]
    batch = stack([graph_of(m) for m in molecules])
    batch["target"] = np.array([rdMolDescriptors.CalcCrippenDescriptors(m)[0] for m in molecules], np.float32)
    extra: dict[str, Any] = {}
    test = np.zeros(len(molecules), bool)
    test[np.random.default_rng(0).permutation(len(molecules))[: len(molecules) // 5]] = True
    if fingerprints:
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=fingerprints)
        bits = np.stack([generator.GetFingerprintAsNumPy(m) for m in molecules])
        extra = {"train": bits[~test], "test": bits[test]}
    return ArraySource(
        train={k: v[~test] for k, v in batch.items()},
        test={k: v[test] for k, v in batch.items()},
        classes=1,
        unit="molecules",
        extra=extra,
    )


def graph_of(molecule: Any) -> graphs.GraphsTuple:
    """A molecule of rdkit: "x" (atoms, FEATURES) and the bonds' "edge_weight"."""
    rows = []
    for atom in molecule.GetAtoms():
        symbol, row = atom.GetSymbol(), np.zeros(FEATURES, np.float32)
        row[ELEMENTS.index(symbol) if symbol in ELEMENTS else len(ELEMENTS)] = 1
        row[10 + min(atom.GetDegree(), 4)] = 1
        row[15 + min(atom.GetTotalNumHs(), 4)] = 1
        row[20], row[21] = max(atom.GetFormalCharge(), 0), max(-atom.GetFormalCharge(), 0)
        row[22], row[23] = atom.IsInRing(), atom.GetIsAromatic()
        row[24] = str(atom.GetHybridization()) == "SP3"
        rows.append(row)
    bonds = list(molecule.GetBonds())
    return graphs.from_edges(
        [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in bonds],
        undirected=True,
        nodes={"x": np.stack(rows)},
        edges={"edge_weight": np.array([b.GetBondTypeAsDouble() for b in bonds], np.float32)},
    )
