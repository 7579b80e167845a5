"""Every stage of three complete tiny tokenizers against the reference's own classes.

1e-5 of the tensor's largest magnitude: two float32 evaluations of these nets with other kernels differ
by about 3e-6, while a wrong norm epsilon or a tanh GELU moves a stage by 1e-4 and more.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import seed_core

TOLERANCE = 1e-5
GOLDENS = ["golden_v2_tiny", "golden_v2_revq_tiny", "golden_v1_tiny"]


def config_of(golden: dict) -> dict:
    """The golden's own config in the words of a tokenizer folder's config.json."""
    vit, bert = golden["vit"], golden["bert"]
    return {
        "family": "seed-2",
        "version": 2,
        "image_size": golden["img_size"],
        "patch_size": vit["patch_size"],
        "vit_width": vit["embed_dim"],
        "vit_depth": vit["depth"],
        "vit_heads": vit["num_heads"],
        "vit_mlp_ratio": vit["mlp_ratio"],
        "vit_mlp_hidden": golden["vit_mlp_hidden"],
        "vit_norm_eps": 1e-6,
        "ln_vision_eps": 1e-5,
        "num_query_tokens": golden["num_query_token"],
        "qformer_hidden_size": bert["hidden_size"],
        "qformer_num_layers": bert["num_hidden_layers"],
        "qformer_num_heads": bert["num_attention_heads"],
        "qformer_intermediate_size": bert["intermediate_size"],
        "qformer_layer_norm_eps": bert["layer_norm_eps"],
        "cross_attention_freq": 2,
        "causal": True,
        "n_embed": golden["n_embed"],
        "codebook_embed_dim": golden["codebook_embed_dim"],
        "blocks_image_depth": golden["decode_depth"],
        "blocks_image_heads": golden["blocks_num_heads"],
        "blocks_image_mlp_ratio": 4.0,
        "blocks_norm_eps": 1e-6,
        "image_down": [256, 128, 32],
        "use_qformer_image": golden["use_qformer_image"],
        "image_features_dim": golden["image_features_dim"],
        "interpolation": "bilinear",
        "keep_ratio": False,
        "vision_tower_included": True,
    }


@pytest.fixture(scope="module", params=GOLDENS)
def case(request, tmp_path_factory, golden_folder, read_golden, seed_1_folder):
    """A golden and our tokenizer, loaded from a folder through the ordinary loader."""
    golden = read_golden(request.param)
    if request.param == "golden_v1_tiny":
        tokenizer = seed_core.load_tokenizer(seed_1_folder)
        return SimpleNamespace(arrays=golden.arrays, facts=golden.facts, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(golden_folder / f"{request.param}.safetensors", folder / "model.safetensors")
    config = json.dumps(config_of(golden.facts["config"]))
    (folder / "config.json").write_text(config, encoding="utf-8")
    return SimpleNamespace(
        arrays=golden.arrays, facts=golden.facts, tokenizer=seed_core.load_tokenizer(folder)
    )


def tokens_of_map(map_: torch.Tensor) -> torch.Tensor:
    """A feature map [B, D, h, w] as tokens [B, h * w, D], row by row."""
    return map_.flatten(2).transpose(1, 2)


def stages_of(tokenizer) -> dict:
    """Golden name of a stage -> our module whose output it is."""
    model = tokenizer.module
    # SEED-1 has one call for both ways, so all its stages are recorded as those of encoding.
    way, side = ("enc", "text") if tokenizer.config.embeds_text else ("dec", "image")
    stages = {
        "enc__visual_encoder.patch_embed": model.encoder.visual_encoder.patch_embed,
        "enc__visual_encoder.blocks.0": model.encoder.visual_encoder.blocks[0],
        "enc__visual_encoder": model.encoder.visual_encoder,
        "enc__ln_vision": model.encoder.image_norm,
        "enc__Qformer.bert.embeddings": model.encoder.qformer.norm,
        "enc__Qformer.bert.encoder.layer.0": model.encoder.qformer.layers[0],
        "enc__Qformer.bert": model.encoder.qformer,
        "enc__encode_task_layer": model.encoder.encode_head,
        f"{way}__decode_task_layer": model.embedder.decode_head,
        f"{way}__blocks_{side}.0": model.embedder.decode_blocks[0],
        f"{way}__blocks_{side}.-1": model.embedder.decode_blocks[-1],
    }
    if model.embedder.reverse_qformer is not None:
        stages[f"{way}__Reverse_Qformer.bert"] = model.embedder.reverse_qformer
    else:
        stages[f"{way}__image_down"] = model.embedder.image_down
    return stages


@pytest.fixture(scope="module")
def seen(case):
    """Outputs of every stage in one encode and embed of the golden's pixels."""
    outputs, hooks = {}, []
    for name, module in stages_of(case.tokenizer).items():

        def keep(module, arguments, output, name=name):
            # Embeddings are computed row by row: a stage is what its calls made, one after another.
            outputs[name] = torch.cat((outputs[name], output)) if name in outputs else output

        hooks.append(module.register_forward_hook(keep))
    codes = case.tokenizer.encode(torch.from_numpy(case.arrays["pixels"]))
    embedding = case.tokenizer.embed(torch.from_numpy(case.arrays["codes"]))
    for hook in hooks:
        hook.remove()
    name = "enc__visual_encoder.patch_embed"
    outputs[name] = tokens_of_map(outputs[name])
    return SimpleNamespace(stages=outputs, codes=codes, embedding=embedding)


def test_every_stage_of_the_golden_is_compared(case, seen):
    recorded = {name for name in case.arrays if name.startswith(("enc__", "dec__"))}
    assert set(seen.stages) == recorded
    assert len(recorded) == 12


def test_every_stage_equals_the_reference(case, seen, relative_error):
    errors = {name: relative_error(ours, case.arrays[name]) for name, ours in seen.stages.items()}
    assert {n: e for n, e in errors.items() if not e <= TOLERANCE} == {}


def test_codes_equal_the_reference(case, seen):
    assert seen.codes.tolist() == case.arrays["codes"].tolist()


def test_embedding_equals_the_reference(case, seen, relative_error):
    assert seen.embedding.dtype == torch.float32
    assert relative_error(seen.embedding, case.arrays["embedding"]) <= TOLERANCE


# SEED-1's reference embeds only what it has just encoded, so there is nothing else to compare.
@pytest.mark.parametrize("case", GOLDENS[:2], indirect=True, scope="module")
def test_embedding_of_given_codes_equals_the_reference(case, relative_error):
    embedding = case.tokenizer.embed(torch.from_numpy(case.arrays["fixed_codes"]))
    assert relative_error(embedding, case.arrays["fixed_codes_embedding"]) <= TOLERANCE


def test_pixels_equal_the_reference_bit_for_bit(case, photograph):
    names = [str(name) for name in case.arrays["names"]]
    pixels = case.tokenizer.preprocess([photograph(name) for name in names])
    assert pixels.numpy().tobytes() == case.arrays["pixels"].tobytes()


def test_pictures_one_by_one_give_the_codes_of_the_batch(case):
    pixels = torch.from_numpy(case.arrays["pixels"])
    one_by_one = torch.cat([case.tokenizer.encode(pixels[row : row + 1]) for row in range(3)])
    assert one_by_one.tolist() == case.arrays["codes"].tolist()
