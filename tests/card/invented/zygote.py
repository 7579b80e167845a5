"""Imports what is slow once, then plays each request in a process forked from this one.

Reads a JSON list of requests: a row's text and the script played on it, a list of actions with
their options. Writes a line for each as it is done: its place in the list, and its records or a
traceback. Run it in ComfyUI's Python, in an empty folder for its files.

    python zygote.py CHECKOUT PACK
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

AT_ONCE = min(2, os.cpu_count() or 1)


def main(checkout: Path, pack: Path) -> None:
    """Write the models, then play."""
    sys.path[:0] = [str(Path(__file__).parents[1]), str(pack)]
    import torch._dynamo  # which torch imports when it first sees an invented tensor

    from invented import files, rehearsal

    torch.set_num_threads(1)
    base = Path.cwd()
    files.write_models(base, pack)
    rehearsal.rehearse(base)
    gc.collect()
    gc.freeze()
    requests = json.load(sys.stdin)
    running: dict[int, int] = {}
    for index, request in enumerate(requests):
        if len(running) >= AT_ONCE:
            _finish_one(running, base)
        process = _fork(base / f"{index}.json", lambda r=request: _play(checkout, base, pack, r))
        running[process] = index
    while running:
        _finish_one(running, base)


def _fork(answer: Path, function: Callable[[], dict[str, Any]]) -> int:
    """Write what a function returns to a file, from a process of its own; its id."""
    process = os.fork()
    if process:
        return process
    os.dup2(2, 1)  # what the host prints must not mix with the answers
    try:
        content = function()
    except BaseException:  # noqa: BLE001 - whatever it is, a test shows it
        content = {"traceback": traceback.format_exc()}
    answer.write_text(json.dumps(content), encoding="utf-8")
    os._exit(0)  # without finalisers: they would use the host, whose modules are gone by then


def _finish_one(running: dict[int, int], base: Path) -> None:
    """Wait for any of the processes and hand its answer on."""
    process, status = os.wait()
    index = running.pop(process)
    file = base / f"{index}.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
    else:
        content = {"traceback": f"the process ended with status {status}"}
    print(json.dumps({"index": index, **content}), flush=True)


def _play(checkout: Path, base: Path, pack: Path, request: dict[str, Any]) -> dict[str, Any]:
    from invented import cards, host, player

    row = cards.Row.parse(request["row"])
    running = player.Player(host.start(row, checkout, base, pack), checkout, pack)
    records = [running.play(action, options) for action, options in request["script"]]
    return {"records": [record.to_json() for record in records]}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
