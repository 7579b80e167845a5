"""The bundled models as the full-size ones are published: the same folders, names and formats."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

TOKENIZER = "AILab-CVC/seed-tokenizer-2"
LLM = "AILab-CVC/seed-llama-8b-sft"
DECODER = "sd2-community/stable-diffusion-2-1-unclip"
VISION_TOWER = "visual_encoder."
SHARDS = 2


def write(mini: Path, folder: Path) -> Path:
    """Fill FOLDER/owner/name, and give the file that is published at an address of its own."""
    write_llm(mini / "llm", folder / LLM)
    write_decoder(mini / "decoder", folder / DECODER)
    for name in ("tokenizer.model", "added_tokens.json"):
        (folder / TOKENIZER).mkdir(parents=True, exist_ok=True)
        shutil.copy(mini / "llm" / name, folder / TOKENIZER)
    return write_tokenizer(mini / "tokenizer", folder / TOKENIZER, folder)


def write_llm(mini: Path, folder: Path) -> None:
    """float32, in shards of about one size, as pickles."""
    folder.mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(mini / name, folder)
    tensors = {key: tensor.float() for key, tensor in load_file(mini / "model.safetensors").items()}
    keys, index = sorted(tensors), {}
    for number in range(SHARDS):
        name = f"pytorch_model-{number + 1:05}-of-{SHARDS:05}.bin"
        own = keys[number * len(keys) // SHARDS : (number + 1) * len(keys) // SHARDS]
        index |= dict.fromkeys(own, name)
        torch.save({key: tensors[key] for key in own}, folder / name)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")


def write_tokenizer(mini: Path, folder: Path, elsewhere: Path) -> Path:
    """The vision tower is a file of its own. The network of the published one needs no config.json."""
    shutil.copy(mini / "config.json", folder)
    tensors = load_file(mini / "model.safetensors")
    tower = {key: tensors.pop(key) for key in sorted(tensors) if key.startswith(VISION_TOWER)}
    torch.save(tensors, folder / "seed_quantizer.pt")
    path = elsewhere / "eva_vit_g.pth"
    torch.save({key.removeprefix(VISION_TOWER): each for key, each in tower.items()}, path)
    return path


def write_decoder(mini: Path, folder: Path) -> None:
    """With a text encoder, which this UNet does not listen to."""
    from transformers import CLIPTextConfig, CLIPTextModel

    shutil.copytree(mini, folder)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    config = CLIPTextConfig(
        vocab_size=4,
        hidden_size=unet["cross_attention_dim"],
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(3)
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    files = {
        "vocab.json": json.dumps(words),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps({"model_max_length": 77}),
    }
    (folder / "tokenizer").mkdir()
    for name, text in files.items():
        (folder / "tokenizer" / name).write_text(text, encoding="utf-8")
