"""SEEDPreviewCodes: shows codes and passes them on."""


def show(pack, codes):
    return pack.nodes_by_id["SEEDPreviewCodes"].execute(codes=codes)


def test_codes_are_shown_and_passed_on(pack, fox_codes):
    output = show(pack, fox_codes)
    assert output.args == (fox_codes,)
    assert len(output.ui.as_dict()["images"]) == 1


def test_it_runs_without_a_save_node(pack):
    assert pack.nodes_by_id["SEEDPreviewCodes"].GET_SCHEMA().is_output_node


def test_codes_without_a_picture_show_nothing(pack):
    codes = pack.seed_core.SeedCodes.empty("seed-mini", 512)
    output = show(pack, codes)
    assert output.args == (codes,)
    assert output.ui is None
