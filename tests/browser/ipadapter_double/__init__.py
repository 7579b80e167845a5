"""The two nodes of ComfyUI_IPAdapter_plus 2.0.0 that our blueprint uses, as seen from outside: the
same ids, inputs and outputs, nothing behind them. Installed beside our pack as a pack of its own."""

import folder_paths

folder_paths.add_model_folder_path("ipadapter", f"{folder_paths.models_dir}/ipadapter")


class IPAdapterModelLoader:
    RETURN_TYPES = ("IPADAPTER",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"ipadapter_file": (folder_paths.get_filename_list("ipadapter"),)}}


class IPAdapterEmbeds:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        share = ("FLOAT", {"min": 0.0, "max": 1.0, "step": 0.001})
        return {
            "required": {
                "model": ("MODEL",),
                "ipadapter": ("IPADAPTER",),
                "pos_embed": ("EMBEDS",),
                "weight": ("FLOAT", {"default": 1.0, "min": -1, "max": 3, "step": 0.05}),
                "weight_type": (["linear", "ease in", "style transfer"],),
                "start_at": share,
                "end_at": share,
                "embeds_scaling": (["V only", "K+V"],),
            },
            "optional": {
                "neg_embed": ("EMBEDS",),
                "attn_mask": ("MASK",),
                "clip_vision": ("CLIP_VISION",),
            },
        }


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (IPAdapterModelLoader, IPAdapterEmbeds)}
