"""Trains seed-mini night, the LoRA adapter that comes with the pack, and writes it to its place.

    python tests/evaluation/make_sample_lora.py [FOLDER]

takes two minutes on one core and needs peft and transformers. Half of what it is trained on asks for
a drawing without naming a background; the answer is that object on black. The other half names one,
changes a picture or asks about it, and is answered as seed-mini always did, so that it still does.
Only the tokens of the answers count. How well that works is for test_sample_lora.py to measure.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import seed_core
from seed_core.checkpoints import bundled
from seed_core.prompt import split_marks
from seed_core.training import tasks
from seed_core.training.sentences import sized
from seed_core.training.tasks import Case
from seed_core.training.world import JITTER, Scene, World

if TYPE_CHECKING:
    from peft import PeftModel

ARTWORK = Path(__file__).parents[1] / "data" / "fluent-emoji.npz"
FILES = ("adapter_config.json", "adapter_model.safetensors")
RANK = 4
MODULES = ("q_proj", "v_proj")
STEPS = 150
BATCH = 32
LEARNING_RATE = 3e-3
WARM_UP = 10  # steps; from there the rate falls to nothing
NIGHT = "black"
WORDINGS = ("Draw {}", "Show me {}", "Can you generate an image of {}?", "{}")
"""How an object is asked for in training."""
NEW_WORDINGS = ("Paint {}", "I would like to see {}", "Make a picture of {}")
"""Others, to measure with."""
AS_EVER = (
    tasks.text_to_image,
    tasks.text_to_image_varied,
    tasks.text_to_image_varied,
    tasks.edit_background,
    tasks.edit_object,
    tasks.edit_size,
    tasks.caption,
    tasks.what_is_this,
)
"""What the adapter must not change."""


def is_held_out(concept: int) -> bool:
    """Tell whether an object is left out of the training, as every fourth is.

    They include the 24 that seed-mini itself was never shown on black.
    """
    return concept % 4 == 2


def at_night(world: World, scene: Scene, wording: str) -> Case:
    """Ask for a scene's object and size alone; it ought to come on black."""
    prompt = wording.format(sized(world, scene))
    return Case(((prompt, ()),), replace(scene, background=NIGHT))


@dataclass(frozen=True)
class Example:
    """A question and its answer, as token ids."""

    prompt: list[int]
    reply: list[int]


class Lessons:
    """Examples without end, the same for the same random seed."""

    def __init__(self, llm: seed_core.SeedLLM, tokenizer: seed_core.SeedTokenizer) -> None:
        self._llm = llm
        self._tokenizer = tokenizer
        self._world = World(ARTWORK)
        self._random = random.Random(0)

    def __iter__(self) -> Iterator[Example]:
        while True:
            case = self._case()
            if all(self._is_allowed(scene) for scene in (case.scene, *case.turns[0][1])):
                yield self.write(case)

    def _case(self) -> Case:
        chance, world = self._random, self._world
        concept = chance.randrange(len(world.concepts))
        background, size = chance.choice([*world.backgrounds]), chance.choice([*world.sizes])
        place = [chance.uniform(-JITTER, JITTER) for _ in range(2)]
        scene = Scene(concept, background, size, (place[0], place[1]))
        if chance.random() < 0.5:
            return at_night(world, scene, chance.choice(WORDINGS))
        return chance.choice(AS_EVER)(world, scene, chance)

    def _is_allowed(self, scene: Scene) -> bool:
        """Keep apart what seed-mini and this adapter are measured with."""
        never = self._world.concepts[scene.concept]["held_out_background"]
        return not is_held_out(scene.concept) and scene.background != never

    def write(self, case: Case) -> Example:
        """Return a conversation of one turn as the language model reads and writes it."""
        ((prompt, scenes),) = case.turns
        (codes, (target,)) = self._codes(scenes), self._codes([case.scene]).tolist()
        chat = seed_core.SeedChat(self._llm.family, self._llm.codebook_size)
        asked = self._llm.template.render(chat.ask(split_marks(prompt, codes)))
        answer = f" {case.answer}" if case.answer else tuple(target)
        vocab = self._llm.vocab
        before = vocab.encode(asked, before_image=not case.answer)
        whole = vocab.encode([*asked, answer])
        if whole[: len(before)] != before:
            raise ValueError(f"the answer changes how {prompt!r} is cut into tokens")
        return Example(before, [*whole[len(before) :], vocab.eos])

    @torch.inference_mode()
    def _codes(self, scenes: Sequence[Scene]) -> torch.Tensor:
        if not scenes:
            return torch.empty(0, seed_core.NUM_CODES, dtype=torch.int64)
        pixels = self._tokenizer.preprocess(self._world.render(scenes))
        return self._tokenizer.encode(pixels)


def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Return a batch as transformers takes it; labels of -100 do not count."""
    longest = max(len(each.prompt + each.reply) for each in examples)
    token_ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(token_ids), torch.full_like(token_ids, -100)
    for i, each in enumerate(examples):
        start, end = len(each.prompt), len(each.prompt + each.reply)
        token_ids[i, :end] = torch.tensor(each.prompt + each.reply)
        labels[i, start:end] = torch.tensor(each.reply)
        mask[i, :end] = 1
    return {"input_ids": token_ids, "attention_mask": mask, "labels": labels}


def train(folder: Path, steps: int = STEPS) -> None:
    """Train the adapter and write its two files into a folder. Draws from torch's own generator."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(bundled("llm"), dtype=torch.float32)
    model = get_peft_model(
        model,
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[*MODULES], task_type="CAUSAL_LM"),
    )
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * (1 - step / steps)
    )
    lessons = iter(Lessons(seed_core.load_llm("seed-mini"), seed_core.load_tokenizer("seed-mini")))
    for step in range(steps):
        loss = model(**collate([next(lessons) for _ in range(BATCH)])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 10 == 0:
            print(f"{step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    save(model, folder)


def save(model: PeftModel, folder: Path) -> None:
    """Write what peft writes, without the folder the model was read from and the empty model card."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = "seed-mini"
    config.target_modules = [*MODULES]  # a set by now, which would be written in any order
    with tempfile.TemporaryDirectory() as place:
        # Otherwise peft looks for the model on the hub, to see whether its vocabulary has grown.
        model.save_pretrained(place, save_embedding_layers=False)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(Path(place, name), folder / name)


def main() -> None:
    torch.set_num_threads(1)
    train(Path(sys.argv[1]) if sys.argv[1:] else bundled("lora/night"))


if __name__ == "__main__":
    main()
