"""Plays nodes of the pack on the host and its card, one after the other, and records each."""

import contextlib
import gc
import importlib
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from . import faults
from .cards import Readiness, Record
from .host import PACK, Host
from .watch import Watch

CARD = torch.device("cuda", 0)


class Player:
    """Everything that lives between two nodes: models on wires, and what the host has loaded."""

    def __init__(self, host: Host, checkout: Path, pack: Path) -> None:
        import diffusers

        self._host = host
        self._models: dict[tuple[str, ...], Any] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        roots = {name: pack / name for name in ("seed_core", "nodes")}
        roots |= {"comfy": checkout / "comfy", "diffusers": Path(diffusers.__file__).parent}
        self._watch = Watch(host.cuda, self._fake, roots)
        self._note_readiness()

    def play(self, action: str, options: dict[str, Any]) -> Record:
        """Do one thing under inference mode, as the host does."""
        words = " ".join([action, *(f"{name}={value}" for name, value in options.items())])
        self._watch.begin(words)
        with torch.inference_mode(), self._fake, self._watch:
            try:
                with self._loading():
                    run = getattr(self, f"_{action}")(**options)
                self._watch.record.made = _tensors(run())
            except Exception as error:  # noqa: BLE001 - any is a result here
                self._watch.record.error = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            self._read_memory_use()
            record = self._watch.end()
            with self._loading():
                self._host.after_node()
        self._describe(record)
        return record

    # --- actions: each loads what it needs, and returns what is to be recorded -----------------

    def _generate(
        self,
        llm: str = "8b bf16",
        lora: str = "",
        words: int = 8,
        reply: str = "image",
        tokens: int = 36,
        variations: int = 1,
        temperature: float = 1.0,
    ) -> Callable[[], Any]:
        model = self._llm(llm, lora)
        node = self._host.nodes.generate.SeedGenerate
        options = {"temperature": temperature, "top_p": 0.5, "top_k": 50, "seed": 0}
        options |= {"reply": reply, "variations": variations, "max_new_tokens": tokens}
        return partial(node.execute, model, "fox " * words, **options)

    def _generate_without_host(
        self, llm: str = "8b bf16", reply: str = "image", tokens: int = 36, variations: int = 1
    ) -> Callable[[], Any]:
        """As a program that uses seed_core alone on a card."""
        core = importlib.import_module(f"{PACK}.seed_core")
        fp8 = importlib.import_module(f"{PACK}.seed_core.compute.fp8")
        dtype = fp8.FP8 if "fp8" in llm else torch.bfloat16
        find = self._host.nodes.kinds.LLM.find
        model = core.load_llm(find(llm), CARD, dtype)
        options = core.GenerationOptions(reply=reply, max_new_tokens=tokens)
        generators = core.seeded_generators(0, variations)
        return partial(model.generate_batch, "fox", options=options, generators=generators)

    def _encode(self, tokenizer: str = "seed-2", pictures: int = 1) -> Callable[[], Any]:
        model = self._tokenizer(tokenizer)
        image = torch.zeros(pictures, 64, 64, 3)
        return partial(self._host.nodes.encode.SeedEncode.execute, model, image, "stretch")

    def _embed(self, tokenizer: str = "seed-2", pictures: int = 4) -> Callable[[], Any]:
        model, codes = self._tokenizer(tokenizer), self._codes(tokenizer, pictures)
        nodes = self._host.nodes.embed
        kind = (
            nodes.SeedCodesToEmbedding if tokenizer == "seed-2" else nodes.SeedCodesToConditioning
        )
        return partial(kind.execute, model, codes)

    def _decode(
        self,
        decoder: str = "sd21-unclip",
        side: int = 0,
        pictures: int = 1,
        steps: int = 1,
        scheduler: str = "DDIMScheduler",
    ) -> Callable[[], Any]:
        import diffusers

        tokenizer, model = self._tokenizer("seed-2"), self._decoder(decoder)
        config = model.core.scheduler.config
        model.core.scheduler = getattr(diffusers, scheduler).from_config(config)
        options = {"seed": 0, "steps": steps, "guidance_scale": 10.0, "noise_level": 0}
        codes = self._codes("seed-2", pictures)
        node = self._host.nodes.decode.SeedDecode
        return partial(node.execute, tokenizer, model, codes, **options, width=side, height=side)

    def _fault(self, name: str) -> Callable[[], Any]:
        """Something done wrong on purpose, see ``faults``."""
        return partial(getattr(faults, name), self._host, self._fake)

    def _unload(self) -> Callable[[], Any]:
        """As the host's button does."""
        return self._host.management.unload_all_models

    def _forget(self) -> Callable[[], Any]:
        """No wire holds a model any more."""

        def forget() -> None:
            self._models.clear()
            gc.collect()

        return forget

    # --- models --------------------------------------------------------------------------------

    def _load(self, loader: Any, choice: str, **options: Any) -> Any:
        key = (loader.__name__, choice)
        if key not in self._models:
            (self._models[key],) = loader.execute(choice, **options).args
            self._invent(self._models[key].core.module)
        return self._models[key]

    def _invent(self, module: torch.nn.Module) -> None:
        """Take the numbers away from small weights too, as the host moves some of them in place."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                if type(parameter) is torch.nn.Parameter:
                    invented = self._fake.from_tensor(parameter.data)
                    setattr(part, name, torch.nn.Parameter(invented, requires_grad=False))

    def _llm(self, name: str, lora: str) -> Any:
        nodes = self._host.nodes
        model = self._load(nodes.loaders.SeedLlamaLoader, name, precision="auto")
        if not lora:
            return model
        key = ("lora", name, lora)
        if key not in self._models:
            (self._models[key],) = nodes.lora.SeedLoraLoader.execute(model, lora, 1.0).args
        return self._models[key]

    def _tokenizer(self, name: str) -> Any:
        choice = f"{name}/model.safetensors"
        return self._load(self._host.nodes.loaders.SeedTokenizerLoader, choice, precision="auto")

    def _decoder(self, name: str) -> Any:
        loader = self._host.nodes.loaders.SeedDecoderLoader
        return self._load(loader, f"{name}.safetensors", precision="auto")

    def _codes(self, family: str, pictures: int) -> Any:
        codes = importlib.import_module(f"{PACK}.seed_core.codes.value")
        size = codes.CODEBOOK_SIZES[family]
        return codes.SeedCodes(torch.zeros(pictures, 32, dtype=torch.int64), family, size)

    # --- measuring -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _loading(self) -> Any:
        """What happens in here does not count as part of the action, except for an error."""
        kept = self._watch.record
        self._watch.begin(kept.action)
        try:
            yield
        finally:
            self._watch.begin(kept.action)
            self._watch.record = kept

    def _note_readiness(self) -> None:
        """Measure what is used after a model is made ready."""
        ready = self._host.nodes.host.LoadedModel.ready

        def noted(model: Any, memory_required: int, only: Any = None) -> Any:
            self._read_memory_use()
            core = ready(model, memory_required, only)
            name = type(model.core.module if only is None else only).__name__
            self._watch.record.readied.append(Readiness(name, int(memory_required), 0))
            memory = self._host.cuda.memory
            memory.forget_peak()
            self._at_ready = memory.peak
            return core

        self._host.nodes.host.LoadedModel.ready = noted

    def _read_memory_use(self) -> None:
        if self._watch.record.readied:
            used = self._host.cuda.memory.peak - self._at_ready
            self._watch.record.readied[-1].used = used

    def _describe(self, record: Record) -> None:
        record.live = self._host.cuda.memory.taken
        for (loader, *_), model in self._models.items():
            if loader == "lora":
                continue
            for patcher in model.patchers:
                module = patcher.model
                name = type(module).__name__
                record.patchers[name] = type(patcher).__name__
                pages = patcher.loaded_size() - module.model_loaded_weight_memory
                record.on_card[name] = pages + sum(map(_bytes_on_card, module.parameters()))


def _bytes_on_card(tensor: torch.Tensor) -> int:
    stored = getattr(tensor, "_qdata", tensor)
    return stored.numel() * stored.itemsize if stored.device.type == "cuda" else 0


def _tensors(result: Any) -> list[str]:
    """Describe the tensors that a node puts on wires."""
    values = getattr(result, "args", None) or ()
    tensors = [getattr(value, "values", value) for value in values]
    return [
        f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} {x.device}"
        for x in tensors
        if isinstance(x, torch.Tensor)
    ]
