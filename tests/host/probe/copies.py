"""What a trace of torch's profiler says of copies between main memory and the card."""

from typing import Any

DIRECTIONS = {"to_card": "HtoD", "from_card": "DtoH"}  # as CUPTI names them


def count_copies(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the bytes of each direction, or say why nothing can be told."""
    kernels = sum(event.get("cat") == "kernel" for event in events)
    if not kernels:
        return {"why_not": "torch's profiler saw nothing of the card"}
    copies = [event for event in events if event.get("cat") == "gpu_memcpy"]
    moved = {
        name: sum(int(copy["args"]["bytes"]) for copy in copies if word in copy["name"])
        for name, word in DIRECTIONS.items()
    }
    return {**moved, "copies": len(copies), "kernels": kernels}
