"""Fixtures of the parity layer: goldens, the generated weights, and how closeness is measured."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def golden_weights() -> ModuleType:
    """The generator of the goldens' weights, imported from the file beside this one."""
    path = Path(__file__).with_name("golden_weights.py")
    spec = importlib.util.spec_from_file_location("tests_golden_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def read_golden(golden_folder: Path) -> Callable[[str], SimpleNamespace]:
    """Golden by name: .facts is its JSON, .arrays its npz as numpy arrays."""

    def read(name: str) -> SimpleNamespace:
        facts = json.loads((golden_folder / f"{name}.json").read_text(encoding="utf-8"))
        with np.load(golden_folder / f"{name}.npz") as arrays:
            return SimpleNamespace(facts=facts, arrays={key: arrays[key] for key in arrays})

    return read


@pytest.fixture(scope="session")
def relative_error() -> Callable[..., float]:
    """Largest difference as a share of the reference's largest magnitude.

    Float32 rounding grows with the numbers that were summed, not with the result: an entry that
    happens to cancel to nearly zero carries the rounding of its terms. So the error of every entry is
    measured against the size of its tensor.
    """

    def measure(ours: torch.Tensor, reference: torch.Tensor | np.ndarray) -> float:
        reference = torch.as_tensor(reference)
        assert ours.shape == reference.shape, (tuple(ours.shape), tuple(reference.shape))
        difference = (ours.double() - reference.double()).abs().max()
        return float(difference / reference.double().abs().max())

    return measure
