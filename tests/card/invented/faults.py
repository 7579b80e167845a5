"""Things done wrong on purpose, so that a law that holds is known to look.

Each is called with the host and the mode of invented tensors, like a node.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .host import Host

CARD = torch.device("cuda", 0)


def two_devices(host: Host, fake: Any) -> Any:
    """A product of weights on the card with a vector in main memory."""
    return torch.zeros(8, 8, device=CARD) @ torch.zeros(8, 8)


def two_dtypes(host: Host, fake: Any) -> Any:
    """A convolution whose bias is of another precision, which shape functions overlook."""
    picture = torch.zeros(1, 3, 8, 8, device=CARD, dtype=torch.float16)
    weight = torch.zeros(4, 3, 3, 3, device=CARD, dtype=torch.float16)
    return nn.functional.conv2d(picture, weight, torch.zeros(4, device=CARD))


def three_looks(host: Host, fake: Any) -> None:
    """Three values read of the card."""
    numbers = torch.zeros(3, device=CARD)
    for i in range(3):
        float(numbers[i])


def mask(host: Host, fake: Any) -> None:
    """Rows picked by a mask, whose number the processor must know."""
    rows = torch.zeros(4, 8, device=CARD)
    rows[rows.sum(-1) > 0]


def one_launch(host: Host, fake: Any) -> None:
    """One kernel, among views and what is only reserved."""
    numbers = torch.empty(4, 8, device=CARD)
    numbers.view(8, 4).transpose(0, 1)[1:].unsqueeze(0).expand(3, -1, -1).detach()
    numbers.add_(1)


def full(host: Host, fake: Any) -> None:
    """A tensor as large as the whole card."""
    torch.empty(host.cuda.memory.total, dtype=torch.uint8, device=CARD)


def garbage(host: Host, fake: Any) -> None:
    """Many tensors, one after the other, that together would not fit."""
    for _ in range(8):
        torch.empty(host.cuda.memory.total // 4, dtype=torch.uint8, device=CARD)


def look_in_capture(host: Host, fake: Any) -> None:
    """A capture that asks for a value."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        float(torch.zeros((), device=CARD))
    finally:
        graph.capture_end()


def plain_layers(host: Host, fake: Any) -> None:
    """A network of torch's own layers made ready twice: the host cannot leave them there."""
    _ready_twice(host, nn.Linear)


def host_layers(host: Host, fake: Any) -> None:
    """The same with the host's layers."""
    _ready_twice(host, host.nodes.host.cast_operations().Linear)


SIDE = 4096


def _ready_twice(host: Host, layer: Any) -> None:
    module = nn.Sequential(*(layer(SIDE, SIDE, bias=False, dtype=torch.float16) for _ in range(4)))
    module.requires_grad_(False)
    core = SimpleNamespace(
        module=module, networks=(module,), device=torch.device("cpu"), uses_graphs=False
    )
    model = host.nodes.host.LoadedModel(core)
    for _ in range(2):
        model.ready(0)
        module(torch.zeros(1, SIDE, dtype=torch.float16, device=CARD))
