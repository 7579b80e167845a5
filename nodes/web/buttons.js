// Buttons that ComfyUI's page has no word for in Python. They are neither saved nor sent, and the nodes
// work without this file.
import { app } from "../../scripts/app.js";

function addButton(node, words, press) {
  const button = node.addWidget("button", words, "", press, { serialize: false });
  button.serialize = false;
}

function choose(node, name, value) {
  const widget = node.widgets.find((each) => each.name === name);
  if (!widget.options.values.includes(value)) widget.options.values.push(value);
  widget.value = value;
  widget.callback?.(value);
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
  choose(node, "file", (await reply.json()).name);
}

function takeFiles(node) {
  const chooser = Object.assign(document.createElement("input"), { type: "file" });
  chooser.onchange = () => upload(node, chooser.files[0]);
  addButton(node, "choose file to upload", () => chooser.click()); // the page's own words
  node.onDragOver = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
  node.onDragDrop = ({ dataTransfer: { files } }) => files.length && upload(node, files[0]).then(() => true);
}

// --- one click on Get SEED Model downloads
const clicks = new WeakSet(); // the lists of nodes to run that come from a click
let queued = Promise.resolve(); // asked for several at once, the page would queue the last one first

// A node's number behind those of the subgraphs that it is in: what it is called in a job.
function pathTo(node, graph = app.rootGraph, before = "") {
  const paths = graph.nodes.map((each) =>
    each === node ? before + each.id : each.subgraph && pathTo(node, each.subgraph, `${before}${each.id}:`));
  return paths.find(Boolean);
}

function fetchNow(node) {
  const targets = [pathTo(node)];
  clicks.add(targets);
  return app.queuePrompt(0, 1, targets);
}

// Only the job is told to fetch: the page may be queueing other runs, which read the node's choice.
function tellJobs(api, queue) {
  api.queuePrompt = (number, prompt, options) => {
    const targets = options?.partialExecutionTargets;
    for (const id of clicks.has(targets) ? targets : [])
      if (prompt.output[id]) prompt.output[id].inputs.action = "fetch";
    return queue.call(api, number, prompt, options);
  };
}

const takeClicks = (node) =>
  addButton(node, "fetch now", () => (queued = queued.finally(() => fetchNow(node))));

// --- what both need of the page
const BUTTONS = { SEEDLoadCodes: takeFiles, SEEDGetModel: takeClicks };
app.registerExtension({
  name: "SEED.Buttons",
  nodeCreated: (node) => BUTTONS[node.comfyClass]?.(node),
  setup() {
    if (app.api?.queuePrompt) tellJobs(app.api, app.api.queuePrompt);
    // A model that has just come is in the loaders' lists, without pressing R.
    app.api?.addEventListener("executed", ({ detail }) => {
      if (detail?.output?.new_model?.length) app.refreshComboInNodes?.();
    });
  },
});
