"""Digests of networks, which tell whether something was made by the same weights."""

from __future__ import annotations

import hashlib

from torch import nn


def digest(network: nn.Module) -> str:
    """Return a digest of a network's weights, whatever their number format and device."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()
