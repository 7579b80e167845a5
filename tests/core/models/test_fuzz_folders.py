"""Folders of models whose files are missing, doubled, exchanged or cut.

Each is refused by a `SeedError` when it is opened, or loads as the model that it was made from:
what a check accepts, loads, and nothing becomes another model in silence. What failed once is kept
in `KEPT`.
"""

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save

from seed_core.errors import SeedError
from seed_core.models.convert import kind_of
from seed_core.models.diffusers_networks import build_network, without_weights
from seed_core.models.llm import OpenedLlm, open_llm
from seed_core.models.tokenizer import open_tokenizer
from seed_core.models.unclip import open_decoder

OPEN = {"llm": open_llm, "tokenizer": open_tokenizer, "decoder": open_decoder}

Folder = dict[str, bytes | None]
"""The files in a folder by their names, with ``/`` between folders; None stands for a folder."""


# --- tiny models, as they are published ---


def zipped(tensors):
    return pickled(tensors, True)


def pickled(tensors, is_zip=False):
    content = io.BytesIO()
    torch.save(tensors, content, _use_new_zipfile_serialization=is_zip)
    return content.getvalue()


def halved(tensors):
    """In half precision; whoever reads them has the same numbers."""
    return {key: tensor.half() for key, tensor in tensors.items()}


def in_shards(tensors, stem, suffix, write):
    keys = sorted(tensors)
    names = {key: f"{stem}-0000{1 + i % 3}-of-00003{suffix}" for i, key in enumerate(keys)}
    files = {
        name: write({key: tensors[key] for key in keys if names[key] == name})
        for name in set(names.values())
    }
    index = json.dumps({"metadata": {}, "weight_map": names}).encode()
    return files | {f"{stem}{suffix}.index.json": index}


def random_tensors(state, generator):
    """Numbers of the shapes of a state that half precision holds."""
    return {
        key: (0.2 * torch.randn(tensor.shape, generator=generator)).half().float()
        for key, tensor in state.items()
    }


def llm_folders(around: Folder, tensors) -> dict[str, Folder]:
    weights = {
        "single": {"model.safetensors": save(tensors)},
        "half": {"model.fp16.safetensors": save(halved(tensors))},
        "both": {
            "model.safetensors": save(tensors),
            "model.fp16.safetensors": save(halved(tensors)),
            "pytorch_model.bin": zipped(tensors),
        },
        "shards": in_shards(tensors, "model", ".safetensors", save),
        "bin": {"pytorch_model.bin": zipped(tensors)},
        "old bin": {"pytorch_model.bin": pickled(tensors)},
        "bin shards": in_shards(tensors, "pytorch_model", ".bin", zipped),
    }
    return {f"llm {name}": around | files for name, files in weights.items()}


def tokenizer_folders(around: Folder, tensors) -> dict[str, Folder]:
    place = "visual_encoder."
    tower = {key.removeprefix(place): x for key, x in tensors.items() if key.startswith(place)}
    own = {key: x for key, x in tensors.items() if not key.startswith(place)}
    weights = {
        "single": {"model.safetensors": save(tensors)},
        "published": {"seed_quantizer.pt": zipped(own), "eva_vit_g.pth": pickled(tower)},
        "both": {
            "seed_quantizer.safetensors": save(own),
            "eva_vit_g.safetensors": save(halved(tower)),
            "eva_vit_g.pth": zipped({"model": tower}),
        },
    }
    return {f"tokenizer {name}": around | files for name, files in weights.items()}


TEXT_ENCODER = {
    "vocab_size": 4,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WORDS = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}


def decoder_folders(around: Folder, generator) -> dict[str, Folder]:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    narrow = {"norm_num_groups": 4}
    changes = {
        "unet": narrow | {"block_out_channels": [8, 8, 8], "attention_head_dim": 4},
        "vae": narrow | {"block_out_channels": [8, 8, 8, 8]},
    }
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    networks, around = {}, dict(around)
    for part, change in changes.items():
        config = json.loads(around[f"{part}/config.json"]) | change
        around[f"{part}/config.json"] = json.dumps(config).encode()
        networks[part] = random_tensors(build_network(kinds[part], config).state_dict(), generator)
    stem = "diffusion_pytorch_model"
    numbers = {"mean": torch.zeros(1, 256), "std": torch.ones(1, 256)}
    around |= {f"image_normalizer/{stem}.safetensors": save(numbers)}

    encoder = without_weights(lambda: CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)), "")
    words = random_tensors(encoder.state_dict(), generator)
    index = json.loads(around["model_index.json"])
    index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    speaking = around | {
        "model_index.json": json.dumps(index).encode(),
        "text_encoder/config.json": json.dumps(TEXT_ENCODER).encode(),
        "tokenizer/vocab.json": json.dumps(WORDS).encode(),
        "tokenizer/merges.txt": b"#version: 0.2\n",
        "tokenizer/tokenizer_config.json": b'{"model_max_length": 12}',
    }

    def files(suffix, write):
        made = {f"{part}/{stem}{suffix}": write(x) for part, x in networks.items()}
        return made, f"text_encoder/{'model' if 'safe' in suffix else 'pytorch_model'}{suffix}"

    found = {}
    for name, suffix, write in (
        ("single", ".safetensors", save),
        ("half", ".fp16.safetensors", lambda x: save(halved(x))),
        ("half bin", ".fp16.bin", lambda x: zipped(halved(x))),
        ("bin", ".bin", pickled),
    ):
        parts, text = files(suffix, write)
        found[f"decoder {name}"] = around | parts
        found[f"decoder with words, {name}"] = speaking | parts | {text: write(words)}
    return found


# --- what happens to folders ---

# Names that other programs leave behind.
LEFT_BEHIND = [
    *("model.safetensors", "model.fp16.safetensors", "model.bf16.safetensors", "model.bin"),
    *("pytorch_model.bin", "pytorch_model.fp16.bin", "pytorch_model.safetensors", "model.pt"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"),
    *("model-00001-of-00002.safetensors", "pytorch_model-00001-of-00002.bin"),
    *("model.safetensors.part", "model.safetensors.incomplete", "model.safetensors.aria2"),
    *("optimizer.pt", "rng_state.pth", "training_args.bin", "consolidated.00.pth", "latest"),
    *("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json"),
    *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    *("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"),
    *("diffusion_pytorch_model.safetensors.index.json", "seed_quantizer.safetensors"),
    *("seed_tokenizer.pth", "causal_qformer.pth", "eva_vit_g.pt", "eva_vit_g.safetensors"),
]

# What lies in place of files, or is put around them.
STRANGE = [
    *(b"", b"{}", b"[]", b"null", b"\0" * 1000, b"<!DOCTYPE html><html>404 Not Found</html>"),
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13476839256\n",
    b'{"error": "Repository not found"}',
    b"GGUF\3\0\0\0" + b"\0" * 64,
]
AROUND = [
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.decode("latin-1").encode("utf-16"),
    lambda content: content + content,
    lambda content: content + b"\0" * 512,
    lambda content: content.replace(b"\n", b"\r\n"),
]

KINDS = {
    **{"copy": 6, "remove": 2, "move": 2, "swap": 1, "cut": 1, "folder": 1},
    **{"strange": 1, "around": 2},
}

Change = tuple[str, str, str, float]
"""What happens, to which file, with which other name, and how much of it is left."""


def make_changes(chance: random.Random, folder: Folder) -> list[Change]:
    """One to four changes; names may be of files that an earlier one has taken away."""
    inside = sorted({name.rpartition("/")[0] for name in folder})
    left = [f"{where}/{name}".lstrip("/") for where in inside for name in LEFT_BEHIND]
    changes = []
    for _ in range(chance.choice([1, 1, 1, 2, 2, 3, 4])):
        (kind,) = chance.choices(list(KINDS), KINDS.values())
        name = chance.choice(sorted(folder))
        other = chance.choice(left if chance.random() < 0.7 else sorted(folder))
        share = chance.choice([0.0, chance.randrange(1000) / 1000, 0.999])
        changes.append((kind, name, other, share))
    return changes


def apply(changes: list[Change], folder: Folder) -> Folder:
    made = dict(folder)
    for kind, name, other, share in changes:
        content = made.get(name)
        if content is None:
            continue
        if kind in ("remove", "move", "folder"):
            del made[name]
        if kind in ("copy", "move"):
            made[other] = content
        elif kind == "swap" and made.get(other) is not None:
            made[name], made[other] = made[other], content
        elif kind == "cut":
            made[name] = content[: int(share * len(content))]
        elif kind == "folder":
            made[name] = None
        elif kind == "strange":
            made[name] = STRANGE[int(share * len(STRANGE))]
        elif kind == "around":
            made[name] = AROUND[int(share * len(AROUND))](content)
    return made


def write(made: Folder, path, before: Folder) -> None:
    """Put a folder on the disk where another one is."""
    for name in before.keys() - made.keys():
        remove(path / name)
    for name, content in made.items():
        if name in before and before[name] is content and (path / name).exists():
            continue
        remove(path / name)
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            place.mkdir()
        else:
            place.write_bytes(content)


def remove(place) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


# --- the law ---


@dataclasses.dataclass
class Target:
    """A model in a folder, and what it is when nothing has happened to it."""

    folder: Folder
    path: object
    open: Callable
    state: dict[str, torch.Tensor]

    @classmethod
    def make(cls, name, folder, path):
        path.mkdir()
        write(folder, path, {})
        opens = OPEN[name.split()[0]]
        return cls(folder, path, opens, load(opens(path)))

    def is_refused(self, changes: list[Change]) -> bool:
        """Tell whether opening refuses the changed folder; an AssertionError if it is another."""
        made = apply(changes, self.folder)
        write(made, self.path, self.folder)
        try:
            try:
                kind_of(self.path)
                opened = self.open(self.path)
            except SeedError:
                return True
            state = load(opened)
        finally:
            write(self.folder, self.path, made)
        assert state.keys() == self.state.keys()
        wrong = [key for key, x in self.state.items() if not same(state[key], x)]
        assert not wrong, f"{len(wrong)} other tensors, such as {wrong[0]}"
        return False


def same(tensor, other):
    return tensor.shape == other.shape and torch.allclose(tensor, other, rtol=1e-5, atol=1e-6)


def load(opened):
    """All tensors of a network, a decoder's empty prompt and what a vocabulary makes of a text."""
    module = opened.load(torch.device("cpu"))
    state = module.state_dict() | dict(module.named_buffers())
    if isinstance(opened, OpenedLlm):
        ids = opened.vocab.encode(["Draw  a fox,\n", (7,) * 32, " and\u00e9 <img> it."])
        state |= {"words": torch.tensor([*ids, opened.vocab.size])}
    return state


@pytest.fixture
def targets(
    tmp_path, mini_folder, llm_folder, tiny_tensors, tiny_config, generator, one_text_vocabulary
):
    """Every layout of every kind of model, by a name that begins with the kind."""

    def files(folder, *names):
        return {name: (folder / name).read_bytes() for name in names}

    words = ("tokenizer.model", "added_tokens.json", "generation_config.json", "config.json")
    llm = random_tensors(load_file(llm_folder / "model.safetensors"), generator)
    tiny = {key: x.half().float() for key, x in tiny_tensors.items()}
    parts = [f"{part}/scheduler_config.json" for part in ("scheduler", "image_noising_scheduler")]
    parts += ["model_index.json", "unet/config.json", "vae/config.json"]
    folders = {
        **llm_folders(files(llm_folder, *words), llm),
        **tokenizer_folders(files(tiny_config, "config.json"), tiny),
        **decoder_folders(files(mini_folder / "decoder", *parts), generator),
    }
    return {name: Target.make(name, each, tmp_path / name) for name, each in folders.items()}


# Of a hundred thousand cases, how many are of a kind of model.
SHARES = {"llm": 88_000, "tokenizer": 8_000, "decoder": 4_000}
ALWAYS = 25
"""One of so many is tried in every run of the tests: 4,000 take about 20 seconds of a processor."""


def read_or_refuse(targets, kind, cases):
    names = [name for name in targets if name.startswith(kind)]
    chance, refused = random.Random(kind), 0
    for number in range(cases):
        name = names[number % len(names)]
        changes = make_changes(chance, targets[name].folder)
        try:
            refused += targets[name].is_refused(changes)
        except Exception as error:  # noqa: BLE001 - there must be none
            pytest.fail(f"{error!r}; put this into KEPT: {(name, changes)!r}")
    assert 0.2 * cases < refused < 0.9 * cases  # harm was done, and not to all


@pytest.mark.parametrize("kind", SHARES)
def test_a_changed_folder_is_the_same_model_or_refused(targets, kind):
    read_or_refuse(targets, kind, SHARES[kind] // ALWAYS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARES)
def test_folders_changed_in_a_hundred_thousand_ways_are_the_same_model_or_refused(targets, kind):
    read_or_refuse(targets, kind, SHARES[kind])


KEPT: list[tuple[str, list[Change]]] = [
    ("decoder with words, single", [("remove", "text_encoder/config.json", "", 0.0)]),
    ("decoder with words, bin", [("folder", "text_encoder/config.json", "", 0.0)]),
    (
        "decoder with words, half",
        [("copy", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", 0.958)],
    ),
]


def test_what_failed_once_is_the_same_model_or_refused(targets):
    for name, changes in KEPT:
        targets[name].is_refused(changes)
