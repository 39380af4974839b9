"use strict";
// Texts of the data reach the page as text nodes only.
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const PARTS = ["prompt", "chosen", "rejected"];
const decoder = new TextDecoder("utf-8", { fatal: true });
const encoder = new TextEncoder();
const state = { page: 0, found: [], query: "" };
let data, vocab, haystack;

async function unpacked() {
  const packed = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Tokens that make whole characters together: [{ids, text, special}]. Most have one; some hold part of a character.
function pieces(tokens) {
  const found = [];
  for (let i = 0; i < tokens.length; ) {
    const [id, content, special] = vocab[tokens[i]];
    if (typeof content === "string") {
      found.push({ ids: [id], text: content, special });
      i += 1;
      continue;
    }
    let stop = i + 1, bytes = [...content], text = null;
    while (stop < tokens.length && stop - i < 8 && !vocab[tokens[stop]][2]) {
      const more = vocab[tokens[stop++]][1];
      bytes.push(...(typeof more === "string" ? encoder.encode(more) : more));
      try { text = decoder.decode(Uint8Array.from(bytes)); break; } catch { /* not yet a character */ }
    }
    if (text === null) { stop = i + 1; text = new TextDecoder().decode(Uint8Array.from(content)); }
    found.push({ ids: tokens.slice(i, stop).map((t) => vocab[t][0]), text, special: 0 });
    i = stop;
  }
  return found;
}

// Characters that hide or act are written as their escapes.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

function rendered(tokens) {
  const box = make("div", "text");
  let plain = "";
  const flush = () => { if (plain) box.append(visible(plain)); plain = ""; };
  for (const piece of pieces(tokens)) {
    if (!piece.special) { plain += piece.text; continue; }
    flush();
    box.append(make("span", "sp", visible(piece.text)));
  }
  flush();
  return box;
}

function tokenised(tokens) {
  const box = make("div", "text");
  pieces(tokens).forEach((piece, i) => {
    const token = make("span", "t" + (i % 2 ? " b" : "") + (piece.special ? " sp" : ""));
    const id = make("span", "id", piece.ids.join(",")), lines = visible(piece.text).split("\n");
    token.dataset.ids = piece.ids.join(", ");
    lines.forEach((line, n) => {
      if (n) token.append(make("span", "nl", "⏎"), ...(n === lines.length - 1 && !line ? [id] : []), "\n");
      if (line) token.append(line);
    });
    box.append(token, ...(id.parentNode ? [] : [id]));
  });
  return box;
}

function parts(item, draw) {
  return PARTS.map((name, i) => {
    const part = make("div", "part " + name);
    const title = make("h4", "", name);
    title.append(make("span", "", `${item.t[i].length.toLocaleString("en")} tokens`));
    part.append(title, draw(item.t[i]));
    return part;
  });
}

function section(name, title, ...children) {
  const node = make("section", name);
  node.append(make("h3", "", title), ...children);
  return node;
}

function fill(article) {
  const item = data.items[article.dataset.item];
  const columns = make("div", "columns");
  const left = item.d ? make("p", "reason", `Left out: ${item.d}.`) : make("p", "none", "Not tokenised.");
  columns.append(
    section("raw", "raw", item.r === null ? make("p", "none", "The source's row is not at hand.") : make("pre", "", visible(item.r))),
    section("rendered", "rendered", ...(item.t ? parts(item, rendered) : [left])),
    section("tokens", "tokenised", ...(item.t ? parts(item, tokenised) : [left.cloneNode(true)])),
  );
  article.append(columns);
  mark(article);
}

const filler = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    filler.unobserve(entry.target);
    fill(entry.target);
  }
}, { rootMargin: "900px" });

function card(index) {
  const item = data.items[index];
  const article = make("article");
  article.dataset.item = index;
  const title = make("h2", "", `${visible(data.sources[item.f].split("/").pop() || item.s)} · row ${item.n}`);
  title.append(make("span", "badge", item.s === "heldout" ? "held out" : item.s));
  if (item.d) title.append(make("span", "badge dropped", "dropped"));
  if (item.x) title.append(make("span", "badge cut", "cut"));
  for (const f of item.findings) title.append(make("span", "badge " + f.severity, f.check));
  if (item.t) title.append(make("small", "", `${item.t[0].length} + ${item.t[1].length} | ${item.t[2].length} tokens`));
  article.append(title);
  return article;
}

const flat = (text) => text.replace(/\s+/g, " ").toLowerCase();
// The words of a row, without the escapes of JSON, and what the template made of them.
function words(item) {
  const raw = (item.r ?? "").replace(/\\u([0-9a-f]{4})/gi, (_, code) => String.fromCharCode(parseInt(code, 16)))
    .replace(/\\[nrt]/g, " ").replace(/\\(["\\/])/g, "$1");
  const text = item.t ? item.t.map((tokens) => pieces(tokens).map((p) => p.text).join("")).join("\n") : "";
  return flat([data.sources[item.f], `row ${item.n}`, item.d ?? "", raw, item.r ?? "", text].join("\n"));
}

function search() {
  state.query = flat($("search").value.trim());
  const [split, status, finding] = ["split", "status", "finding"].map((id) => $(id).value);
  if (state.query && !haystack) haystack = data.items.map(words);
  state.found = [];
  data.items.forEach((item, i) => {
    if (split && item.s !== split) return;
    if (status && status !== (item.d ? "dropped" : item.x ? "cut" : "kept")) return;
    if (finding && !item.findings.some((f) => f.check === finding)) return;
    if (state.query && !haystack[i].includes(state.query)) return;
    state.found.push(i);
  });
  state.page = 0;
  draw();
}

function draw() {
  const size = Number($("size").value), count = state.found.length;
  const last = Math.max(0, Math.ceil(count / size) - 1);
  state.page = Math.min(Math.max(0, state.page), last);
  const start = state.page * size, shown = state.found.slice(start, start + size);
  filler.disconnect();
  if (window.CSS && CSS.highlights) CSS.highlights.delete("found");
  const cards = shown.map(card);
  $("pairs").replaceChildren(...(cards.length ? cards : [make("p", "nothing", "No pair matches.")]));
  cards.forEach((article) => filler.observe(article));
  $("where").textContent = count ? `${start + 1}–${start + shown.length} of ${count.toLocaleString("en")}` : "0 of 0";
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page >= last;
}

function turn(step) {
  const before = state.page;
  state.page += step;
  draw();
  if (state.page !== before) document.querySelector(".bar").scrollIntoView();
}

// Marks what was searched for, without touching the nodes.
function mark(article) {
  if (!state.query || !window.CSS || !CSS.highlights) return;
  const known = CSS.highlights.get("found") ?? new Highlight();
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue;
    for (let at = text.indexOf(state.query); at >= 0; at = text.indexOf(state.query, at + state.query.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + state.query.length);
      known.add(range);
    }
  }
  CSS.highlights.set("found", known);
}

function view(name) {
  document.body.dataset.view = name;
  for (const button of document.querySelectorAll(".views button")) button.setAttribute("aria-pressed", button.dataset.view === name);
}

function toggleIds() {
  $("ids").setAttribute("aria-pressed", document.body.classList.toggle("ids"));
}

function listen() {
  let timer;
  $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 120); });
  for (const id of ["split", "status", "finding"]) $(id).addEventListener("change", search);
  $("size").addEventListener("change", draw);
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("ids").addEventListener("click", toggleIds);
  for (const button of document.querySelectorAll(".views button")) button.addEventListener("click", () => view(button.dataset.view));
  for (const button of document.querySelectorAll("[data-finding]")) {
    button.addEventListener("click", () => {
      $("finding").value = data.findings[button.dataset.finding].check;
      search();
      document.querySelector(".bar").scrollIntoView();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowRight") turn(1);
    else if (event.key === "ArrowLeft") turn(-1);
    else if (event.key === "i") toggleIds();
    else if (event.key === "/") { event.preventDefault(); $("search").focus(); }
  });
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.(".t");
    $("tip").hidden = !token;
    if (!token) return;
    $("tip").textContent = (token.dataset.ids.includes(",") ? "ids " : "id ") + token.dataset.ids;
    const box = token.getClientRects()[0];
    $("tip").style.left = Math.min(box.left, innerWidth - 180) + "px";
    $("tip").style.top = (box.top > 40 ? box.top - 30 : box.bottom + 6) + "px";
  });
}

async function main() {
  data = await unpacked();
  vocab = data.vocab;
  for (const item of data.items) item.findings = [];
  const places = new Map();
  data.items.forEach((item) => {
    for (const source of [data.sources[item.f], ""]) {
      const key = JSON.stringify([item.s, source, item.n]);
      places.set(key, [...(places.get(key) ?? []), item]);
    }
  });
  for (const finding of data.findings) {
    for (const place of finding.rows) {
      for (const item of places.get(JSON.stringify(place)) ?? []) if (!item.findings.includes(finding)) item.findings.push(finding);
    }
  }
  // Rows that gave no pair, and pairs beyond those on the page, cannot be shown.
  const shown = new Set(data.items.flatMap((item) => item.findings.map((f) => f.check)));
  for (const check of shown) $("finding").append(new Option(check));
  for (const button of document.querySelectorAll("[data-finding]")) {
    if (!shown.has(data.findings[button.dataset.finding].check)) button.remove();
  }
  listen();
  view(innerWidth < 600 ? "rendered" : "all");
  search();
}
main().catch((error) => { $("where").textContent = ""; $("pairs").append(make("p", "nothing", `The pairs cannot be shown: ${error.message}`)); });
