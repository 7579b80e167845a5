"""Files and texts with random damage: each is read, or refused by a `SeedError`; nothing else happens.

Every target takes bytes. What it once failed on lies in tests/data/fuzz, in files that begin with its
name, and is tried again as an ordinary test.
"""

import copy
import hashlib
import io
import json
import random
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from seed_core.codes.text import codes_from_json, codes_from_text, codes_to_json
from seed_core.errors import SeedError
from seed_core.files import side_files, weights
from seed_core.files.folder import ModelFolder, header, read_header
from seed_core.llm.cache import KVCache
from seed_core.llm.chat import SeedChat
from seed_core.llm.config import LlamaConfig
from seed_core.llm.layout import parts_in_file
from seed_core.llm.llama import Llama
from seed_core.llm.prompt import LLAMA_2, VICUNA, pieces_to_string, split_marks
from seed_core.models import ip_adapter, lora
from seed_core.models import llm as llm_folder
from seed_core.models import unclip as unclip_folder
from seed_core.tokenizer.config import TokenizerConfig
from seed_core.tokenizer.network import TokenizerModel

CORPUS = Path(__file__).parents[2] / "data" / "fuzz"
SECONDS = 20  # of one case, on a machine that does other things too


class HangError(BaseException):
    """Not an Exception: nothing under test may catch it."""


@contextmanager
def alarm() -> Iterator[None]:
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def ring(number, frame):
        raise HangError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_refused(run, content) -> bool:
    """Tell whether a case was refused; any end but that and success goes on to the caller."""
    try:
        with alarm():
            run(content)
    except SeedError:
        return True
    return False


# --- damage ---

WRONG = [
    *(0, 1, -1, 7, 2**31, 2**63, 2**64, 10**9, 10**30, -(10**30), 0.5, 1e308, 1e-320),
    *(float("nan"), float("inf"), True, False, None, "", "32", "nan", "\ud83d", "\0", "../x"),
    *("/etc/passwd", "x" * 5000, [], {}, [[]], [None], [10**9], {"a": []}, [1] * 300),
    json.loads("[" * 60 + "]" * 60),
]


def places(value, found=None):
    """Every table and list in a value of JSON that holds something."""
    found = [] if found is None else found
    if isinstance(value, dict | list) and value:
        found.append(value)
        for inside in value.values() if isinstance(value, dict) else value:
            places(inside, found)
    return found


def damage_json(chance: random.Random, text: bytes) -> bytes:
    """Replace, remove, rename or repeat values; or damage the bytes."""
    if chance.random() < 0.2:
        return damage_bytes(chance, text)
    value = json.loads(text)
    for _ in range(chance.randint(1, 3)):
        if not (all_places := places(value)):
            break
        place = chance.choice(all_places)
        key = (
            chance.choice(list(place)) if isinstance(place, dict) else chance.randrange(len(place))
        )
        kind = chance.random()
        if kind < 0.7:
            place[key] = copy.deepcopy(chance.choice([*WRONG, json.dumps(place[key])]))
        elif kind < 0.85:
            del place[key]
        elif isinstance(place, dict):
            place[chance.choice(["", "x", "__metadata__", str(key) + "\0", "\udc00"])] = place[key]
    made = json.dumps(value).encode()
    return damage_bytes(chance, made) if chance.random() < 0.1 else made


def damage_bytes(chance: random.Random, content: bytes) -> bytes:
    made = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5, 20])):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            made[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del made[at : at + chance.choice([1, 2, 8, 100])]
        elif kind == 2:
            made[at:at] = made[at : at + chance.choice([1, 8, 64])]
        elif kind == 3:
            made[at : at + 8] = chance.choice([b"\xff" * 8, b"\0" * 8, b"9" * 8, b'{"a":1},', b"["])
        else:
            made = made[: max(at, 1)] if chance.random() < 0.3 else made
    return bytes(made)


SCRAPS = [
    *(
        "<image>",
        "<img>",
        "</img>",
        "<img_00012>",
        "<img_99999>",
        "<img_00012",
        "\0",
        "\ud83d",
        " ",
    ),
    *(
        "\u2028",
        "\ufeff",
        "\u0663",
        "1",
        "-7",
        "99999999999999999999",
        ",",
        "\n",
        "\t",
        "</s>",
        "<s>",
    ),
    *("[INST]", "USER: ", "\U0001f98a", "e\u0301", "\u2581", "{", "[", '"codes"', "null", "1e9"),
    *("0 " * 32, "[" * 300, "x" * 3000, "<img>" * 50, " " * 200, "NaN", "true", "0x1f", "0.5"),
]


def damage_text(chance: random.Random, text: str) -> bytes:
    for _ in range(chance.randint(1, 6)):
        at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        kind = chance.random()
        if kind < 0.6:
            text = text[:at] + chance.choice(SCRAPS) + text[at:]
        elif kind < 0.8:
            text = text[:at] + text[min(end, at + 40) :]
        else:
            text = text[:at] + chr(chance.choice([chance.randrange(0x110000), 0x20])) + text[at:]
    return text.encode("utf-8", "surrogatepass")


# --- targets ---


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        cases: how many damaged inputs `pytest -m slow` tries; cheap targets get most.
        make: a damaged input.
        run: reads it.
    """

    cases: int
    make: Callable[[random.Random], bytes]
    run: Callable[[bytes], object]


TENSORS = {"a.weight": torch.ones(3, 2), "a.bias": torch.ones(3).half(), "b": torch.zeros(1)}


def with_header(text: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def split_header(content: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], content[end:]


def safetensors_target(folder):
    text, data = split_header(save(TENSORS, metadata={"format": "pt"}))
    file = folder / "a.safetensors"

    def make(chance):
        if chance.random() < 0.1:
            return damage_bytes(chance, with_header(text, data))
        return with_header(damage_json(chance, text), data)

    def run(content):
        file.write_bytes(content)
        read_header(file)
        stand_ins = dict(weights.read_stand_ins(file))
        tensors = dict(weights.read_tensors(file))
        assert stand_ins.keys() == tensors.keys()
        assert all(stand_ins[key].shape == tensor.shape for key, tensor in tensors.items())

    return Target(14_000, make, run)


def pickled_target(folder):
    file, forms = folder / "a.pt", []
    for is_zip in (True, False):
        content = io.BytesIO()
        torch.save({"model": TENSORS}, content, _use_new_zipfile_serialization=is_zip)
        forms.append(content.getvalue())

    def run(content):
        file.write_bytes(content)
        for _, tensor in weights.read_tensors(file):
            assert tensor.nbytes <= len(content)

    return Target(3_000, lambda chance: damage_bytes(chance, chance.choice(forms)), run)


def index_target(folder):
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file({name: torch.zeros(1)}, folder / name)
    table = {"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    text = json.dumps(table).encode()

    def run(content):
        (folder / "model.safetensors.index.json").write_bytes(content)
        for file in weights.weight_files(folder, ("model",)):
            assert file.parent == folder

    return Target(4_000, lambda chance: damage_json(chance, text), run)


KEYS = ["image_down.0.weight", "Reverse_Qformer.bert.encoder.layer.3.x", "blocks_text.0.norm1.bias"]


def tokenizer_config_target(text, cases, is_built):
    def run(content):
        config = TokenizerConfig.from_dict(side_files.parse_json(content, "config.json"))
        for key in KEYS:
            if key != KEYS[2] or config.embeds_text:
                config.with_head_of([key, *KEYS[2:]] if config.embeds_text else [key])
        if is_built:
            head = [KEYS[0], *KEYS[2:]] if config.embeds_text else KEYS[:1]
            TokenizerModel(config.with_head_of(head), device="meta")
        assert TokenizerConfig.from_dict(config.to_dict()) == config

    return Target(cases, lambda chance: damage_json(chance, text), run)


def llama_config_target(text, cases, is_built):
    def run(content):
        config = LlamaConfig.from_dict(side_files.parse_json(content, "config.json"))
        assert KVCache.bytes_needed(config, 1, 100, torch.float16) > 0
        if is_built:
            Llama(config, device="meta")

    return Target(cases, lambda chance: damage_json(chance, text), run)


def network_target(folder, text, part, cases):
    import diffusers

    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]

    def run(content):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").write_bytes(content)
        config = unclip_folder.network_config(ModelFolder(folder), part)
        unclip_folder.build_network(kind, config)

    return Target(cases, lambda chance: damage_json(chance, text), run)


def scheduler_target(folder, texts):
    def run(content):
        for part in unclip_folder.SCHEDULERS:
            (folder / part).mkdir(exist_ok=True)
            (folder / part / "scheduler_config.json").write_bytes(content)
        unclip_folder.read_schedulers(ModelFolder(folder))

    return Target(4_000, lambda chance: damage_json(chance, chance.choice(texts)), run)


def small_added_tokens() -> bytes:
    """Few codes, so that damage often hits what matters."""
    added = {f"<img_{i:05d}>": 1024 + i for i in range(8)}
    return json.dumps({**added, "<img>": 1032, "</img>": 1033}).encode()


def added_tokens_target(folder):
    text = small_added_tokens()

    def run(content):
        (folder / "added_tokens.json").write_bytes(content)
        made = llm_folder.read_vocabulary(ModelFolder(folder))
        assert made.decode(made.encode(["a ", (0,) * 32])) == ("a", (0,) * 32)

    return Target(5_000, lambda chance: damage_json(chance, text), run)


def converted_target(folder, mini):
    names = ("config.json", "generation_config.json", "tokenizer.model")
    files = {name: (mini / "llm" / name).read_bytes() for name in names}
    files["added_tokens.json"] = small_added_tokens()
    (text,) = header("llm", files, {"precision": "fp16"}).values()
    record = json.loads(text)
    config = {**json.loads(record["files"]["config.json"]), "vocab_size": 1034}
    record["files"]["config.json"] = json.dumps(config)
    words = record["files"].pop("tokenizer.model")  # its 20 kB are damaged elsewhere, if at all
    file = folder / "converted.safetensors"

    def make(chance):
        made = damage_json(chance, json.dumps(record).encode())
        if chance.random() < 0.5:  # deeper: inside one of the files
            inner = json.loads(json.dumps(record))
            name = chance.choice(list(inner["files"]))
            inside = damage_json(chance, inner["files"][name].encode())
            inner["files"][name] = inside.decode("utf-8", "replace")
            made = json.dumps(inner).encode()
        return made

    def run(content):
        metadata = content.decode("utf-8", "replace")
        try:
            full = json.loads(metadata)
            full["files"].setdefault("tokenizer.model", words)
            metadata = json.dumps(full)
        except Exception:  # noqa: BLE001 - damage of any kind goes as it is
            full = None
        text = json.dumps({"__metadata__": {"seed_llama": metadata}}).encode()
        file.write_bytes(with_header(text, b""))
        made = llm_folder.find_llm_folder(file)
        assert made.kind == "llm"
        llm_folder.read_description(made)

    return Target(8_000, make, run)


def codes_text_target(sample_codes):
    from seed_core import SeedCodes

    codes = SeedCodes(sample_codes, "seed-mini", 512)
    rows = codes.values.tolist()
    forms = [codes.to_text(), "\n".join(" ".join(map(str, row)) for row in rows)]
    forms += [codes_to_json(codes), json.dumps(rows), json.dumps(rows[0])]

    def make(chance):
        form = chance.choice(forms)
        if form[0] in "[{" and chance.random() < 0.5:
            return damage_json(chance, form.encode()).decode("utf-8", "replace").encode()
        return damage_text(chance, form)

    def run(content):
        text = content.decode("utf-8", "surrogatepass")
        results = []
        for read in (lambda: codes_from_text(text, "seed-mini"), lambda: codes_from_json(text)):
            try:
                results.append(read())
            except SeedError as error:
                last = error
        if not results:
            raise last
        for result in results:
            assert not len(result) or int(result.values.max()) < 512

    return Target(40_000, make, run)


def prompt_target(words, sample_codes):
    """Prompts, alone and as turns of a conversation, to token ids and back."""
    texts = ["Draw <image> as night, like <image>.", "What is this?", "<image>", "USER: a\nB </s>"]

    def run(content):
        text = content.decode("utf-8", "surrogatepass")
        codes = sample_codes[: len(content) % 4]
        parts = split_marks(text, codes)
        chat = SeedChat("seed-mini", 512).ask(parts).answer(parts).ask(parts)
        assert len(chat.codes) == 3 * len(codes)
        chat.to_text()
        for template in (VICUNA, LLAMA_2):
            pieces = template.render(chat, system=text[:100])
            pieces_to_string(pieces)
            token_ids = words.encode(pieces, before_image=len(text) % 2 == 0)
            assert max(token_ids) < words.size
            pictures = [part for part in words.decode(token_ids) if not isinstance(part, str)]
            assert pictures == [tuple(row) for row in chat.codes.tolist()]

    return Target(22_000, lambda chance: damage_text(chance, chance.choice(texts)), run)


ADAPTED = {
    **{"model_type": "llama", "vocab_size": 40, "hidden_size": 8, "intermediate_size": 12},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
}
SETTINGS = {
    **{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False},
    **{"rank_pattern": {"layers.[0-9].self_attn.q_proj": 2}, "alpha_pattern": {"(k|v)_proj": 3}},
    **{"target_modules": "all-linear", "modules_to_save": ["norm"], "init_lora_weights": True},
    **{"trainable_token_indices": {"embed_tokens": [3, 5]}, "layers_to_transform": None},
    **{"exclude_modules": ["lm_head"], "lora_bias": False, "bias": "none", "revision": None},
    **{"layers_pattern": ["layers"], "ensure_weight_tying": False, "target_parameters": None},
}
STEPS = [
    *("module", "_orig_mod", "base_model", "model", "layers", "0", "1", "default", "lora_A"),
    *("lora_B", "lora_up", "lora", "alpha", "weight", "bias", "modules_to_save", "token_adapter"),
    *("trainable_tokens_delta", "base_layer", "original_module", "", "embed_tokens", "lm_head"),
    *("lora_embedding_A", "lora_embedding_B", "norm", "q_proj", "inv_freq", "x" * 300),
]
DTYPES = [
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64),
]


def damage_tensors(chance: random.Random, tensors: dict) -> dict:
    """Rename, drop, repeat, reshape, convert or spoil some."""
    made = dict(tensors)
    for _ in range(chance.choice([1, 1, 2, 5])):
        key = chance.choice(list(made))
        steps, kind = key.split("."), chance.randrange(7)
        at = chance.randrange(len(steps) + 1)
        if kind == 0:
            del made[key]
        elif kind == 1:
            steps[at : at + chance.randrange(2)] = [chance.choice(STEPS)]
            made[".".join(steps)] = made.pop(key) if chance.random() < 0.7 else made[key].clone()
        elif kind == 2:
            old, new = chance.choice(STEPS), chance.choice(STEPS)
            made = {
                k.replace(f".{old}.", f".{new}.") if old else f"{new}.{k}": x
                for k, x in made.items()
            }
        elif kind == 3:
            made[key] = torch.zeros([chance.choice([0, 1, 2, 8, 40]) for _ in range(at % 4)])
        elif kind == 4:
            numbers = tensors.get(key, torch.ones(made[key].shape))
            made[key] = numbers.to(chance.choice(DTYPES))
        elif kind == 5:
            value = chance.choice([float("nan"), float("inf"), 1e38, -1e30, 1e-45])
            made[key] = torch.full(made[key].shape, value)
        else:
            made[key] = made[key].mT.contiguous() if made[key].dim() > 1 else torch.zeros(())
        made = made or dict(tensors)
    return made


def damaged_file(chance: random.Random, tensors: dict) -> bytes:
    """A file of weights with damaged tensors, a damaged header, or cut short."""
    kind = chance.random()
    if kind < 0.6:
        return save(damage_tensors(chance, tensors))
    if kind < 0.7:
        content = io.BytesIO()
        is_zip = chance.random() < 0.5
        made = damage_tensors(chance, tensors)
        torch.save(made, content, _use_new_zipfile_serialization=is_zip)
        made = content.getvalue()
        return damage_bytes(chance, made) if chance.random() < 0.5 else made
    content = save(tensors)
    if kind < 0.8:
        return content[: chance.randrange(len(content))]
    text, data = split_header(content)
    return with_header(damage_json(chance, text), data)


def suffix_of(content: bytes) -> str:
    return ".bin" if content[:2] == b"PK" or content[:1] == b"\x80" else ".safetensors"


def check_adapter(adapter, parts):
    assert adapter.products or adapter.replacements
    for change in (*adapter.replacements, *adapter.products):
        rows = torch.ones(change.part.shape)
        change.apply_to(rows, 0.5)
        assert change.part in parts.values()
        assert rows.isfinite().all()
    for change in adapter.replacements:
        assert sum(len(tensor) for _, tensor in change.stretches()) == len(change.tensor)


def adapter_target(folder, peft_adapter):
    """A config and a weight file; what is read fits the model and is made of numbers."""
    sizes = LlamaConfig.from_dict(ADAPTED)
    tensors = peft_adapter.random_tensors(sizes, torch.Generator().manual_seed(1), rank=2)
    base = peft_adapter.PREFIX
    tensors[f"{base}model.embed_tokens.token_adapter.trainable_tokens_delta"] = torch.ones(2, 8)
    for name in (
        "model.norm",
        *(f"model.layers.0.{n}_layernorm" for n in ("input", "post_attention")),
    ):
        tensors[f"{base}{name}.weight"] = torch.ones(8)
    config, parts = json.dumps(SETTINGS).encode(), parts_in_file(sizes)

    def make(chance):
        made = damage_json(chance, config) if chance.random() < 0.6 else config
        content = damaged_file(chance, tensors) if chance.random() < 0.6 else save(tensors)
        return with_header(made, content)

    def run(content):
        settings, content = split_header(content)
        for file in folder.iterdir():
            file.unlink()
        (folder / "adapter_config.json").write_bytes(settings)
        (folder / f"adapter_model{suffix_of(content)}").write_bytes(content)
        check_adapter(lora.read_lora(folder, sizes), parts)

    return Target(100_000, make, run)


def ip_adapter_target(folder):
    """What is accepted makes keys and values of numbers, or a number in the file is refused."""
    shapes = {"proj.weight": (2 * 8, 1024), "proj.bias": (2 * 8,)}
    shapes |= {"norm.weight": (8,), "norm.bias": (8,)}
    tensors = {f"image_proj.{part}": torch.ones(shape) for part, shape in shapes.items()}
    for layer, width in enumerate((4, 6)):
        tensors |= {name: torch.ones(width, 8) for name in ip_adapter.layer_names(layer)}

    def run(content):
        file = folder / f"ip-adapter{suffix_of(content)}"
        file.write_bytes(content)
        opened = ip_adapter.open_ip_adapter(file)
        found = opened.keys_and_values(torch.ones(3, 1024))
        assert len(found) == len(opened.widths)
        for (keys, values), width in zip(found, opened.widths, strict=True):
            assert keys.shape == values.shape
            assert (len(keys), keys.shape[2]) == (3, width)
            assert (keys + values).isfinite().all()

    return Target(20_000, lambda chance: damaged_file(chance, tensors), run)


@pytest.fixture(scope="module")
def targets(tmp_path_factory, mini_folder, golden_folder, mini_llm, sample_codes, peft_adapter):
    def folder():
        return tmp_path_factory.mktemp("fuzz")

    def text(name):
        return (mini_folder / name).read_bytes()

    words = folder()
    (words / "tokenizer.model").write_bytes(text("llm/tokenizer.model"))
    schedulers = [
        text(f"decoder/{part}/scheduler_config.json") for part in unclip_folder.SCHEDULERS
    ]
    tokenizer, llama = text("tokenizer/config.json"), text("llm/config.json")
    made = {
        "safetensors": safetensors_target(folder()),
        "pickled": pickled_target(folder()),
        "index": index_target(folder()),
        "tokenizer_config": tokenizer_config_target(tokenizer, 12_000, is_built=False),
        "tokenizer_network": tokenizer_config_target(tokenizer, 300, is_built=True),
        "llama_config": llama_config_target(llama, 12_000, is_built=False),
        "llama_network": llama_config_target(llama, 300, is_built=True),
        "unet": network_target(folder(), text("decoder/unet/config.json"), "unet", 200),
        "vae": network_target(folder(), text("decoder/vae/config.json"), "vae", 200),
        "scheduler": scheduler_target(folder(), schedulers),
        "added_tokens": added_tokens_target(words),
        "converted": converted_target(folder(), mini_folder),
        "codes_text": codes_text_target(sample_codes),
        "prompt": prompt_target(mini_llm.vocab, sample_codes),
        "adapter": adapter_target(folder(), peft_adapter),
        "ip_adapter": ip_adapter_target(folder()),
    }
    assert list(made) == NAMES  # so that none is left out
    return made


NAMES = [
    *("safetensors", "pickled", "index", "tokenizer_config", "tokenizer_network", "llama_config"),
    *("llama_network", "unet", "vae", "scheduler", "added_tokens", "converted", "codes_text"),
    *("prompt", "adapter", "ip_adapter"),
]


pytestmark = pytest.mark.usefixtures("one_text_vocabulary")


@pytest.fixture(autouse=True)
def one_network_to_adapt(monkeypatch):
    """Where its weights lie is found by building it."""
    made = {}

    def remembered(config):
        if config not in made:
            made[config] = parts_in_file(config)
        return made[config]

    monkeypatch.setattr(lora, "parts_in_file", remembered)


ALWAYS = 20
"""One of so many cases is tried in every run of the tests, and of a target at least 100."""


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_read_or_refused(targets, name, tmp_path):
    target = targets[name]
    read_or_refuse(name, target, max(target.cases // ALWAYS, 100), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_damage_of_a_hundred_thousand_kinds_is_read_or_refused(targets, name, tmp_path):
    read_or_refuse(name, targets[name], targets[name].cases, tmp_path)


def read_or_refuse(name, target, cases, folder, corpus=CORPUS):
    """Try so many cases; a failed one is kept in the folder. Returns how many were refused."""
    chance, refused = random.Random(name), 0
    for _ in range(cases):
        content = target.make(chance)
        try:
            refused += is_refused(target.run, content)
        except (Exception, HangError) as error:  # noqa: BLE001 - there must be none
            digest = hashlib.sha256(content).hexdigest()[:12]
            (failed := folder / f"{name}-{digest}").write_bytes(content)
            pytest.fail(f"{error!r}; the case is {failed}: copy it to {corpus}")
    assert 0.01 * cases < refused < cases  # damage was done, and not to all
    return refused


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*-*")), ids=lambda file: file.name)
def test_what_failed_once_is_read_or_refused(targets, file):
    is_refused(targets[file.name.rpartition("-")[0]].run, file.read_bytes())
