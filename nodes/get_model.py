"""Getting the published models: the only node that goes online, and only when it is told to."""

import time
from pathlib import Path

from comfy_api.latest import io

from ..seed_core.compute.precision import LLM_PRECISIONS
from ..seed_core.fetching.converted import fetch_converted
from ..seed_core.fetching.describe import describe_choice, show_size
from ..seed_core.fetching.downloads import DOWNLOADS
from ..seed_core.fetching.fetch import check_disk, fetch
from ..seed_core.fetching.plan import make_plan
from ..seed_core.models.convert import check_precision
from . import host
from .io_types import CATEGORY

AS_PUBLISHED = "as published"
PRECISIONS = [AS_PUBLISHED, "bf16", "fp16", "fp8"]
SHOW, FETCH = "show", "fetch"


class SeedGetModel(io.ComfyNode):
    """A model of the table -> what a loader calls it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDGetModel",
            display_name="Get SEED Model",
            category=CATEGORY,
            description="Downloads a published SEED model into the folder of its loader, and converts "
            "it on the way. Nothing is downloaded before action is fetch.",
            search_aliases=["download model", "fetch", "install model", "Hugging Face"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(DOWNLOADS),
                    tooltip="Which model. Full-size pictures and chats need one of each kind: "
                    "seed-tokenizer-2, a seed-llama and stable-diffusion-2-1-unclip.",
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default=AS_PUBLISHED,
                    tooltip="What to keep. bf16 and fp16 take half of what is published in 32 bits, "
                    "fp8, for seed-llama only, a quarter.",
                ),
                io.Combo.Input(
                    "action",
                    options=[SHOW, FETCH],
                    default=SHOW,
                    tooltip="show: tells sizes, licences and where it goes, without a connection. "
                    "fetch: does it. Stop ends it at any moment; the next run goes on from there.",
                ),
            ],
            outputs=[
                io.String.Output("name", tooltip="What to choose in the loader, after pressing R.")
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, precision: str | None = None) -> bool | str:
        if model not in DOWNLOADS or precision not in PRECISIONS:
            known = ", ".join(DOWNLOADS), ", ".join(PRECISIONS)
            return f"there is no {model} in {precision}; models: {known[0]}; precisions: {known[1]}"
        return host.message_of(lambda: _check(model, precision))

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str, action: str) -> str:
        """New when the model has come or gone, and for each download that is asked for."""
        return str(_is_there(model, precision))

    @classmethod
    def execute(cls, model: str, precision: str, action: str) -> io.NodeOutput:
        _check(model, precision)
        folder, kept = _folder(model), _kept(precision)
        if action == FETCH and not DOWNLOADS[model].is_there(folder, kept):
            _fetch(model, kept, folder)
        name = DOWNLOADS[model].place(folder, kept).name
        said = "\n".join(describe_choice(model, kept, folder))
        if DOWNLOADS[model].is_there(folder, kept):
            said += f"\nPress R, then choose '{name}' in the loader."
        host.show_text(said)
        return io.NodeOutput(name, ui={"text": [said]})


def _kept(precision: str) -> str | None:
    return None if precision == AS_PUBLISHED else precision


def _folder(model: str) -> Path:
    """The host's first folder for models of this kind."""
    return Path(host.model_folders(f"seed_{DOWNLOADS[model].kind}")[0])


def _is_there(model: str, precision: str) -> bool:
    return DOWNLOADS[model].is_there(_folder(model), _kept(precision))


def _check(model: str, precision: str) -> None:
    if (kept := _kept(precision)) is not None:
        check_precision(DOWNLOADS[model].kind, LLM_PRECISIONS[kept])


def _fetch(model: str, kept: str | None, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    download = DOWNLOADS[model]
    plan = make_plan(model, folder if download.shares_folder else folder / model)
    tell = _Teller(sum(file.size for _, file in plan.files))
    if kept is None:
        check_disk(plan)
        list(fetch(plan, tell))
    else:
        fetch_converted(plan, LLM_PRECISIONS[kept], download.place(folder, kept), tell)


class _Teller:
    """The bar and the words of a download; each call is a chance to Stop."""

    def __init__(self, total: int):
        self._progress, self._total, self._done = host.Progress(total), total, 0
        self._begun = time.monotonic()

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress.step(min(self._done, self._total), self._total)
        self._progress.show(self._words)

    def _words(self) -> str:
        speed = self._done / max(time.monotonic() - self._begun, 1e-3)
        left = max(self._total - self._done, 0) / max(speed, 1.0)
        return (
            f"{show_size(self._done)} of {show_size(self._total)}, {show_size(int(speed))} a second, "
            f"{left / 60:.0f} minutes left"
        )
