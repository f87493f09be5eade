"use strict";

const $ = (id) => document.getElementById(id);
let token = "";
let limits = null;
let attention = null; // of the picture on show
let waiting = null; // the file to send again once a token is given
let request = null; // aborts the one before

// The page is written in English. A browser that prefers Chinese gets the command's own catalog:
// messages by template, errors of the server by pattern with {} in it.
let catalog = { messages: {}, errors: {} };
const tr = (template, values = {}) =>
  (catalog.messages[template] ?? template).replace(/\{(\w+)\}/g, (_, name) => values[name]);

function translated(error) {
  const parts = error.split("; ");
  if (!catalog.patterns || error.length > 2000 || parts.length > 12) return error;
  const said = [];
  while (parts.length) {
    let count = parts.length;
    let found = replaced(parts.slice(0, count).join("; "));
    while (found === null && --count) found = replaced(parts.slice(0, count).join("; "));
    said.push(found ?? parts[0]);
    parts.splice(0, count || 1);
  }
  return said.join("；");
}

function replaced(error) {
  for (const [pattern, translation] of catalog.patterns) {
    const match = pattern.exec(error);
    if (!match) continue;
    let next = 1;
    return translation.replace(/\{(\d*)\}/g, (_, place) => translated(match[place ? +place + 1 : next++]));
  }
  return null;
}

async function speak() {
  const wish = navigator.languages.find((language) => /^(en|zh)\b/i.test(language)) ?? "en";
  if (!/^zh/i.test(wish)) return;
  catalog = await (await fetch("languages/zh.json")).json();
  const words = (text) => text.replaceAll("{}", "").length;
  catalog.patterns = Object.entries(catalog.errors)
    .sort(([a], [b]) => words(b) - words(a))
    .map(([text, translation]) => [
      new RegExp("^" + text.split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("((?:(?!; ).)*?)") + "$", "s"),
      translation,
    ]);
  document.documentElement.lang = "zh";
  document.title = tr(document.title);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data;
    if (text.trim()) walker.currentNode.data = text.replace(text.trim(), () => tr(text.trim()));
  }
}

const percent = (p) => (p >= 0.001 || p === 0 ? (100 * p).toFixed(1) : "< 0.1") + " %";

// Names come from strangers: what would act instead of being read is shown escaped, as in Python.
const ACTING = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const visible = (text) => text.replace(ACTING, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
// Right-to-left letters do not turn round what stands beside them.
const apart = (name) => `\u2068${name}\u2069`;
const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1) + " MiB";

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(tr("The server cannot be reached. Is it still running?"));
  }
  const shown = (key, value) => (typeof value === "string" ? visible(value) : value);
  const answer = await response.text().then((text) => JSON.parse(text, shown)).catch(() => ({}));
  if (response.status === 401) {
    $("access").hidden = false;
    $("token").focus();
    throw new Error(token ? tr("The server refused this token.") : tr("Enter the token first."));
  }
  if (!response.ok) {
    const status = tr("The server answered with status {status}.", { status: response.status });
    throw new Error(answer.error ? translated(answer.error) : status);
  }
  return answer;
}

async function describe() {
  const info = await ask("info");
  limits = info.limits;
  const [height, width = height] = [info.preprocessing.size].flat();
  const parts = [info.model.model || "XCiT", tr("{count} classes", { count: info.classes.length }), tr("{height} × {width} pixels", { height, width }), info.model.precision];
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
  $("status").textContent = tr("Looking at the picture …");
  $("result").classList.add("busy");
  $("drop").setAttribute("aria-busy", "true");
  waiting = null;
  try {
    if (file.type && !file.type.startsWith("image/")) {
      throw new Error(tr("{file} is not a picture.", { file: file.name }));
    }
    if (limits && file.size > limits.max_bytes - 1024) {
      const sizes = { file: file.name, size: megabytes(file.size), most: megabytes(limits.max_bytes) };
      throw new Error(tr("{file} has {size}; the server takes {most}.", sizes));
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
  $("answer").textContent = `${apart(best.name)}, ${percent(best.probability)}`;
  $("bars").replaceChildren(...answer.predictions.map(bar));
  attention = decoded ? answer.attention : null;
  const cut = attention && Math.min(attention.seen.width, attention.seen.height) < 0.999;
  $("about").textContent =
    tr("Answered in {time} ms.", { time: Math.round(milliseconds) }) +
    (cut ? " " + tr("The model saw the bright square only.") : "");
  $("result").hidden = false;
  paint();
  requestAnimationFrame(() => {
    for (const fill of document.querySelectorAll("#bars .fill")) fill.style.width = `${100 * fill.dataset.share}%`;
  });
  const named = answer.predictions.map((p) => `${apart(p.name)} ${percent(p.probability)}`).join(", ");
  $("status").textContent = tr("Most likely: {names}", { names: named });
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
  if (files.length > 1) complain(tr("One picture at a time, please."));
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
  else complain(tr("That was not a file. Save the picture first, then drop it here."));
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files);
});

// Without the catalog the page stays English.
speak().catch(() => {}).then(describe).catch((error) => {
  $("model").textContent = "";
  if ($("access").hidden) complain(error.message);
});
