"""Where fetch puts a model: in every layout of ComfyUI, the folder where its loader looks."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from seed_core.command import PACK
from seed_core.errors import DownloadError
from seed_core.fetching.places import find_comfyui, find_folder
from seed_core.fetching.plan import File, check_lengths

PLACE = "seed_llm/seed-llama-8b-sft"


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """No settings of this machine's desktop version, and no folder that a shell stands in."""
    for name in ("APPDATA", "XDG_CONFIG_HOME", "HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("PWD", str(tmp_path))


@pytest.fixture
def comfyui(tmp_path):
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes" / "seed-llama").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "main.py").touch()
    return folder


def found(comfyui):
    return find_folder(PLACE, None, None, comfyui / "custom_nodes" / "seed-llama")


def test_models_go_to_the_comfyui_around_the_pack(comfyui):
    assert found(comfyui) == comfyui / "models" / "seed_llm" / "seed-llama-8b-sft"


def test_the_desktop_version_has_no_program_beside_its_models(comfyui):
    (comfyui / "main.py").unlink()
    assert found(comfyui) == comfyui / "models" / "seed_llm" / "seed-llama-8b-sft"


def test_outside_a_comfyui_it_asks_for_the_folder(comfyui, tmp_path):
    (comfyui / "models").rmdir()
    with pytest.raises(DownloadError, match="not in the custom_nodes of a ComfyUI.*--models"):
        found(comfyui)
    with pytest.raises(DownloadError, match="--models"):
        find_comfyui(tmp_path / "seed-llama")


def test_a_pack_behind_a_link_belongs_to_the_comfyui_with_the_link(comfyui, tmp_path, monkeypatch):
    pack = tmp_path / "projects" / "seed-llama"
    pack.mkdir(parents=True)
    link = comfyui / "custom_nodes" / "seed-llama"
    link.rmdir()
    link.symlink_to(pack)
    assert find_comfyui(link) == comfyui
    # Python names the folder it was started in without the link; the shell with it.
    monkeypatch.setenv("PWD", str(link))
    assert find_comfyui(pack) == comfyui
    monkeypatch.setenv("PWD", str(tmp_path))
    with pytest.raises(DownloadError, match="--models"):
        find_comfyui(pack)


def test_a_link_to_a_comfyui_and_to_its_models_is_followed(comfyui, tmp_path):
    moved = tmp_path / "disk" / "models"
    moved.parent.mkdir()
    (comfyui / "models").rename(moved)
    (comfyui / "models").symlink_to(moved)
    (tmp_path / "link").symlink_to(comfyui)
    assert found(tmp_path / "link").resolve() == moved / "seed_llm" / "seed-llama-8b-sft"


def test_a_link_to_a_disk_that_is_not_there_is_named(comfyui, tmp_path):
    (comfyui / "models").rmdir()
    (comfyui / "models").symlink_to(tmp_path / "disk")
    with pytest.raises(DownloadError, match="models is a link to .*disk, which is not there"):
        found(comfyui)


def test_given_folders_come_first_and_must_be_there(comfyui, tmp_path):
    (tmp_path / "llms").mkdir()
    (tmp_path / "file").touch()
    assert find_folder(PLACE, comfyui / "models", tmp_path / "llms").parent == tmp_path / "llms"
    assert find_folder(PLACE, tmp_path, None).parent == tmp_path / "seed_llm"
    with pytest.raises(DownloadError, match="gone does not exist"):
        find_folder(PLACE, tmp_path / "gone", None)
    with pytest.raises(DownloadError, match="--into.*file is a file, not a folder"):
        find_folder(PLACE, None, tmp_path / "file")


SETTINGS = {
    "one line": ("a:\n  base_path: {base}\n  seed_llm: llms/\n", "llms"),
    "several lines": ("a:\n  base_path: {base}\n  seed_llm: |\n    first\n    second\n", "first"),
    "without a base": ("a:\n  seed_llm: {base}/llms\n", "llms"),
    "the first of two": ("a:\n  seed_llm: {base}/x\nb:\n  seed_llm: {base}/y\n", "x"),
    "the default": (
        "a:\n  seed_llm: {base}/x\nb:\n  is_default: true\n  base_path: {base}\n  seed_llm: y\n",
        "y",
    ),
    "a mark of byte order": ("\ufeffa:\n  seed_llm: {base}/llms\n", "llms"),
    "an empty section": ("a:\nb:\n  seed_llm: {base}/llms\n", "llms"),
    "the home folder": ("a:\n  base_path: ~/models\n  seed_llm: llms\n", "home/models/llms"),
    "a variable": ("a:\n  base_path: $PWD/v\n  seed_llm: llms\n", "v/llms"),
    "beside the file": ("a:\n  base_path: ../side\n  seed_llm: llms\n", "side/llms"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_extra_model_paths_are_read_as_comfyui_reads_them(name, comfyui, tmp_path):
    text, wanted = SETTINGS[name]
    settings = comfyui / "extra_model_paths.yaml"
    settings.write_text(text.format(base=tmp_path.as_posix()), encoding="utf-8")
    assert found(comfyui).parent == tmp_path / wanted


@pytest.mark.parametrize("text", ["a:\n  loras: x\n", "", "# nothing\n", "- a\n- b\n", "a: 3\n"])
def test_settings_of_other_kinds_change_nothing(text, comfyui):
    (comfyui / "extra_model_paths.yaml").write_text(text, encoding="utf-8")
    assert found(comfyui).parent == comfyui / "models" / "seed_llm"


@pytest.mark.parametrize("content", [b"a: [", b"a:\n\t- b", b"\xff\xfe\x00a"])
def test_settings_that_cannot_be_read_are_named(content, comfyui):
    (comfyui / "extra_model_paths.yaml").write_bytes(content)
    with pytest.raises(DownloadError, match=r"extra_model_paths\.yaml cannot be read.*--models"):
        found(comfyui)


def test_the_desktop_versions_settings_count_for_its_own_packs(comfyui, tmp_path):
    kept = {"win32": "", "darwin": "Library/Application Support"}.get(sys.platform, "")
    file = tmp_path / "home" / kept / "ComfyUI" / "extra_models_config.yaml"
    file.parent.mkdir(parents=True)
    text = "desktop:\n  is_default: 'true'\n  base_path: {base}\n  seed_llm: elsewhere\n"
    file.write_text(text.format(base=comfyui.as_posix()), encoding="utf-8")
    assert found(comfyui).parent == comfyui / "elsewhere"
    file.write_text(text.format(base=(tmp_path / "other").as_posix()), encoding="utf-8")
    assert found(comfyui).parent == comfyui / "models" / "seed_llm"


def test_an_unfinished_file_has_no_longer_a_path_than_a_finished_one():
    folder = Path("/x" * 56)
    file = File("seed_quantizer.pt", 1, "a" * 64, "", None)
    assert len(str(file.unfinished(folder))) <= len(str(folder / file.name)) + 4
    assert file.unfinished(folder) != File(file.name, 1, "b" * 64, "", None).unfinished(folder)


def test_a_path_too_long_for_windows_is_said_before_anything_is_fetched():
    file = File("vae/config.json", 1, "a" * 64, "", None)
    check_lengths(Path("/" + "x" * 200), [file], 259)
    with pytest.raises(
        DownloadError, match=r"2\d\d characters, and this Windows allows 259.*extra_model"
    ):
        check_lengths(Path("/" + "x" * 250), [file], 259)


# --- as a new user would, with a Python that imports nothing from where it is started ---


def isolated(pack, folder, **environment):
    """Fetch from a server that is not there; the error names the folder."""
    command = [sys.executable, "-I", str(pack), "fetch", "seed-tokenizer-2", "--yes"]
    hidden = {"PYTHONPATH": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **hidden, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_an_isolated_python_fetches_into_a_desktop_version_through_a_link(comfyui, tmp_path):
    (comfyui / "main.py").unlink()
    pack = comfyui / "custom_nodes" / "seed-llama"
    pack.rmdir()
    pack.symlink_to(PACK)
    done = isolated(pack, tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"into {comfyui / 'models' / 'seed_tokenizer'}" in done.stderr
    assert "HF_ENDPOINT" in done.stderr


def test_the_folder_runs_training_as_well(monkeypatch):
    run = []
    monkeypatch.setattr("runpy.run_module", lambda name, **_: run.append((name, sys.argv[1:])))
    for words in (["fetch", "--help"], ["training", "--help"]):
        monkeypatch.setattr(sys, "argv", [str(PACK), *words])
        runpy.run_path(str(PACK), run_name="__main__")
    assert run == [("seed_core", ["fetch", "--help"]), ("seed_core.training", ["--help"])]
