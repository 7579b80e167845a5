"""Codes as text and as files of the host's folders."""

import importlib
import os
import shutil
from pathlib import Path

import pytest
import torch


@pytest.fixture
def folders(pack, tmp_path_factory):
    """The host's input and output folder, empty before and after."""
    paths = pack.folder_paths
    inputs, outputs = Path(paths.get_input_directory()), Path(paths.get_output_directory())
    for folder in (inputs, outputs):
        assert folder.is_relative_to(tmp_path_factory.getbasetemp())  # nobody's own files
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    yield inputs, outputs
    for folder in (inputs, outputs):
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.fixture
def save(pack, folders, fox_codes):
    """Save the fox; returns what the frontend is told and the file."""

    def save_fox(**given):
        node = pack.nodes_by_id["SEEDSaveCodes"]
        output = node.execute(codes=fox_codes, **{"filename_prefix": "codes/SEED"} | given)
        assert output.args == (fox_codes,)
        (shown,) = output.ui["codes"]
        return shown, folders[1] / shown["subfolder"] / shown["filename"]

    return save_fox


def equal(codes, others):
    mine, theirs = ((c.family, c.codebook_size, c.values.tolist()) for c in (codes, others))
    return mine == theirs


# --- text ---------------------------------------------------------------------------------------


def test_text_comes_back_as_equal_codes(run, fox_codes):
    (text,) = run("SEEDCodesToText", codes=fox_codes)
    assert text.startswith("<img><img_")
    assert text.count("<img_") == 32
    (again,) = run("SEEDTextToCodes", text=text)
    assert equal(again, fox_codes)


def test_codes_without_a_picture_are_empty_text(run, pack):
    assert run("SEEDCodesToText", codes=pack.seed_core.SeedCodes.empty("seed-2", 8192)) == ("",)


def test_the_family_is_the_one_chosen(run):
    (codes,) = run("SEEDTextToCodes", text=str([8191] * 32), family="seed-2")
    assert (codes.family, codes.codebook_size) == ("seed-2", 8192)


@pytest.mark.parametrize("text", ["", "no codes", "1 2 3", str([600] * 32)])
def test_what_are_no_codes_is_an_error_of_ours(run, pack, text):
    with pytest.raises(pack.seed_core.CodesError):
        run("SEEDTextToCodes", text=text)


# --- files --------------------------------------------------------------------------------------


def test_a_saved_file_can_be_loaded_from_the_input_folder(run, pack, folders, save, fox_codes):
    shown, file = save()
    assert shown == {"filename": "SEED_00001_.safetensors", "subfolder": "codes", "type": "output"}
    shutil.copy(file, folders[0])
    loader = pack.nodes_by_id["SEEDLoadCodes"]
    assert loader.GET_SCHEMA().inputs[0].options == [file.name, f"codes/{file.name} [output]"]
    assert loader.validate_inputs(file=file.name) is True
    assert equal(run("SEEDLoadCodes", file=file.name)[0], fox_codes)


def test_the_output_folder_can_be_named(run, save, fox_codes):
    save()
    (codes,) = run("SEEDLoadCodes", file="codes/SEED_00001_.safetensors [output]")
    assert equal(codes, fox_codes)


def test_saving_again_makes_another_file(save):
    names = [save(filename_prefix="fox")[1].name for _ in range(3)]
    assert names == [f"fox_{i:05}_.safetensors" for i in (1, 2, 3)]


@pytest.mark.parametrize("prefix", ["codes/", ""])
def test_a_prefix_without_a_name_writes_over_nothing_either(save, prefix):
    """There the host itself starts at 1 each time, for an empty one with a hidden file."""
    names = {save(filename_prefix=prefix)[1].name for _ in range(3)}
    assert len(names) == 3
    assert not any(name.startswith(".") for name in names)


def test_codes_without_a_picture_can_be_saved(run, pack, folders):
    codes = pack.seed_core.SeedCodes.empty("seed-2", 8192)
    run("SEEDSaveCodes", codes=codes)
    (again,) = run("SEEDLoadCodes", file="codes/SEED_00001_.safetensors [output]")
    assert equal(again, codes)


def test_saving_runs_by_itself(pack):
    assert pack.nodes_by_id["SEEDSaveCodes"].GET_SCHEMA().is_output_node


def test_only_files_with_the_right_ending_are_offered(pack, folders):
    for name in ("d.safetensors", "a.safetensors", "picture.png", "c.json", "b.txt", "e.md"):
        (folders[0] / name).touch()
    (folders[0] / "folder.safetensors").mkdir()
    options = pack.nodes_by_id["SEEDLoadCodes"].GET_SCHEMA().inputs[0].options
    assert options == ["a.safetensors", "b.txt", "c.json", "d.safetensors"]


def test_a_saved_file_keeps_how_well_codes_fit(run, pack, folders, mini):
    (image,) = run("SEEDSamplePicture", picture="fox_on_yellow")
    (codes,) = run("SEEDEncode", tokenizer=mini.tokenizer, image=image)
    run("SEEDSaveCodes", codes=codes)
    (again,) = run("SEEDLoadCodes", file="codes/SEED_00001_.safetensors [output]")
    assert codes.has_distances
    assert torch.equal(again.distances, codes.distances)


@pytest.mark.parametrize("name", ["a.safetensors", "a.json", "a.txt"])
def test_what_the_command_line_writes_can_be_loaded(run, pack, folders, capsys, name):
    program = importlib.import_module(f"{pack.seed_core.__name__}.cli.program")
    fox = pack.seed_core.models.names.sample_pictures()["fox_on_yellow"]
    assert program.main(["encode", str(fox), "-o", str(folders[0] / name)]) == 0
    (codes,) = run("SEEDLoadCodes", file=name)
    again = folders[1] / "again.txt"
    assert program.main(["encode", str(fox), "-o", str(again)]) == 0
    assert codes.to_text() == again.read_text("utf-8").split("\n")[1]
    assert codes.has_distances == (name != "a.txt")


def test_the_command_line_reads_what_was_saved(pack, folders, save, capsys):
    program = importlib.import_module(f"{pack.seed_core.__name__}.cli.program")
    options = ["--codes", str(save()[1]), "--temperature", "0"]
    assert program.main(["chat", "What is this?", *options]) == 0
    assert capsys.readouterr().out == "It is a fox.\n"


def test_a_text_from_an_editor_is_loaded_if_it_names_its_family(run, pack, folders, fox_codes):
    file = folders[0] / "typed.txt"
    file.write_text(fox_codes.to_text(), encoding="utf-8")
    with pytest.raises(pack.seed_core.CodesError, match=r"typed\.txt.*# seed-mini"):
        run("SEEDLoadCodes", file=file.name)
    file.write_text(f"# seed-mini\r\n{fox_codes.to_text()}", encoding="utf-8")
    assert equal(run("SEEDLoadCodes", file=file.name)[0], fox_codes)


@pytest.mark.parametrize("lost", [(), (0,), (0, 1)], ids=["empty", "no_input", "no_folder"])
def test_without_any_file_the_one_choice_says_so(run, pack, folders, lost):
    """An empty list would be called a missing connection."""
    for i in lost:
        folders[i].rmdir()
    loader = pack.nodes_by_id["SEEDLoadCodes"]
    (choice,) = loader.GET_SCHEMA().inputs[0].options
    assert choice == "no file of codes yet"
    assert loader.validate_inputs(file=choice).startswith("no file of codes is chosen. Drop one")
    assert loader.fingerprint_inputs(file=choice) == "missing"
    with pytest.raises(pack.seed_core.CodesError, match="no file of codes is chosen"):
        run("SEEDLoadCodes", file=choice)
    for i in lost:
        folders[i].mkdir()


def test_what_was_saved_is_offered_wherever_in_the_output_folder(run, pack, save, fox_codes):
    prefixes = ("b", "codes/a", "1/2/3/4/deep", "1/2/3/4/5/deeper", ".hidden/c")
    for prefix in prefixes:
        save(filename_prefix=prefix)
    options = pack.nodes_by_id["SEEDLoadCodes"].GET_SCHEMA().inputs[0].options
    names = ("1/2/3/4/deep", "b", "codes/a")
    assert options == [f"{name}_00001_.safetensors [output]" for name in names]
    loader = pack.nodes_by_id["SEEDLoadCodes"]
    for option in options:
        assert loader.validate_inputs(file=option) is True
        assert equal(run("SEEDLoadCodes", file=option)[0], fox_codes)


def test_what_other_nodes_saved_is_not_offered(pack, folders, save):
    """Models, words and settings lie there too."""
    safetensors = importlib.import_module("safetensors.torch")
    save(filename_prefix="mine")
    safetensors.save_file({"codes": torch.zeros(1)}, folders[1] / "no_header.safetensors")
    safetensors.save_file({"w": torch.zeros(1)}, folders[1] / "model.safetensors", {"a": "b"})
    for name in ("words.txt", "settings.json", "empty.safetensors"):
        (folders[1] / name).touch()
    (folders[1] / "folder.safetensors").mkdir()
    options = pack.nodes_by_id["SEEDLoadCodes"].GET_SCHEMA().inputs[0].options
    assert options == ["mine_00001_.safetensors [output]"]


def test_a_link_out_of_the_output_folder_is_not_followed(pack, folders, save, tmp_path):
    _, file = save(filename_prefix="mine")
    shutil.move(file, tmp_path / "secret.safetensors")
    try:
        (folders[1] / "link").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    loader = pack.nodes_by_id["SEEDLoadCodes"]
    assert loader.GET_SCHEMA().inputs[0].options == ["no file of codes yet"]
    assert "found no file" in loader.validate_inputs(file="link/secret.safetensors [output]")
    (folders[1] / "link").unlink()


@pytest.mark.parametrize("name", ["gone.safetensors", "../../secret.safetensors", "a\0b", "."])
def test_a_file_that_is_not_there_is_named_before_anything_runs(run, pack, folders, name):
    loader = pack.nodes_by_id["SEEDLoadCodes"]
    assert f"no file '{name}' in {folders[0]}" in loader.validate_inputs(file=name)
    assert loader.fingerprint_inputs(file=name) == "missing"
    with pytest.raises(pack.seed_core.CodesError, match="drop a file of codes on the node"):
        run("SEEDLoadCodes", file=name)


@pytest.mark.parametrize("name", ["gone [output]", "../input/a.txt [output]", "../x [output]"])
def test_the_output_folder_is_named_where_it_was_looked_in(pack, folders, name):
    (folders[0].parent / "x").touch()
    told = pack.nodes_by_id["SEEDLoadCodes"].validate_inputs(file=name)
    assert f"no file '{name}' in {folders[1]}" in told
    (folders[0].parent / "x").unlink()


def test_a_name_cannot_lead_out_of_the_folder_even_if_the_host_lets_it(pack, folders, monkeypatch):
    """ComfyUI did before 0.29."""
    secret = folders[0].parent / "secret.safetensors"
    secret.touch()
    paths = pack.folder_paths
    monkeypatch.setattr(paths, "get_annotated_filepath", lambda name: f"{folders[0]}/{name}")
    loader = pack.nodes_by_id["SEEDLoadCodes"]
    assert "no file" in loader.validate_inputs(file="../secret.safetensors")
    secret.unlink()


def test_a_name_that_arrives_by_wire_is_checked_when_it_is_loaded(pack):
    assert pack.nodes_by_id["SEEDLoadCodes"].validate_inputs(file=None) is True


def test_a_file_is_read_again_when_it_changes(pack, folders):
    loader, file = pack.nodes_by_id["SEEDLoadCodes"], folders[0] / "a.safetensors"
    file.write_bytes(b"1")
    os.utime(file, ns=(5, 5))
    first = loader.fingerprint_inputs(file=file.name)
    assert loader.fingerprint_inputs(file=file.name) == first
    os.utime(file, ns=(6, 6))
    assert loader.fingerprint_inputs(file=file.name) != first
    file.write_bytes(b"22")
    os.utime(file, ns=(5, 5))
    assert loader.fingerprint_inputs(file=file.name) != first


def test_a_damaged_file_is_one_error_with_its_name(run, pack, folders, save):
    content = save()[1].read_bytes()
    (folders[0] / "half.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(pack.seed_core.CodesError, match=r"half\.safetensors"):
        run("SEEDLoadCodes", file="half.safetensors")


def test_codes_travel_on_the_hosts_device(run, management):
    (codes,) = run("SEEDTextToCodes", text=str(list(range(32))))
    assert codes.values.device == torch.device(management.intermediate_device())


def test_a_text_without_codes_is_told_before_anything_runs(pack, fox_codes):
    node = pack.nodes_by_id["SEEDTextToCodes"]
    assert "the text is empty" in node.validate_inputs(text="", family="seed-mini")
    assert node.validate_inputs(text=fox_codes.to_text(), family="seed-mini") is True
    assert node.validate_inputs(family="seed-mini") is True  # the text comes by wire
    assert node.validate_inputs(text="", family=None) is True
