"""Nodes that look at codes or change them."""

import pytest
import torch


def show(pack, codes):
    return pack.nodes_by_id["SEEDPreviewCodes"].execute(codes=codes)


def test_codes_are_shown_and_passed_on(pack, fox_codes):
    output = show(pack, fox_codes)
    assert output.args == (fox_codes,)
    assert len(output.ui["images"]) == 1


def test_it_runs_without_a_save_node(pack):
    assert pack.nodes_by_id["SEEDPreviewCodes"].GET_SCHEMA().is_output_node


def test_codes_without_a_picture_show_nothing_but_say_so(pack):
    codes = pack.seed_core.SeedCodes.empty("seed-mini", 512)
    output = show(pack, codes)
    assert output.args == (codes,)
    assert output.ui["images"] == []
    assert "no picture" in output.ui["text"][0]


def shown(output):
    return len(output.ui["images"]), "".join(output.ui.get("text", ()))


def test_two_that_are_compared_are_one_picture(pack, filled):
    node = pack.nodes_by_id["SEEDPreviewCodes"]
    output = node.execute(codes=filled(1), compare_with=filled(2))
    assert output.args[0].values[0, 0] == 1
    assert shown(output) == (1, "")


def test_one_may_be_compared_with_all(pack, filled):
    node = pack.nodes_by_id["SEEDPreviewCodes"]
    assert shown(node.execute(codes=filled(1, 3), compare_with=filled(2))) == (3, "")


def test_a_batch_of_two_is_one_picture(pack, filled):
    assert shown(show(pack, filled(1, 2))) == (1, "")


def test_nothing_to_compare_with_is_told_and_the_codes_are_shown(pack, filled):
    """A reply that could go either way had no picture."""
    node = pack.nodes_by_id["SEEDPreviewCodes"]
    pictures, said = shown(node.execute(codes=filled(1), compare_with=filled(2, 0)))
    assert pictures == 1
    assert "compare_with holds no picture" in said


def test_of_very_many_the_first_are_shown_and_told(pack, filled):
    pictures, said = shown(show(pack, filled(1, 65)))
    assert pictures == 64
    assert said == "65 pictures; the first 64 are shown"


def test_codes_that_cannot_be_compared_are_one_clear_error(pack, filled):
    node = pack.nodes_by_id["SEEDPreviewCodes"]
    with pytest.raises(pack.seed_core.CodesError, match="2 pictures cannot be compared with 3"):
        node.execute(codes=filled(1, 2), compare_with=filled(2, 3))
    with pytest.raises(pack.seed_core.CodesError, match="seed-mini codes .* and seed-2 codes"):
        node.execute(codes=filled(1), compare_with=filled(2, 1, "seed-2", 8192))


@pytest.fixture
def filled(pack):
    """Pictures that consist of one code."""

    def make(value, count=1, family="seed-mini", size=512):
        return pack.seed_core.SeedCodes(torch.full((count, 32), value), family, size)

    return make


def test_mixing_by_default_takes_the_second_half_from_b(run, filled):
    (mixed,) = run("SEEDMixCodes", codes_a=filled(1), codes_b=filled(2, 2))
    assert mixed.values.tolist() == [[1] * 16 + [2] * 16] * 2
    assert (mixed.family, mixed.codebook_size) == ("seed-mini", 512)


def test_mixing_by_chance_follows_the_seed_of_each_row(run, filled):
    def values(count, seed):
        given = {"codes_a": filled(1, count), "codes_b": filled(2), "start": 0, "mode": "random"}
        return run("SEEDMixCodes", **given, seed=seed)[0].values

    assert torch.equal(values(3, 5), values(3, 5))
    assert torch.equal(values(3, 5)[2:], values(1, 7))
    assert not torch.equal(values(1, 5), values(1, 6))


def test_batching_keeps_the_order_of_the_inputs_and_skips_unconnected_ones(run, filled):
    given = {"codes_1": filled(1), "codes_2": filled(2, 0), "codes_4": filled(4)}
    (batch,) = run("SEEDBatchCodes", **given)
    assert batch.values[:, 0].tolist() == [1, 4]


def test_selecting_picks_rows(run, filled):
    (batch,) = run("SEEDBatchCodes", codes_1=filled(1), codes_2=filled(2), codes_3=filled(3))
    assert run("SEEDSelectCodes", codes=batch)[0].values[:, 0].tolist() == [1]
    picked = run("SEEDSelectCodes", codes=batch, index=-2, length=2)[0]
    assert picked.values[:, 0].tolist() == [2, 3]


def test_mistakes_are_errors_of_ours(run, pack, filled):
    error = pack.seed_core.CodesError
    with pytest.raises(error, match="2 pictures cannot be mixed with 3"):
        run("SEEDMixCodes", codes_a=filled(1, 2), codes_b=filled(2, 3))
    with pytest.raises(error, match="seed-mini codes .* and seed-2 codes"):
        run("SEEDBatchCodes", codes_1=filled(1), codes_2=filled(2, 1, "seed-2", 8192))
    with pytest.raises(error, match="batch of 1"):
        run("SEEDSelectCodes", codes=filled(1), index=1)


def test_every_preview_shows_the_same_kinds_of_things(pack, filled):
    """Over a list of codes the host joins what the first one shows, by name."""
    shows = [show(pack, filled(1, count)).ui.keys() for count in (65, 1, 0)]
    assert shows == [{"images", "text"}] * 3


@pytest.mark.parametrize(
    ("start", "end", "is_right"), [(0, 32, True), (20, 10, False), (0, 33, False)]
)
def test_positions_that_no_picture_has_are_told_before_anything_runs(pack, start, end, is_right):
    node = pack.nodes_by_id["SEEDMixCodes"]
    said = node.validate_inputs(start=start, end=end)
    assert said is True if is_right else f"got {start} and {end}" in said
    assert node.validate_inputs(start=start) is True  # the other comes by wire
