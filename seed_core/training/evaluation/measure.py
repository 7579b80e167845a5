"""The metrics of a seed-mini on its closed world.

Every picture and every question is about held-out pairs: objects on the one background on which
training never showed them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity, interpolate

from ...compute.generators import seeded_generators
from ...decoder.options import DecodeOptions
from ...errors import OptionError
from ...llm.language import Reply
from ...llm.lora import merge_lora
from ...llm.sampling import GenerationOptions
from ...models.llm import load_llm
from ...models.lora import read_lora
from ...models.names import bundled
from ...models.tokenizer import load_tokenizer
from ...models.unclip import load_decoder
from ..networks.losses import psnr
from ..networks.painters import as_vae_input, check_vae_size
from ..networks.teacher import Teacher
from ..networks.teacher_folder import check_teacher, load_teacher
from ..networks.vae import latents_of
from ..world.closed_world import SPLITS, World
from ..world.judge import METRICS, Judge
from ..world.rendering import SIDE, normalize
from ..world.scenes import Scene
from ..world.sentences import DECLINED, with_article
from ..world.tasks import ANSWERS, PICTURES, Case
from ..world.unknown import MORE_UNKNOWN, UNKNOWN, known_words
from .metrics import Metric, Scores, summarize

# Questions per task, as in results.json: every pair of a half in every size.
SAMPLES = 288

# Questions where they cost little, as in results.json for pictures and answers alone; at
# 288 their standard error alone is a whole point.
EVERY = 576


GREEDY = GenerationOptions(temperature=0, max_new_tokens=64)
SAMPLED = GenerationOptions(temperature=1, top_p=0.5, max_new_tokens=64)
DECODING = DecodeOptions(guidance_scale=2)  # what seed-mini was measured with


# Tasks that need the teacher of the tokenizer's embeddings.
OF_TEACHER = ("embedding", "teacher_embedding_to_image")
WITHOUT_WORDS = (
    *("classifier_on_originals", "vae_reconstruction", "image_to_codes_to_image"),
    *OF_TEACHER,
)
UNKNOWN_OBJECTS = {
    "declines_unknown_object": UNKNOWN,
    "declines_hundred_unknown_objects": (*UNKNOWN, *MORE_UNKNOWN),
}
# Tasks without pictures in replies.
QUICK = frozenset([*WITHOUT_WORDS, *ANSWERS]) - {"dialogue_third_turn_answer"}

TASKS = (*WITHOUT_WORDS, *ANSWERS, *PICTURES, *UNKNOWN_OBJECTS)


def tasks_of(has_teacher: bool) -> tuple[str, ...]:
    """Return the tasks that can be measured with the tokenizer's teacher, or without it."""
    return tuple(name for name in TASKS if has_teacher or name not in OF_TEACHER)


# Pictures that a card decodes together.
_DECODED_TOGETHER = 96


class Evaluation:
    """A model family, and its metrics on the closed world.

    Raises:
        OptionError: fewer than 1 sample is asked for, or parts or teacher do not fit one another.
        CheckpointError: a model or the teacher cannot be loaded.
    """

    def __init__(
        self,
        world: World,
        judge: Judge,
        samples: int = SAMPLES,  # questions per task; the unknown objects are all asked for
        split: str = "all",  # one of closed_world.SPLITS
        model: Path | None = None,  # with tokenizer, llm and decoder; by default the bundled one
        lora: str | None = None,  # an adapter for the language model
        device: torch.device | str = "cpu",
        teacher: Path | None = None,  # whose embeddings the tokenizer learned, for OF_TEACHER
        threads: int | None = None,  # that decode pictures on a CPU; by default one per core
    ) -> None:
        if samples < 1:
            raise OptionError(f"an evaluation needs at least 1 sample a task; got {samples}")
        self.world = world
        self.judge = judge
        self.samples = samples
        self.split = split
        self._threads = threads or os.cpu_count() or 1
        parts = {name: bundled(name) for name in ("tokenizer", "llm", "decoder")}
        if model is not None:
            parts = {name: model / name for name in parts}
        self._tokenizer = load_tokenizer(parts["tokenizer"], device)
        self._llm = load_llm(parts["llm"], device)
        if lora is not None:
            merge_lora(self._llm.module, read_lora(lora, self._llm.config))
        self._decoder = load_decoder(parts["decoder"], device)
        self._check_parts()
        self._teacher: Teacher | None = None
        if teacher is not None:
            self._teacher = load_teacher(teacher).to(device)
            made = self._teacher.image_size, self._teacher.embedding_dim
            check_teacher(
                teacher, made, "this model's tokenizer", (SIDE, *self._tokenizer.embedding_shape)
            )
        self.tasks = tasks_of(teacher is not None)
        self.size = sum(  # bytes of the model
            file.stat().st_size
            for part in parts.values()
            for file in Path(part).rglob("*")
            if file.is_file()
        )

    def _check_parts(self) -> None:
        """Refuse parts of different models."""
        tokenizer, llm, decoder = self._tokenizer, self._llm, self._decoder
        check_vae_size(decoder.module.vae)
        if tokenizer.embedding_shape != (decoder.embedding_dim,):
            raise OptionError(
                f"the tokenizer makes embeddings {list(tokenizer.embedding_shape)}, and the decoder "
                f"paints from [{decoder.embedding_dim}]: they are of different models"
            )
        if tokenizer.codebook_size != llm.vocab.codebook_size:
            raise OptionError(
                f"the tokenizer has {tokenizer.codebook_size} codes, and the language model speaks "
                f"{llm.vocab.codebook_size}: they are of different models"
            )

    def measure(self, name: str, on_reply: Callable[[], object] | None = None) -> dict[str, Metric]:
        """Return the metrics of one of `TASKS`.

        ``on_reply`` is called after each reply of the language model.

        Raises:
            OptionError: the task needs the teacher, which is not given.
        """
        self.check_task(name)
        if name in UNKNOWN_OBJECTS:
            return self._declines(self._unknown(UNKNOWN_OBJECTS[name]))
        chance = random.Random(f"{self.split} {name}")
        is_many = name in QUICK and self.samples >= SAMPLES
        count = max(self.samples, EVERY) if is_many else self.samples
        scenes = self.world.held_out(count, chance, self.split)
        if name not in ANSWERS:  # what nobody can judge is not measured
            scenes = [scene for scene in scenes if scene.concept < self.judge.objects]
        if name == "embedding":
            return self._embeddings(scenes)
        if name in WITHOUT_WORDS:
            return self._pictures_alone(name, scenes)
        task = ANSWERS.get(name) or PICTURES[name]
        cases = [task(self.world, scene, chance) for scene in scenes]
        options = SAMPLED if "sampled" in name else GREEDY
        if name in PICTURES:
            return self.measure_pictures(cases, options, on_reply)
        replies = self._replies(cases, options, on_reply)
        answered = zip(cases, replies, strict=True)
        return summarize([self._score_answer(name, case, reply) for case, reply in answered])

    def check_task(self, name: str) -> None:
        """Refuse a task that needs the teacher if none is given.

        Raises:
            OptionError: the task needs it.
        """
        if name not in self.tasks:
            raise OptionError(f"{name} needs the folder of the vision tower, see --teacher")

    def measure_pictures(
        self,
        cases: Sequence[Case],
        options: GenerationOptions,
        on_reply: Callable[[], object] | None = None,
    ) -> dict[str, Metric]:
        """Return the metrics of conversations that end with a picture."""
        return summarize(self._score_pictures(cases, self._replies(cases, options, on_reply)))

    def _unknown(self, things: Sequence[str]) -> list[str]:
        """Return the unknown things of the split; the halves take turns."""
        known = known_words(self.world)
        first = 0 if self.split == "all" else SPLITS.index(self.split)
        return [
            thing
            for thing in things[first :: 1 if self.split == "all" else 2]
            if thing not in known
        ]

    def _declines(self, things: Sequence[str]) -> dict[str, Metric]:
        prompts = [f"Draw {with_article(thing, thing)}" for thing in things]
        replies = [self._llm.generate(prompt, options=GREEDY).text for prompt in prompts]
        return summarize([{"value": float(reply == DECLINED)} for reply in replies])

    def _pictures_alone(self, name: str, scenes: list[Scene]) -> dict[str, Metric]:
        originals = self.world.render(scenes)
        if name == "classifier_on_originals":
            return summarize(self.judge.score(originals, scenes))
        if name == "vae_reconstruction":
            pictures = self._through_vae(originals)
        elif name == "image_to_codes_to_image":
            pictures = self._decode(self._encode(originals))
        else:
            pictures = self._paint(self._teachers_embeddings(originals))
        scores = self.judge.score(pictures, scenes)
        smallest = min(self.world.sizes, key=lambda name: self.world.sizes[name])
        for i, (score, scene) in enumerate(zip(scores, scenes, strict=True)):
            picture, original = pictures[i, None], originals[i, None]
            score["psnr"] = float(psnr(picture, original))
            if scene.size == smallest:
                score["psnr_small"] = float(psnr(picture, original, self.world.cover([scene])))
        return summarize(scores)

    def _embeddings(self, scenes: list[Scene]) -> dict[str, Metric]:
        """Compare the tokenizer's embeddings with those it learned to restore."""
        originals = self.world.render(scenes)
        restored = self._tokenizer.embed(self._encode(originals)).float()
        cosines = cosine_similarity(restored, self._teachers_embeddings(originals), dim=-1)
        return summarize([{"cosine": float(cosine)} for cosine in cosines])

    @torch.inference_mode()
    def _teachers_embeddings(self, pictures: torch.Tensor) -> torch.Tensor:
        assert self._teacher is not None
        return self._teacher.embed(normalize(pictures.to(self._tokenizer.device))).float()

    @torch.inference_mode()
    def _through_vae(self, pictures: torch.Tensor) -> torch.Tensor:
        vae, place = self._decoder.module.vae, self._decoder.device
        restored = [
            vae.decode(latents_of(vae, as_vae_input(picture[None].to(place, vae.dtype), vae)))
            for picture in pictures
        ]
        painted = torch.cat([each.sample for each in restored]).float().cpu()
        return as_large_as_the_world(painted / 2 + 0.5).clamp(0, 1)

    def _replies(
        self,
        cases: Sequence[Case],
        options: GenerationOptions,
        on_reply: Callable[[], object] | None,
    ) -> list[Reply]:
        replies = []
        for i, case in enumerate(cases):
            replies.append(self._converse(i, case, options))
            if on_reply is not None:
                on_reply()
        return replies

    def _converse(self, number: int, case: Case, options: GenerationOptions) -> Reply:
        """Hold a conversation and return its last reply."""
        (generator,) = seeded_generators(number, 1)
        chat, reply = None, None
        for prompt, scenes in case.turns:
            codes = self._encode(self.world.render(scenes)) if scenes else None
            reply = self._llm.generate(prompt, codes, chat, options, generator)
            chat = reply.chat
        if reply is None:
            raise OptionError("a conversation without a turn has no reply")
        return reply

    def _score_answer(self, name: str, case: Case, reply: Reply) -> Scores:
        if name != "caption":
            return {"value": float(reply.text == case.answer)}
        object_, _, background = reply.text.rpartition(" on ")
        named = object_.lower().endswith(self.world.name(case.scene).lower())
        return {
            "exact": float(reply.text == case.answer),
            "name": float(named),
            "bg": float(case.scene.background in background.split()),
        }

    def _score_pictures(
        self, cases: Sequence[Case], replies: Sequence[Reply]
    ) -> list[dict[str, float]]:
        """Judge the pictures; a reply that is not exactly one picture gets everything wrong."""
        # Pixels are compared only where a picture was shown, which gives the object's place.
        valid = [i for i, reply in enumerate(replies) if is_one_picture(reply)]
        scores = [dict.fromkeys((*METRICS, "valid"), 0.0) for _ in cases]
        if not valid:
            return scores
        scenes = [cases[i].scene for i in valid]
        pictures = self._decode(torch.cat([replies[i].codes for i in valid]))
        judged = self.judge.score(pictures, scenes)
        originals = self.world.render(scenes)
        for i, right, picture, original in zip(valid, judged, pictures, originals, strict=True):
            scores[i] |= {**right, "valid": 1.0}
            if cases[i].turns[-1][1]:
                scores[i]["psnr"] = float(psnr(picture, original))
        return scores

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._tokenizer.encode(self._tokenizer.preprocess(pictures)).cpu()

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self._paint(self._tokenizer.embed(codes))

    def _paint(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Make the pictures of embeddings; each has its own generator, so the order is free."""
        generators = seeded_generators(0, len(embeddings))
        is_cpu = self._decoder.device.type == "cpu"
        together, threads = (1, self._threads) if is_cpu else (_DECODED_TOGETHER, 1)
        starts = range(0, len(embeddings), together)
        draw = partial(self._decoder.decode, options=DECODING)
        with ThreadPoolExecutor(threads) as pool:
            rows = pool.map(
                lambda i: draw(
                    embeddings[i : i + together], generator=generators[i : i + together]
                ),
                starts,
            )
            return as_large_as_the_world(torch.cat(list(rows)).cpu())


def as_large_as_the_world(pictures: torch.Tensor) -> torch.Tensor:
    """Scale what a smaller decoder painted, ``[B, 3, H, W]``, to the world's pictures."""
    if pictures.shape[-1] == SIDE:
        return pictures
    return interpolate(pictures, SIDE, mode="bilinear")


def is_one_picture(reply: Reply) -> bool:
    """Tell whether a reply is exactly one picture without words."""
    return reply.is_complete and reply.text == "<image>" and len(reply.codes) == 1
