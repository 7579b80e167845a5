// What ComfyUI's page cannot be told from Python. Where an interface is missing, nothing happens:
// the nodes work without this file.
import { app } from "../../scripts/app.js";

const page = document.documentElement;
const isOurs = (type) => String(type ?? "").startsWith("SEED");

// --- colours of the wires, on dark pages and on light ones ---------------------------------------

const COLOURS = {
  SEED_TOKENIZER: { dark: "#00d2ff", light: "#3c4bff" },
  SEED_LLM: { dark: "#c36987", light: "#3c2d5a" },
  SEED_DECODER: { dark: "#d27800", light: "#1e3c0f" },
  SEED_CODES: { dark: "#ffff00", light: "#69780f" },
  SEED_CHAT: { dark: "#96ffe1", light: "#007869" },
};

const addSheet = () => document.head.appendChild(document.createElement("style"));
const sheet = addSheet();
let theme = "dark";

// A palette that is chosen in the settings empties the colour of every type it does not know. So a
// type keeps ours behind whatever is written over it.
function keepColour(table, type, colours) {
  if (!table) return;
  let chosen = table[type];
  Object.defineProperty(table, type, {
    configurable: true,
    enumerable: true,
    get: () => chosen || colours[theme],
    set: (colour) => (chosen = colour),
  });
}

// Every palette writes its colours into the page's style; a canvas reads them in any notation.
function followPalette() {
  const pen = document.createElement("canvas").getContext("2d");
  pen.fillStyle = getComputedStyle(page).getPropertyValue("--bg-color").trim();
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(pen.fillStyle.slice(i, i + 2), 16));
  theme = red + green + blue > 1.5 * 255 ? "light" : "dark";
  const one = ([type, colours]) => `--color-datatype-${type}: ${colours[theme]};`;
  sheet.textContent = `:root { ${Object.entries(COLOURS).map(one).join(" ")} }`;
  app.canvas?.setDirty?.(true, true);
}

function colourWires() {
  for (const [type, colours] of Object.entries(COLOURS)) {
    keepColour(app.canvas?.default_connection_color_byType, type, colours);
    keepColour(window.LGraphCanvas?.link_type_colors, type, colours);
  }
  followPalette();
  new MutationObserver(followPalette).observe(page, { attributeFilter: ["style"] });
}

// --- examples in empty boxes -----------------------------------------------------------------

const examples = addSheet();
const EXAMPLE = `position: absolute; inset: 1.5rem 0.75rem auto; pointer-events: none; opacity: 0.6;
  font: var(--comfy-textarea-font-size) monospace;`;

// Vue nodes know the placeholder of a box but leave it empty.
function showExamples(type, input) {
  for (const [, options] of Object.values({ ...input?.required, ...input?.optional })) {
    if (!options?.placeholder) continue;
    const box = `[node-type="${type}"]:has(> textarea[placeholder=""]:placeholder-shown)`;
    const words = JSON.stringify(options.placeholder).replaceAll("\\n", "\\a ");
    examples.textContent += `${box}::after { content: ${words}; ${EXAMPLE} }\n`;
  }
}

// --- words that stay on a node ---------------------------------------------------------------

const LIVE = "$$node-text-preview"; // the page's own box for what a node says while it runs
const WORDS = ["preview_text", "preview_mode"];

// A node by its number, or by a path of numbers or of a subgraph's name in front of it.
function nodeAt(path) {
  const steps = String(path).split(":");
  const last = steps.pop();
  const into = (graph, step) =>
    app.rootGraph.subgraphs?.get(step) ?? graph?.getNodeById(step)?.subgraph;
  return steps.reduce(into, app.rootGraph)?.getNodeById(last);
}

function removeWidgets(node, names) {
  const found = node.widgets?.filter((widget) => names.includes(widget.name)) ?? [];
  for (const widget of found) node.removeWidget?.(widget);
}

function showWords(node, output) {
  const boxes = window.comfyAPI?.textPreviewWidgets;
  if (!isOurs(node?.type) || !output?.text?.length || !boxes?.addTextPreviewWidgets) return;
  removeWidgets(node, [LIVE]);
  if (!node.widgets?.some((widget) => widget.name === WORDS[0])) {
    boxes.addTextPreviewWidgets(node);
    // A switch to Markdown, where <image> would vanish.
    for (const mode of node.widgets) if (mode.name === WORDS[1]) mode.hidden = true;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  }
  boxes.updateTextPreviewWidgets(node, { text: [output.text].flat().join("\n\n") });
  node.setDirtyCanvas?.(true, true);
}

// Words of the last run give way to those of this one.
function giveWay({ detail }) {
  const node = nodeAt(detail?.nodeId);
  if (isOurs(node?.type)) removeWidgets(node, WORDS);
}

// --- the sentence of an error ------------------------------------------------------------------

const MESSAGE = "[data-testid=error-overlay-messages] p";
// The page says of every node that it threw an error. Ours say what is wrong.
function sayWhatIsWrong({ detail }) {
  const sentence = detail?.exception_message?.trim();
  if (!sentence || !isOurs(detail.node_type)) return;
  let frames = 60; // the page opens its message within a few
  const say = () => {
    const shown = document.querySelector(MESSAGE);
    if (shown && !shown.textContent.includes(sentence)) {
      shown.textContent = sentence;
      shown.style.webkitLineClamp = "none";
    }
    if (frames-- > 0) requestAnimationFrame(say);
  };
  say();
}

app.registerExtension({
  name: "SEED.Page",
  setup() {
    colourWires();
    app.api?.addEventListener("progress_text", giveWay);
    app.api?.addEventListener("execution_error", sayWhatIsWrong);
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!isOurs(nodeData?.name)) return;
    showExamples(nodeData.name, nodeData.input);
    const before = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      before?.apply(this, arguments);
      showWords(this, output);
    };
  },
  onNodeOutputsUpdated(outputs) {
    for (const [path, output] of Object.entries(outputs ?? {})) showWords(nodeAt(path), output);
  },
});
