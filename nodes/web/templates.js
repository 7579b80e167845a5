// ComfyUI lists the templates of a pack as its folder happens to hold them. Ours are listed from the
// simplest on. Without this file they are all there, in any order.
import { api } from "../../scripts/api.js";

const ORDER = [
  "reconstruct",
  "text_to_image",
  "ask_about_a_picture",
  "edit_by_instruction",
  "mix_two_pictures",
  "conversation",
  "story",
  "keep_codes",
  "lora",
  "variations_grid",
  "native_unclip",
  "native_blend",
  "ipadapter_sdxl",
  "seed1_stable_diffusion",
];
const PACK = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));

const listed = api.getWorkflowTemplates;
if (listed) {
  api.getWorkflowTemplates = async function () {
    const packs = await listed.call(this);
    packs?.[PACK]?.sort((one, other) => ORDER.indexOf(one) - ORDER.indexOf(other));
    return packs;
  };
}
