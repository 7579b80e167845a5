"""diffusers' schedulers: each paints as in diffusers' own pipeline, or is refused as it is read."""

import json

import diffusers
import pytest
import torch

from seed_core import DecodeOptions
from seed_core.decoder.runtime import SeedDecoder
from seed_core.errors import CheckpointError, OptionError
from seed_core.files.folder import ModelFolder
from seed_core.models.diffusers_networks import read_schedulers
from seed_core.models.unclip import open_decoder

# Some of diffusers' constructors announce their end.
pytestmark = pytest.mark.filterwarnings("ignore")

ALL = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))

PAINT = {
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
SD = {
    **NOISE,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
OWN = {"UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"}}  # it knows only this one
NOISING = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}


@pytest.fixture
def read(tmp_path):
    """Return the scheduler of a folder with this config."""

    def write(name, config):
        (tmp_path / name).mkdir(exist_ok=True)
        text = json.dumps(config)
        (tmp_path / name / "scheduler_config.json").write_text(text, encoding="utf-8")

    def made(config, noising=NOISING):
        write("scheduler", config)
        write("image_noising_scheduler", noising)
        return read_schedulers(ModelFolder(tmp_path))[0]

    return made


def config_of(name, **others):
    return {"_class_name": name, **SD, **OWN.get(name, {}), **others}


@pytest.fixture(scope="module")
def stock(open_stock_decoder):
    from diffusers import StableUnCLIPImg2ImgPipeline

    return open_stock_decoder(StableUnCLIPImg2ImgPipeline)


@pytest.mark.parametrize("name", ALL)
def test_a_scheduler_paints_as_in_diffusers_pipeline_or_is_refused_by_name(
    name, read, stock, mini_decoder, make_generator
):
    if name not in PAINT:
        with pytest.raises(CheckpointError, match=f"{name}.*DDIMScheduler"):
            read(config_of(name))
        return
    scheduler = read(config_of(name))
    parts = mini_decoder.module, scheduler, mini_decoder.noising_scheduler
    decoder = SeedDecoder(*parts, torch.device("cpu"), torch.float32)
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "width": 64, "height": 64}
    embedding = torch.randn(1, 256, generator=make_generator(3))
    ours = decoder.decode(embedding, None, DecodeOptions(**options), make_generator(7))
    stock.scheduler = type(scheduler).from_config(scheduler.config)
    theirs = stock(
        image_embeds=embedding,
        prompt_embeds=torch.zeros(1, 1, 32),
        negative_prompt_embeds=torch.zeros(1, 1, 32),
        generator=make_generator(7),
        output_type="pt",
        **options,
    ).images
    assert (ours - theirs).abs().max() <= 1e-4
    assert ours.std() > 0.05


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_all_three_predictions_and_spacings_are_read(name, kind, spacing, read):
    config = config_of(name, prediction_type=kind, timestep_spacing=spacing)
    assert read(config).config.prediction_type == kind


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow matching"),
        (config_of("DPMSolverMultistepScheduler", prediction_type="flow_prediction"), "flow_pred"),
        (config_of("DDIMScheduler", prediction_type=None), "prediction_type"),
        (config_of("DDIMScheduler", prediction_type=["epsilon"]), "prediction_type"),
        (config_of("DDPMScheduler", variance_type="learned_range"), "steps fail"),
        (config_of("DDIMScheduler", timestep_spacing="backwards"), "steps fail"),
        (config_of("DDIMScheduler", clip_sample=True, clip_sample_range=0.1), "lead to a picture"),
        (config_of("DDIMScheduler", num_train_timesteps=0), "DDIMScheduler|num_train_timesteps"),
        (config_of("DDIMScheduler", num_train_timesteps="1000"), "DDIMScheduler|num_train"),
        (config_of("DDIMScheduler", beta_start="0.1"), "DDIMScheduler"),
        (config_of("DDIMScheduler", beta_start=-3.0), "DDIMScheduler"),
        (config_of("DDIMScheduler", beta_schedule="sigmoid"), "DDIMScheduler"),
        (config_of("DDIMScheduler", trained_betas=[]), "DDIMScheduler"),
        (config_of("DDIMInverseScheduler"), "lead to a picture"),
        (config_of("DPMSolverSDEScheduler"), "DPMSolverSDEScheduler"),
        (config_of("RePaintScheduler"), "steps fail"),
        (
            config_of(
                "EulerDiscreteScheduler",
                timestep_type="continuous",
                prediction_type="v_prediction",
            ),
            "time steps are not those of the noise",
        ),
        (config_of("TheirOwnScheduler"), "diffusers .* lacks"),
        (config_of("SchedulerMixin"), "lacks"),
        ({**SD, "_class_name": ["custom", "Scheduler"]}, "lacks"),
        (config_of(None), "lacks"),
        (SD, "_class_name is missing"),
        ({}, "_class_name is missing"),
    ],
)  # fmt: skip
def test_a_scheduler_that_does_not_fit_is_refused_with_the_file_and_what_to_put_there(
    config, why, read, tmp_path
):
    with pytest.raises(CheckpointError, match=why) as caught:
        read(config)
    assert "scheduler/scheduler_config.json of" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noise_on_embeddings_that_is_no_diffusion_is_refused(name, read):
    with pytest.raises(CheckpointError, match=rf"image_noising_scheduler/.*{name}.*DDPMScheduler"):
        read(config_of("DDIMScheduler"), noising={"_class_name": name})


def test_the_check_of_a_loader_refuses_it_already(tmp_path, mini_folder):
    """Not its third step."""
    for part in (mini_folder / "decoder").iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "scheduler").unlink()
    (tmp_path / "scheduler").mkdir()
    text = json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="FlowMatchEulerDiscreteScheduler.*flow matching"):
        open_decoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "steps"), [("LCMScheduler", 60), ("DDIMScheduler", 1000), ("TCDScheduler", 51)]
)
def test_steps_that_a_scheduler_cannot_make_are_refused_before_the_network_runs(
    name, steps, read, mini_decoder
):
    parts = mini_decoder.module, read(config_of(name)), mini_decoder.noising_scheduler
    decoder = SeedDecoder(*parts, torch.device("cpu"), torch.float32)
    with pytest.raises(OptionError, match=f"{steps} steps"):
        decoder.decode(
            torch.zeros(1, 256),
            options=DecodeOptions(steps),
            on_step=lambda done, total: pytest.fail("computed"),
        )
