// SEED Load Codes takes a file that is dropped on it, or chosen with a button. ComfyUI has such
// uploads for pictures, sound and video alone. Without this file the node's list still works.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const ENDINGS = [".safetensors", ".json", ".txt"];
const LABEL = "choose file to upload"; // the frontend's own words

const isOurs = (file) => ENDINGS.some((ending) => file.name.toLowerCase().endsWith(ending));

function tell(detail) {
  app.extensionManager?.toast?.add({ severity: "warn", summary: "SEED Load Codes", detail, life: 8000 });
}

async function upload(node, file) {
  if (!isOurs(file)) {
    return tell(`'${file.name}' is not a file of codes: it must end in ${ENDINGS.join(", ")}.`);
  }
  const body = new FormData();
  body.append("image", file); // what the host calls any file in its input folder
  const reply = await api.fetchApi("/upload/image", { method: "POST", body }).catch(() => undefined);
  if (reply?.status !== 200) {
    return tell(`'${file.name}' was not uploaded: the server answered ${reply?.status ?? "nothing"}.`);
  }
  const { name } = await reply.json();
  const widget = node.widgets.find((candidate) => candidate.name === "file");
  if (!widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
  node.graph?.setDirtyCanvas(true, true);
}

function choose(node) {
  const input = Object.assign(document.createElement("input"), { type: "file", accept: ENDINGS.join() });
  input.onchange = () => input.files.length && upload(node, input.files[0]);
  input.click();
}

app.registerExtension({
  name: "seed-llama.upload",
  nodeCreated(node) {
    if (node.comfyClass !== "SEEDLoadCodes") return;
    node.addWidget("button", "upload", "", () => choose(node), { serialize: false }).label = LABEL;
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = async (event) => {
      const [file] = event.dataTransfer?.files ?? [];
      if (file) await upload(node, file);
      return Boolean(file);
    };
  },
});
