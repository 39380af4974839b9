"use strict";
// Texts of the data reach the page as text nodes only.
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
// Characters that hide or act are written as their escapes.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const minus = (text) => text.replace("-", "−");
const fixed = (x, digits) => (x === null || x === undefined ? "–" : minus(x.toFixed(digits)));
const signed = (x, digits) => (x > 0 ? "+" : "") + fixed(x, digits);
const SIZE = 25;
const state = { page: 0, found: [], query: "" };
let data, haystack;

async function unpacked() {
  const packed = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Tables: a column is {title, text, value, draw}; a head sorts by value, rows without one come last.
function table(id, columns, rows) {
  const [head, body] = [$(id).tHead, $(id).tBodies[0]];
  const line = make("tr");
  columns.forEach((column, at) => {
    const cell = make("th", column.left ? "text" : "");
    cell.scope = "col";
    cell.setAttribute("aria-sort", "none");
    const button = make("button", "", column.title);
    button.type = "button";
    button.addEventListener("click", () => sort(cell, at));
    cell.append(button);
    line.append(cell);
  });
  head.append(line);
  const drawn = rows.map((row) => {
    const tr = make("tr", row.kind || "");
    for (const column of columns) {
      const cell = make("td", [column.left ? "text" : "", column.class || ""].join(" ").trim());
      const content = column.draw(row);
      cell.append(...(Array.isArray(content) ? content : [content]));
      tr.append(cell);
    }
    return { row, tr };
  });
  body.append(...drawn.map(({ tr }) => tr));
  function sort(cell, at) {
    const was = cell.getAttribute("aria-sort"), text = columns[at].left;
    const down = was === "none" ? !text : was === "ascending";
    for (const other of line.cells) other.setAttribute("aria-sort", "none");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = [...drawn].sort((a, b) => {
      const x = columns[at].value(a.row), y = columns[at].value(b.row);
      if (x === null || x === undefined || y === null || y === undefined) return (x === null || x === undefined) - (y === null || y === undefined);
      const way = text ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return down ? -way : way;
    });
    body.append(...order.map(({ tr }) => tr));
  }
}

// A point and its interval on a scale, 0 marked where it lies inside.
function bar(found, low, high) {
  const box = make("span", "bar"), share = (x) => Math.min(100, Math.max(0, (100 * (x - low)) / (high - low || 1)));
  if (found.low !== null) {
    const band = make("i");
    band.style.left = `${share(found.low)}%`;
    band.style.width = `${share(found.high) - share(found.low)}%`;
    box.append(band);
  }
  if (low < 0 && high > 0) { const zero = make("u"); zero.style.left = `${share(0)}%`; box.append(zero); }
  const point = make("b");
  point.style.left = `${share(found.value)}%`;
  box.append(point);
  return box;
}

const interval = (found, scale, digits) => (found.low === null ? "" : `${fixed(scale * found.low, digits)} to ${fixed(scale * found.high, digits)}`);
function estimate(found, scale, digits, range, sign) {
  const text = sign ? signed(scale * found.value, digits) : fixed(scale * found.value, digits);
  return [text, bar(found, ...range), make("small", "", interval(found, scale, digits))];
}
const reach = (all) => {
  const ends = all.flatMap((e) => [e.value, e.low ?? e.value, e.high ?? e.value, 0]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  return low === high ? [-1, 1] : [low, high];
};

function drawResults() {
  const { reference, results } = data;
  const margins = reach(results.map((r) => r.margin));
  const kl = results.some((r) => "kl" in r.metrics);
  const rows = [{ kind: "reference", name: reference.name, metrics: reference.metrics, path: reference.what, kl: 0 }, ...results.map((r) => ({ ...r, kl: r.metrics.kl }))];
  const answer = (side) => ({
    title: `${side}, nats`, value: (r) => r.metrics[`logratios/${side}`],
    draw: (r) => [signed(r.metrics[`logratios/${side}`], 2), make("small", "", `log-prob ${fixed(r.metrics[`logps/${side}`], 1)}`)],
  });
  table("results", [
    { title: "result", left: true, class: "name", value: (r) => r.name, draw: (r) => [visible(r.name), make("small", "", visible(r.path))] },
    { title: "accuracy, %", class: "wide", value: (r) => r.accuracy?.value, draw: (r) => (r.accuracy ? estimate(r.accuracy, 100, 1, [0, 1]) : "n/a") },
    { title: "margin, nats", class: "wide", value: (r) => r.margin?.value ?? 0, draw: (r) => (r.margin ? estimate(r.margin, 1, 2, margins, true) : "0") },
    { title: "loss", value: (r) => r.metrics.loss, draw: (r) => fixed(r.metrics.loss, 4) },
    ...(kl ? [{ title: "KL, nats a token", value: (r) => r.kl, draw: (r) => fixed(r.kl, 3) }] : []),
    answer("chosen"), answer("rejected"),
  ], rows);
  $("how").textContent = `Accuracy: the share of pairs whose chosen answer has the higher reward. Margin: the log-ratio of policy and reference of the chosen answer minus that of the rejected one, which does not depend on beta. `
    + `Below each its 95 % interval, from ${data.resamples.toLocaleString("en")} draws of the ${data.prompts.toLocaleString("en")} prompts. Below chosen and rejected, which are mean log-ratios, stands the policy's own mean log-prob. The loss is each result's own: compare it within one loss and beta.`
    + (kl ? ` KL: exact, of the policy from the reference, on ${data.kl_pairs} pairs.` : "");
}

const clear = (found) => found && found.low !== null && (found.low > 0 || found.high < 0);
function said(row) {
  for (const [found, better, worse] of [[row.accuracy, "more accurate", "less accurate"], [row.margin, "wider margin", "narrower margin"]])
    if (clear(found)) return found.value > 0 ? ["good", better] : ["bad", worse];
  return ["", "no clear difference"];
}

function drawComparisons() {
  const rows = data.comparisons.filter((c) => c.baseline !== data.reference.name);
  $("compared").hidden = !rows.length;
  if (!rows.length) return;
  const points = reach(rows.map((r) => r.accuracy)), nats = reach(rows.map((r) => r.margin));
  table("comparisons", [
    { title: "result", left: true, class: "name", value: (r) => r.result, draw: (r) => visible(r.result) },
    { title: "against", left: true, class: "name", value: (r) => r.baseline, draw: (r) => visible(r.baseline) },
    { title: "says", left: true, value: (r) => said(r)[1], draw: (r) => make("span", `tag ${said(r)[0]}`, said(r)[1]) },
    { title: "accuracy, points", class: "wide", value: (r) => r.accuracy.value, draw: (r) => estimate(r.accuracy, 100, 1, points, true) },
    { title: "margin, nats", class: "wide", value: (r) => r.margin.value, draw: (r) => estimate(r.margin, 1, 2, nats, true) },
    { title: "only it is right", value: (r) => r.gained, draw: (r) => String(r.gained) },
    { title: "only the other", value: (r) => r.lost, draw: (r) => String(r.lost) },
  ], rows);
}

function drawLengths() {
  const parts = ["prompt", "chosen", "rejected"].map((name) => ({ name, ...data.lengths[name] }));
  const number = (title, key, digits) => ({ title, value: (r) => r[key], draw: (r) => fixed(r[key], digits) });
  table("lengths", [
    { title: "part", left: true, value: (r) => r.name, draw: (r) => r.name },
    number("mean", "mean", 1), number("median", "median", 0), number("95th percentile", "p95", 0), number("longest", "max", 0),
  ], parts);
  const percent = (x) => (x === null ? "–" : (100 * x).toFixed(1));
  const { longer_chosen: longer, shorter_chosen: shorter } = data.lengths;
  table("bias", [
    { title: "result", left: true, class: "name", value: (r) => r.name, draw: (r) => visible(r.name) },
    { title: `chosen longer (${longer}), %`, value: (r) => r.lengths.accuracy_longer_chosen, draw: (r) => percent(r.lengths.accuracy_longer_chosen) },
    { title: `shorter (${shorter}), %`, value: (r) => r.lengths.accuracy_shorter_chosen, draw: (r) => percent(r.lengths.accuracy_shorter_chosen) },
    { title: "correlation", value: (r) => r.lengths.correlation, draw: (r) => fixed(r.lengths.correlation, 2) },
  ], data.results);
}

// Pairs
const margin = (row, at) => row.scores[at][1] - row.scores[at][2];
const spread = (row) => { const all = row.scores.map((_, at) => margin(row, at)); return Math.max(...all) - Math.min(...all); };
const FILTERS = {
  "": () => true,
  right: (row, at) => row.scores[at][0] === 1,
  wrong: (row, at) => row.scores[at][0] === 0,
  split: (row) => new Set(row.scores.map(([right]) => right)).size > 1,
  none: (row) => row.scores.every(([right]) => !right),
};

function search() {
  const at = Number($("result").value), keep = FILTERS[$("filter").value], order = $("order").value;
  state.query = $("search").value.trim().toLowerCase();
  const found = data.rows.map((row, place) => [row, place]).filter(([row, place]) => keep(row, at) && (!state.query || haystack[place].includes(state.query))).map(([row]) => row);
  if (order === "low") found.sort((a, b) => margin(a, at) - margin(b, at));
  if (order === "high") found.sort((a, b) => margin(b, at) - margin(a, at));
  if (order === "apart") found.sort((a, b) => spread(b) - spread(a));
  state.found = found;
  state.page = 0;
  drawPairs();
}

function block(text) {
  const box = make("div", "text-block"), shown = visible(text), low = shown.toLowerCase();
  if (!state.query || low.length !== shown.length) { box.textContent = shown; return box; }
  let from = 0;
  for (let at = low.indexOf(state.query); at >= 0; at = low.indexOf(state.query, from)) {
    box.append(shown.slice(from, at), make("mark", "", shown.slice(at, at + state.query.length)));
    from = at + state.query.length;
  }
  box.append(shown.slice(from));
  return box;
}

function article(row) {
  const node = make("article"), title = make("h3"), prompt = make("div", "prompt"), answers = make("div", "answers"), told = make("div", "said");
  title.append(make("span", "", `pair ${row.i + 1}`), make("span", "", `row ${row.row}${row.source ? ` of ${visible(row.source)}` : ""}`), make("span", "", `${row.tokens[0]} prompt tokens`));
  for (const [role, text] of row.prompt) prompt.append(make("small", "", visible(role)), block(text));
  for (const [at, side] of ["chosen", "rejected"].entries()) {
    const box = make("div");
    box.append(make("small", "", `${side}, ${row.tokens[at + 1]} tokens`), block(row[side]));
    answers.append(box);
  }
  row.scores.forEach(([right, chosen, rejected], at) => {
    const one = make("span");
    one.append(make("span", `tag ${right ? "good" : "bad"}`, right ? "right" : "wrong"), ` ${visible(data.results[at].name)}: margin ${signed(chosen - rejected, 2)} `, make("small", "", `(chosen ${signed(chosen, 2)}, rejected ${signed(rejected, 2)})`));
    told.append(one);
  });
  node.append(title, prompt, answers, told);
  return node;
}

function drawPairs() {
  const { found, page } = state, first = page * SIZE, shown = found.slice(first, first + SIZE);
  $("pairs").replaceChildren(...(shown.length ? shown.map(article) : [make("p", "empty", "No pair is like that.")]));
  const of = data.rows.length < data.pairs ? ` (of ${data.pairs.toLocaleString("en")} pairs ${data.rows.length.toLocaleString("en")} are on the page)` : "";
  $("where").textContent = found.length ? `${first + 1}–${first + shown.length} of ${found.length.toLocaleString("en")}${of}` : `0 of ${data.rows.length}`;
  $("previous").disabled = page === 0;
  $("next").disabled = first + SIZE >= found.length;
}

async function start() {
  data = await unpacked();
  const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  $("facts").textContent = `${counted(data.pairs, "pair")} of ${counted(data.prompts, "prompt")} (${data.split}: ${visible(data.counts)}) · ${visible(data.model)} · measured against ${visible(data.reference.what)}`;
  $("notes").textContent = data.notes.map(visible).join(" ");
  $("notes").hidden = !data.notes.length;
  drawResults();
  drawComparisons();
  drawLengths();
  haystack = data.rows.map((row) => [...row.prompt.map(([, text]) => text), row.chosen, row.rejected].join("\n").toLowerCase());
  $("result").append(...data.results.map((result, at) => { const option = make("option", "", visible(result.name)); option.value = at; return option; }));
  for (const id of ["result", "filter", "order"]) $(id).addEventListener("change", search);
  $("search").addEventListener("input", search);
  const turn = (by) => { state.page += by; drawPairs(); $("pairs").parentNode.scrollIntoView({ block: "start" }); };
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  search();
  document.documentElement.dataset.ready = "true";
}
addEventListener("DOMContentLoaded", start);
