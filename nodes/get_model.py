"""Getting the published models: the only node that downloads, and only as it is told to."""

import fnmatch
import time
from collections.abc import Iterator
from pathlib import Path

from comfy_api.latest import io

from ..seed_core.compute.precision import LLM_PRECISIONS
from ..seed_core.errors import CheckpointError, DownloadError, OptionError
from ..seed_core.fetching.converted import fetch_converted
from ..seed_core.fetching.describe import describe_choice, show_size
from ..seed_core.fetching.downloads import DOWNLOADS, path_of
from ..seed_core.fetching.failures import OnBytes
from ..seed_core.fetching.fetch import check_disk, fetch
from ..seed_core.fetching.plan import Plan, make_plan
from ..seed_core.files import origin
from ..seed_core.models.convert import check_precision
from . import host
from .io_types import CATEGORY
from .kinds import DECODER, LLM, TOKENIZER, ModelKind

AS_PUBLISHED = "as published"
PRECISIONS = [AS_PUBLISHED, "bf16", "fp16", "fp8"]
SHOW, FETCH = ACTIONS = ("show", "fetch")
KINDS = {kind.name: kind for kind in (TOKENIZER, LLM, DECODER)}


class SeedGetModel(io.ComfyNode):
    """A model of the table -> what a loader calls it, once it is there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SEEDGetModel",
            display_name="Get SEED Model",
            category=CATEGORY,
            description="Downloads a real SEED model into its loader's folder and makes it smaller on "
            "the way, if you like. Nothing is downloaded until action is fetch.",
            search_aliases=[
                *("download SEED", "fetch model", "install model", "Hugging Face", "SEED-LLaMA"),
                *("real models", "8B", "14B", "unCLIP"),
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(DOWNLOADS),
                    tooltip="Which model. You need three: seed-tokenizer-2, seed-llama-8b-sft (or 14b) "
                    "and stable-diffusion-2-1-unclip. pretrain models do not follow instructions.",
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISIONS,
                    default=AS_PUBLISHED,
                    tooltip="The number format to keep it in: the smaller, the less disk and memory it "
                    "takes. Good choices: fp8 for a seed-llama, fp16 for the other two. fp8 is for "
                    "language models only, and half the size of bf16.",
                ),
                io.Combo.Input(
                    "action",
                    options=list(ACTIONS),
                    default=SHOW,
                    tooltip="show: says what would be downloaded, how large it is and where it goes. "
                    "fetch: downloads it. You can stop at any moment; the next run goes on from there.",
                ),
            ],
            outputs=[
                io.String.Output("name", tooltip="What to choose in the model's loader afterwards.")
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, precision: str | None = None) -> bool | str:
        if model is None or precision is None:  # they come by wire, and are checked when they have
            return True
        return host.message_of(lambda: _Choice(model, precision))

    @classmethod
    def fingerprint_inputs(cls, model: str, precision: str, action: str) -> str | float:
        """New whenever the model's files are, and for each run until it is there."""
        choice = _Choice(model, precision)
        return choice.kind.fingerprint(choice.name) if choice.is_there else float("nan")

    @classmethod
    def execute(cls, model: str, precision: str, action: str) -> io.NodeOutput:
        choice = _Choice(model, precision)
        if action not in ACTIONS:
            raise OptionError(f"there is no action '{action}'. Actions: {', '.join(ACTIONS)}.")
        was_there = choice.is_there
        if action == FETCH and not (was_there and choice.is_known):
            choice.fetch()
        is_new = action == FETCH and not was_there
        ui = host.say("\n".join(choice.describe()))
        return io.NodeOutput(choice.name, ui={**ui, "new_model": [choice.name] if is_new else []})


class _Choice:
    """A model and its precision, and where both lead to on this computer.

    Raises:
        OptionError: there is no such model, or not in that precision.
    """

    def __init__(self, model: str, precision: str):
        if model not in DOWNLOADS or precision not in PRECISIONS:
            raise OptionError(
                f"there is no '{model}' to get in '{precision}'. Models: {', '.join(DOWNLOADS)}. "
                f"Precisions: {', '.join(PRECISIONS)}."
            )
        self._model, self._download = model, DOWNLOADS[model]
        self._precision = None if precision == AS_PUBLISHED else precision
        if self._precision is not None:
            check_precision(self._download.kind, LLM_PRECISIONS[self._precision])
        self._folder = Path(host.model_folders(self.kind.folder)[0])
        self._path = path_of(model, self._folder, self._precision)

    @property
    def kind(self) -> ModelKind:
        """Of its loader."""
        return KINDS[self._download.kind]

    @property
    def name(self) -> str:
        """What the loader calls it."""
        return self._path.name

    @property
    def is_there(self) -> bool:
        """Whether the loader would take it."""
        return self.kind.check(self.name) is True

    @property
    def is_known(self) -> bool:
        """Whether its files were checked by their hashes, so that no server need be asked."""
        if self._precision is not None:
            return True  # what `fetch_converted` wrote
        names = origin.unchanged(self._home, self._model)
        patterns = [pattern for source in self._download.sources for pattern in source.files]
        return all(fnmatch.filter(names, pattern) for pattern in patterns)

    @property
    def _home(self) -> Path:
        """The folder of the published files: where they lie, or else in the host's first one."""
        path = path_of(self._model, self._folder)
        if self.kind.check(path.name) is True:
            path = Path(self.kind.find(path.name))
        return path.parent if self._download.shares_folder else path

    def describe(self) -> Iterator[str]:
        """What people read on the node."""
        if self.is_there:
            yield f"{self.name} is there. Choose it in the loader; press R if it is not in the list."
            yield str(self.kind.find(self.name))
            return
        yield f"{self.name} is not there yet."
        yield f"To download it, press fetch now, or set action to {FETCH} and press Run."
        yield "You can stop at any moment; the next run goes on."
        plan = None
        if self._download.published_gigabytes is None:
            try:
                plan = self._plan(_Teller(self.name))
                yield "Its page was asked for the sizes:"
            except DownloadError as error:
                yield f"The sizes are not known: {error}"
        yield from _Teller.describe_speed(self._download.published_gigabytes)
        yield from describe_choice(self._model, self._precision, self._folder, plan)

    def fetch(self) -> None:
        """Download it, and convert it on the way."""
        tell = _Teller(self.name)
        plan = self._plan(tell)
        tell.total = plan.size
        if self._precision is None:
            tell.last_step = "checking"
            check_disk(plan)
            for _ in fetch(plan, tell):
                pass
        else:
            tell.last_step = "converting and checking"
            fetch_converted(plan, LLM_PRECISIONS[self._precision], self._path, tell)
        if (found := self.kind.check(self.name)) is not True:
            raise CheckpointError(str(found))

    def _plan(self, on_bytes: OnBytes) -> Plan:
        return make_plan(self._model, self._home, on_bytes=on_bytes)


class _Teller:
    """The bar and the words of a download. Each call is a chance to Stop.

    Attributes:
        total: bytes of all files; 0 until the servers have told.
        last_step: what is done when all of them have come.
    """

    _last_speed = 0.0  # bytes a second

    def __init__(self, name: str):
        self.total, self.last_step = 0, ""
        self._name, self._progress, self._began = name, host.Progress(1), time.monotonic()

    def __call__(self, here: int, fetched: int) -> None:
        if fetched > 0:
            _Teller._last_speed = fetched / max(time.monotonic() - self._began, 1e-3)
        self._progress.step(here, max(self.total, 1))
        self._progress.show(lambda: f"{self._name}: {self._words(here, fetched)}")

    def _words(self, here: int, fetched: int) -> str:
        if here == self.total:
            return f"{self.last_step} what has come" if here else "asking which files there are"
        come = f"{show_size(here)} of {show_size(self.total)}"
        if fetched <= 0:
            return f"{come}, waiting for the server"
        left = _duration(self.total - here, self._last_speed)
        return f"{come}, {show_size(int(self._last_speed))} a second, {left} left"

    @classmethod
    def describe_speed(cls, gigabytes: float | None) -> Iterator[str]:
        """How long a download takes, if there has been another since ComfyUI started."""
        if gigabytes is not None and cls._last_speed:
            yield (
                f"Takes {_duration(gigabytes * 1e9, cls._last_speed)} at the speed of the last "
                f"download, {show_size(int(cls._last_speed))} a second"
            )


def _duration(size: float, speed: float) -> str:
    minutes = size / max(speed, 1.0) / 60
    if minutes < 1.5:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
