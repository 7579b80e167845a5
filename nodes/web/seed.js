// What ComfyUI's page cannot be told from Python. Where an interface is missing, nothing happens:
// the nodes work without this file.
import { app } from "../../scripts/app.js";

const isOurs = (type) => String(type ?? "").startsWith("SEED");
const addSheet = () => document.head.appendChild(document.createElement("style"));

// --- colours of the wires
const WIRES = ["SEED_TOKENIZER", "SEED_LLM", "SEED_DECODER", "SEED_CODES", "SEED_CHAT"];
const DARK = ["#00d2ff", "#c36987", "#d27800", "#ffff00", "#96ffe1"];
const LIGHT = ["#3c4bff", "#3c2d5a", "#1e3c0f", "#69780f", "#007869"];
const sheet = addSheet();

// Every palette writes its colours into the page's style, which a canvas reads in any notation, and
// empties the colour of each type that it does not know.
function followPalette() {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--bg-color").trim();
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(pen.fillStyle.slice(i, i + 2), 16));
  const colours = red + green + blue > 1.5 * 255 ? LIGHT : DARK;
  sheet.textContent = `:root {${WIRES.map((type, i) => `--color-datatype-${type}: ${colours[i]};`).join("")}}`;
  for (const table of [app.canvas?.default_connection_color_byType, window.LGraphCanvas?.link_type_colors])
    for (const [i, type] of table ? WIRES.entries() : [])
      if ([undefined, "", DARK[i], LIGHT[i]].includes(table[type])) table[type] = colours[i];
  app.canvas?.setDirty?.(true, true);
}

// --- examples in empty boxes: Vue nodes know the placeholder but leave it out
function showExamples(type, input) {
  for (const [, options] of Object.values({ ...input?.required, ...input?.optional })) {
    if (!options?.placeholder) continue;
    const box = `[node-type="${type}"]:has(> textarea[placeholder=""]:placeholder-shown)`;
    const words = JSON.stringify(options.placeholder).replaceAll("\\n", "\\a ");
    addSheet().textContent = `${box}::after { content: ${words}; position: absolute; opacity: 0.6;
      inset: 1.5rem 0.75rem auto; pointer-events: none; font: var(--comfy-textarea-font-size) monospace; }`;
  }
}

// --- words that stay on a node
const LIVE = ["$$node-text-preview"]; // the page's own box for what a node says while it runs
const WORDS = ["preview_text", "preview_mode"];

// A node by its number, or by a path of numbers or of a subgraph's name in front of it.
function nodeAt(path) {
  const steps = String(path).split(":");
  const last = steps.pop();
  const into = (graph, step) => app.rootGraph.subgraphs?.get(step) ?? graph?.getNodeById(step)?.subgraph;
  return steps.reduce(into, app.rootGraph)?.getNodeById(last);
}

function removeWidgets(node, names) {
  const found = isOurs(node?.type) && node.widgets?.filter(({ name }) => names.includes(name));
  for (const widget of found || []) node.removeWidget?.(widget);
}

function showWords(node, output) {
  const boxes = window.comfyAPI?.textPreviewWidgets;
  if (!isOurs(node?.type) || !output?.text || !boxes?.addTextPreviewWidgets) return;
  removeWidgets(node, output.text.length ? LIVE : [...LIVE, ...WORDS]);
  if (!output.text.length) return;
  if (!node.widgets?.some(({ name }) => name === WORDS[0])) {
    boxes.addTextPreviewWidgets(node);
    // A switch to Markdown, where words in angle brackets would vanish.
    for (const mode of node.widgets) if (mode.name === WORDS[1]) mode.hidden = true;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  }
  boxes.updateTextPreviewWidgets(node, { text: [output.text].flat().join("\n\n") });
  node.setDirtyCanvas?.(true, true);
}

// --- errors: the page says that a node threw one or rejected a value, ours say what is wrong
function say(sentence, type) {
  if (!sentence || !isOurs(type)) return;
  let frames = 60; // the page opens its message within a few
  const write = () => {
    const shown = document.querySelector("[data-testid=error-overlay-messages] p");
    if (shown && !shown.textContent.includes(sentence)) shown.textContent = sentence;
    if (shown) shown.style.webkitLineClamp = "none";
    if (frames-- > 0) requestAnimationFrame(write);
  };
  write();
}

// What is refused before a run is told in the answer to the queue alone.
function listenToQueue(api, queue) {
  const sayAll = (answer) => {
    for (const { class_type, errors } of Object.values(answer?.node_errors ?? {}))
      for (const { type, details } of errors)
        if (type === "custom_validation_failed") say(details.replace(/^\w+ - /, ""), class_type);
    return answer;
  };
  const fail = (error) => Promise.reject((sayAll(error?.response), error));
  api.queuePrompt = (...given) => queue.apply(api, given).then(sayAll, fail);
}

// --- files for SEED Load Codes: the page has uploads for pictures, sound and video alone
async function upload(node, file) {
  const tell = (detail) => app.extensionManager?.toast?.add({ severity: "warn", detail, life: 8000 });
  if (!/\.(safetensors|json|txt)$/i.test(file.name))
    return tell(`'${file.name}' is not a file of codes: it must end in .safetensors, .json or .txt.`);
  const body = new FormData();
  body.append("image", file); // what the host calls any file in its input folder
  const reply = await app.api.fetchApi("/upload/image", { method: "POST", body });
  if (!reply.ok) return tell(`'${file.name}' was not uploaded: the server answered ${reply.status}.`);
  const { name } = await reply.json();
  const widget = node.widgets.find((each) => each.name === "file");
  if (!widget.options.values.includes(name)) widget.options.values.push(name);
  widget.value = name;
  widget.callback?.(name);
}

function takeFiles(node) {
  const chooser = Object.assign(document.createElement("input"), { type: "file" });
  chooser.onchange = () => upload(node, chooser.files[0]);
  const button = node.addWidget("button", "upload", "", () => chooser.click(), { serialize: false });
  button.label = "choose file to upload"; // the page's own words
  node.onDragOver = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  node.onDragDrop = ({ dataTransfer: { files } }) => files.length && upload(node, files[0]).then(() => true);
}

// --- templates: the page lists a pack's as their folder happens to hold them
const ORDER = `reconstruct text_to_image ask_about_a_picture edit_by_instruction mix_two_pictures conversation
  story keep_codes lora variations_grid native_unclip native_blend ipadapter_sdxl seed1_stable_diffusion`;

function sortTemplates(api, list) {
  const pack = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));
  const sort = (packs) => (packs?.[pack]?.sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b)), packs);
  api.getWorkflowTemplates = (...given) => list.apply(api, given).then(sort);
}

if (app.api?.getWorkflowTemplates) sortTemplates(app.api, app.api.getWorkflowTemplates);
const on = (event, react) => app.api?.addEventListener(event, ({ detail }) => react(detail ?? {}));
app.registerExtension({
  name: "SEED.Page",
  setup() {
    followPalette();
    new MutationObserver(followPalette).observe(document.documentElement, { attributeFilter: ["style"] });
    on("progress_text", ({ nodeId }) => removeWidgets(nodeAt(nodeId), WORDS)); // a new run begins to speak
    on("executed", ({ node, output }) => showWords(nodeAt(node), output));
    on("execution_error", (error) => say(error.exception_message?.trim(), error.node_type));
    if (app.api?.queuePrompt) listenToQueue(app.api, app.api.queuePrompt);
  },
  beforeRegisterNodeDef: (_, { name, input }) => isOurs(name) && showExamples(name, input),
  nodeCreated: (node) => node.comfyClass === "SEEDLoadCodes" && takeFiles(node),
  onNodeOutputsUpdated(outputs) {
    for (const [path, output] of Object.entries(outputs ?? {})) showWords(nodeAt(path), output);
  },
});
