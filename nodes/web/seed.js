// What ComfyUI's page cannot be told from Python. Where an interface is missing, nothing happens:
// the nodes work without this file.
import { app } from "../../scripts/app.js";

const isOurs = (type) => String(type ?? "").startsWith("SEED");

// --- colours of the wires
const WIRES = ["SEED_TOKENIZER", "SEED_LLM", "SEED_DECODER", "SEED_CODES", "SEED_CHAT"];
const DARK = ["#009678", "#f000f0", "#d25a00", "#5af000", "#5af0f0"];
const LIGHT = ["#19644b", "#964b7d", "#af6419", "#960000", "#324bfa"];
const sheet = document.head.appendChild(document.createElement("style"));

// Every palette writes its colours into the page's style, which a canvas reads in any notation, and
// empties the colour of each type that it does not know.
function followPalette() {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--bg-color").trim();
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(pen.fillStyle.slice(i, i + 2), 16));
  const colours = red + green + blue > 1.5 * 255 ? LIGHT : DARK;
  const rule = (type, i) => `--color-datatype-${type}: ${colours[i]};`;
  sheet.textContent = `:root {${WIRES.map(rule).join("")}}`;
  for (const table of [app.canvas?.default_connection_color_byType, window.LGraphCanvas?.link_type_colors])
    for (const [i, type] of table ? WIRES.entries() : [])
      if ([undefined, "", DARK[i], LIGHT[i]].includes(table[type])) table[type] = colours[i];
  app.canvas?.setDirty?.(true, true);
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

const removeWidgets = (node, names) =>
  node?.widgets?.filter(({ name }) => names.includes(name)).forEach((widget) => node.removeWidget?.(widget));

function write(node, words) {
  const boxes = window.comfyAPI?.textPreviewWidgets;
  if (!boxes?.addTextPreviewWidgets) return;
  removeWidgets(node, words.length ? LIVE : [...LIVE, ...WORDS]);
  if (!words.length) return;
  if (!node.widgets?.some(({ name }) => name === WORDS[0])) {
    boxes.addTextPreviewWidgets(node);
    // A switch to Markdown, where words in angle brackets would vanish.
    for (const mode of node.widgets) if (mode.name === WORDS[1]) mode.hidden = true;
    node.setSize(node.computeSize().map((side, i) => Math.max(side, node.size[i])));
  }
  boxes.updateTextPreviewWidgets(node, { text: words.join("\n\n") });
  node.setDirtyCanvas?.(true, true);
}

// What a node in a subgraph says is on the subgraph's node as well, where people look.
function showWords(path, output) {
  const node = nodeAt(path);
  if (!isOurs(node?.type) || !output?.text) return;
  write(node, [output.text].flat());
  const [first, ...inner] = String(path).split(":");
  const isOuter = ({ id, type }) => String(id) === first || type === first;
  const outer = inner.length && app.rootGraph.nodes.find(isOuter);
  if (!outer) return;
  outer.seedWords = { ...outer.seedWords, [node.id]: [output.text].flat() };
  write(outer, Object.values(outer.seedWords).flat());
}

// --- errors: the page says that a node threw one or rejected a value, ours say what is wrong
function say(sentences, isAll) {
  const words = [...new Set(sentences)].join("\n");
  let frames = 60; // the page opens its message within a few
  (function put() {
    const shown = document.querySelector("[data-testid=error-overlay-messages] p");
    if (shown && !shown.textContent.includes(words))
      shown.textContent = isAll ? words : `${shown.textContent}\n${words}`;
    shown?.style.setProperty("-webkit-line-clamp", "none");
    if (words && frames-- > 0) requestAnimationFrame(put);
  })();
}

// What is refused before a run is told in the answer to the queue alone.
function listenToQueue(api, queue) {
  const isSentence = ([type, error]) => isOurs(type) && error.type === "custom_validation_failed";
  const sayAll = (answer) => {
    const refused = Object.values(answer?.node_errors ?? {});
    const errors = refused.flatMap((node) => node.errors.map((error) => [node.class_type, error]));
    const ours = errors.filter(isSentence).map(([, { details }]) => details.replace(/^\w+ - /, ""));
    say(ours, errors.every(isSentence));
  };
  api.queuePrompt = (...given) => {
    const answer = queue.apply(api, given);
    answer.then(sayAll, (error) => sayAll(error?.response));
    return answer;
  };
}

// --- templates: the page lists a pack's as their folder happens to hold them
const ORDER = `reconstruct text_to_image get_the_real_models ask_about_a_picture edit_by_instruction
  caption_a_folder draft_then_your_model keep_the_layout mix_two_pictures conversation story keep_codes
  lora variations_grid native_unclip native_blend ipadapter_sd15
  ipadapter_sdxl ipadapter_plus_sdxl seed1_stable_diffusion`;
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
    on("progress_text", ({ nodeId }) => isOurs(nodeAt(nodeId)?.type) && removeWidgets(nodeAt(nodeId), WORDS));
    on("executed", ({ node, output }) => showWords(node, output));
    on("execution_error", ({ exception_message: words, node_type }) => isOurs(node_type) && say([words.trim()], true));
    // What a node said of its work is over with the work; newer pages see to that themselves.
    for (const end of ["execution_error", "execution_interrupted"])
      on(end, ({ node_id, node_type }) => isOurs(node_type) && removeWidgets(nodeAt(node_id), LIVE));
    if (app.api?.queuePrompt) listenToQueue(app.api, app.api.queuePrompt);
  },
  onNodeOutputsUpdated: (outputs) => Object.entries(outputs ?? {}).forEach((one) => showWords(...one)),
});
