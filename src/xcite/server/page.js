"use strict";

const $ = (id) => document.getElementById(id);
let token = "";
let limits = null;
let attention = null; // of the picture on show
let waiting = null; // the file to send again once a token is given
let request = null; // aborts the one before

const percent = (p) => (p >= 0.001 || p === 0 ? (100 * p).toFixed(1) : "< 0.1") + " %";

// Names come from strangers: what would act instead of being read is shown escaped, as in Python.
const ACTING = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const visible = (text) => text.replace(ACTING, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1) + " MiB";

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  const shown = (key, value) => (typeof value === "string" ? visible(value) : value);
  const answer = await response.text().then((text) => JSON.parse(text, shown)).catch(() => ({}));
  if (response.status === 401) {
    $("access").hidden = false;
    $("token").focus();
    throw new Error(token ? "The server refused this token." : "Enter the token first.");
  }
  if (!response.ok) {
    throw new Error(answer.error || `The server answered with status ${response.status}.`);
  }
  return answer;
}

async function describe() {
  const info = await ask("info");
  limits = info.limits;
  const side = info.preprocessing.size;
  const parts = [info.model.model || "XCiT", `${info.classes.length} classes`, `${side} × ${side} pixels`, info.model.precision];
  $("model").textContent = parts.join(" · ");
  $("access").hidden = true;
}

function complain(message) {
  $("error").textContent = visible(message);
  $("error").hidden = false;
  $("status").textContent = "";
}

async function name(file) {
  request?.abort();
  const own = (request = new AbortController());
  $("error").hidden = true;
  $("status").textContent = "Looking at the picture …";
  $("result").classList.add("busy");
  $("drop").setAttribute("aria-busy", "true");
  waiting = null;
  try {
    if (file.type && !file.type.startsWith("image/")) {
      throw new Error(`${file.name} is not a picture.`);
    }
    if (limits && file.size > limits.max_bytes - 1024) {
      throw new Error(`${file.name} has ${megabytes(file.size)}; the server takes ${megabytes(limits.max_bytes)}.`);
    }
    waiting = file;
    const form = new FormData();
    form.append("file", file);
    const started = performance.now();
    const answer = await ask("predict?attention=1", { method: "POST", body: form, signal: own.signal });
    waiting = null;
    await show(file, answer.pictures[0], performance.now() - started);
  } catch (error) {
    if (own !== request) return; // a newer picture took over
    $("result").hidden = true;
    complain(error.message);
  } finally {
    if (own === request) {
      $("result").classList.remove("busy");
      $("drop").removeAttribute("aria-busy");
    }
  }
}

async function show(file, answer, milliseconds) {
  const picture = $("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  const decoded = await picture.decode().then(() => true, () => false);
  picture.hidden = !decoded;
  $("noview").hidden = decoded;
  picture.alt = visible(file.name);
  $("stage").style.setProperty("--ratio", decoded ? picture.naturalWidth / picture.naturalHeight : 1);
  picture.classList.toggle("tiny", picture.naturalWidth < 200);

  const [best] = answer.predictions;
  $("answer").textContent = `${best.name}, ${percent(best.probability)}`;
  $("bars").replaceChildren(...answer.predictions.map(bar));
  attention = decoded ? answer.attention : null;
  const cut = attention && Math.min(attention.seen.width, attention.seen.height) < 0.999;
  $("about").textContent =
    `Answered in ${Math.round(milliseconds)} ms.` + (cut ? " The model saw the bright square only." : "");
  $("result").hidden = false;
  paint();
  requestAnimationFrame(() => {
    for (const fill of document.querySelectorAll("#bars .fill")) fill.style.width = `${100 * fill.dataset.share}%`;
  });
  $("status").textContent =
    "Most likely: " + answer.predictions.map((p) => `${p.name} ${percent(p.probability)}`).join(", ");
}

function bar(prediction) {
  const element = (tag, className, text = "") => {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  };
  const item = document.createElement("li");
  const line = element("div", "line");
  line.append(element("span", "name", prediction.name), element("span", "value", percent(prediction.probability)));
  const track = element("div", "track");
  const fill = element("div", "fill");
  fill.dataset.share = prediction.probability;
  track.setAttribute("aria-hidden", "true");
  track.append(fill);
  item.append(line, track);
  return item;
}

// Dark to bright, little to much: five colours of matplotlib's "inferno".
const COLOURS = [[70, 11, 106], [140, 41, 99], [187, 55, 84], [249, 142, 9], [252, 255, 164]];

function colour(value) {
  const position = Math.min(Math.max(value, 0), 1) * (COLOURS.length - 1);
  const i = Math.min(Math.floor(position), COLOURS.length - 2);
  return COLOURS[i].map((c, k) => c + (position - i) * (COLOURS[i + 1][k] - c));
}

function paint() {
  const overlay = $("overlay");
  const picture = $("picture");
  overlay.hidden = !attention || !$("look").checked;
  document.querySelector("figcaption").hidden = !attention;
  if (!attention) return;
  const { rows, columns, values, seen } = attention;
  const grid = new ImageData(columns, rows);
  values.forEach((value, i) => grid.data.set([...colour(value), 40 + 140 * value], 4 * i));
  const small = document.createElement("canvas");
  [small.width, small.height] = [columns, rows];
  small.getContext("2d").putImageData(grid, 0, 0);
  // at least 400 pixels wide, or a tiny picture would get a coarse overlay
  const scale = Math.max(1, 400 / picture.naturalWidth);
  const width = (overlay.width = Math.round(picture.naturalWidth * scale));
  const height = (overlay.height = Math.round(picture.naturalHeight * scale));
  const context = overlay.getContext("2d");
  // what the centre crop left out, the model never saw
  context.fillStyle = "rgb(0 0 0 / 0.6)";
  context.fillRect(0, 0, width, height);
  const box = [seen.left * width, seen.top * height, seen.width * width, seen.height * height];
  context.clearRect(...box);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, ...box);
}

function take(files) {
  if (files.length > 1) complain("One picture at a time, please.");
  else if (files.length) name(files[0]);
}

$("file").addEventListener("change", () => {
  take($("file").files);
  $("file").value = ""; // so that the same picture can be chosen again
});
$("look").addEventListener("change", paint);
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  $("error").hidden = true;
  describe().then(() => (waiting ? name(waiting) : $("file").focus()), (error) => complain(error.message));
});

// The whole window takes the drop: a picture dropped beside the frame must not replace the page.
let depth = 0;
const highlight = () => $("drop").classList.toggle("over", depth > 0);
addEventListener("dragenter", (event) => { event.preventDefault(); depth++; highlight(); });
addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); highlight(); });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  highlight();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else complain("That was not a file. Save the picture first, then drop it here.");
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});

describe().catch((error) => {
  $("model").textContent = "";
  if ($("access").hidden) complain(error.message);
});
