"""Several processes learn the same as one: plain ones, and some that share the weights out (FSDP2)."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from seed_core.training.__main__ import main
from seed_core.training.stages import llm

ROOT = Path(__file__).parents[2]
STEPS = 20
RESULT = f"{llm.FOLDER}/model.safetensors"
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A tiny LLaMA on texts of very different lengths, so that processes have unlike many tokens."""
    folder = tmp_path_factory.mktemp("recipe")
    lines = [{"format": "text", "text": "a quick fox " * (1 + 5 * (i % 4))} for i in range(16)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    fields = {
        "data": {"files": [{"files": str(folder / "texts.jsonl")}]},
        "sizes": {
            **{"hidden_size": 32, "intermediate_size": 48},
            **{"num_hidden_layers": 2, "num_attention_heads": 2},
        },
        "schedule": {
            **{"steps": STEPS, "batch_size": 8, "accumulate": 2, "learning_rate": 0.01},
            **{"warm_up": 3, "log_every": 1, "save_every": 10},
        },
        "weights": "fp32",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields), "utf-8")
    return path


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def train_alone(recipe: Path, output: Path, stage: str) -> None:
    """Run a command in this process."""
    assert main([stage, str(recipe), "-o", str(output)]) == 0


def train_in_two(recipe: Path, output: Path, stage: str, **environment: str) -> None:
    """Run a command in two processes, with the variables that torchrun gives them."""
    command = [sys.executable, "-m", "seed_core.training", stage, str(recipe), "-o", str(output)]
    usual = {
        **{"OMP_NUM_THREADS": "1", "HF_HOME": str(recipe.parent)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | usual | rank | environment)
        for rank in ranks
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]


def train_by_torchrun(recipe: Path, output: Path, stage: str) -> None:
    """Run a command as docs/training.md says, in two processes of torchrun's."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--master_port", str(free_port())]
    subprocess.run(
        [sys.executable, *launcher, "-m", "seed_core.training", stage, recipe, "-o", output],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(recipe.parent)},
        check=True,
        timeout=300,
    )


def read_log(output: Path) -> list[dict[str, float]]:
    return json.loads((output / "log.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    train_alone(recipe, output, "llm")
    return output


@pytest.fixture(scope="module", params=["plain", "sharded"])
def shared(request, recipe, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A run of two processes, and how it was started."""
    output = tmp_path_factory.mktemp(request.param)
    environment = FSDP if request.param == "sharded" else {}
    train_in_two(recipe, output, "llm", **environment)
    return output, environment


def test_two_processes_learn_the_same_as_one(alone, shared):
    output, environment = shared
    expected, rows = read_log(alone), read_log(output)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4), row["step"]
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-3), row["step"]
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    whole, others = (load_file(run / RESULT) for run in (output, alone))
    assert whole.keys() == others.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-3)
    last = output / "checkpoints" / f"checkpoint-{STEPS}"
    assert (last / "pytorch_model_fsdp_0").is_dir() == bool(environment)


def test_interrupted_run_ends_like_another(recipe, shared):
    output, environment = shared
    rows, weights = read_log(output), (output / RESULT).read_bytes()
    shutil.rmtree(output / "checkpoints" / f"checkpoint-{STEPS}")
    shutil.rmtree(output / llm.FOLDER)
    (output / "log.json").unlink()
    train_in_two(recipe, output, "llm", **environment)
    assert read_log(output) == rows
    assert (output / RESULT).read_bytes() == weights


def test_two_processes_train_a_tower_as_one_does(small_world, tmp_path):
    world = small_world(("fox", "pizza", "frog", "robot"))
    fields = {
        "world": {"artwork": str(world.artwork), "description": str(world.description)},
        "vision": {
            **{"image_size": 128, "patch_size": 32, "width": 32},
            **{"depth": 1, "num_heads": 4, "mlp_width": 64},
        },
        "embedding_dim": 32,
        "schedule": {
            **{"steps": 6, "batch_size": 16, "learning_rate": 0.005},
            **{"log_every": 1, "save_every": 6},
        },
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(fields), "utf-8")
    train_alone(recipe, tmp_path / "1", "tower")
    train_by_torchrun(recipe, tmp_path / "2", "tower")
    logs = [read_log(tmp_path / name) for name in "12"]
    for row, other in zip(*logs, strict=True):
        for name in ("loss", "object", "background", "size", "position", "picture"):
            assert row[name] == pytest.approx(other[name], abs=1e-4), name
