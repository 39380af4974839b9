"use strict";
// Prompts and answers reach the page as text nodes only.
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const SIZE = 25; // prompts a page
const state = { page: 0, found: [], query: "" };
let data, haystack;

async function unpacked() {
  const packed = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// Characters that hide or act are written as their escapes.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

const KINDS = {
  differ: (item) => new Set(item.a.map((answer) => answer[0])).size > 1,
  refused: (item) => item.a.some((answer) => answer[3]),
  cut: (item) => item.a.some((answer) => answer[0] !== null && !answer[2]),
  none: (item) => item.a.some((answer) => answer[0] === null),
};

function column(kind, title, text, badges) {
  const box = make("section", kind), head = make("h2", "", visible(title));
  head.append(...badges);
  box.append(head, text);
  return box;
}

function answer(name, [text, tokens, ended, refused]) {
  if (text === null) return column("", name, make("p", "none", visible(tokens)), []);
  const badges = [make("small", "", `${tokens.toLocaleString("en")} tokens`)];
  if (!ended) badges.push(make("span", "badge", "cut"));
  if (refused) badges.push(make("span", "badge", "refusal"));
  return column("", name, make("p", "text", visible(text)), badges);
}

function drawn(item) {
  const box = make("article"), prompt = make("div", "prompt"), answers = make("div", "answers");
  for (const [role, text] of item.p) {
    const turn = make("p", "turn");
    turn.append(make("small", "", visible(role)), visible(text));
    prompt.append(turn);
  }
  answers.append(...item.a.map((one, i) => answer(data.names[i], one)));
  if (item.c !== null) answers.append(column("chosen", "chosen, in the data", make("p", "text", visible(item.c)), []));
  box.append(prompt, answers);
  return box;
}

function mark() {
  if (!globalThis.CSS?.highlights) return;
  CSS.highlights.delete("found");
  if (!state.query) return;
  const ranges = [], walker = document.createTreeWalker($("prompts"), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue;
    for (let at = text.indexOf(state.query); at >= 0; at = text.indexOf(state.query, at + state.query.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + state.query.length);
      ranges.push(range);
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

function draw() {
  const pages = Math.max(1, Math.ceil(state.found.length / SIZE));
  state.page = Math.min(Math.max(0, state.page), pages - 1);
  const first = state.page * SIZE, shown = state.found.slice(first, first + SIZE);
  $("prompts").replaceChildren(...(shown.length ? shown.map(drawn) : [make("p", "nothing", "No such prompt.")]));
  $("where").textContent = shown.length ? `${first + 1} to ${first + shown.length} of ${state.found.length}` : "0 of 0";
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page === pages - 1;
  mark();
}

function search() {
  state.query = $("search").value.trim().toLowerCase();
  const kind = KINDS[$("kind").value] ?? (() => true);
  state.found = data.items.filter((item, i) => kind(item) && haystack[i].includes(state.query));
  state.page = 0;
  draw();
}

function turn(by) {
  if ((by < 0 ? $("previous") : $("next")).disabled) return;
  state.page += by;
  draw();
  document.querySelector(".bar").scrollIntoView();
}

async function main() {
  data = await unpacked();
  haystack = data.items.map((item) =>
    [item.k, ...item.p.map((said) => said[1]), item.c ?? "", ...item.a.map((one) => one[0] ?? one[1])].join("\n").toLowerCase());
  let timer;
  $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 120); });
  $("kind").addEventListener("change", search);
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowRight") turn(1);
    else if (event.key === "ArrowLeft") turn(-1);
    else if (event.key === "/") { event.preventDefault(); $("search").focus(); }
  });
  search();
}
main().catch((error) => { $("where").textContent = ""; $("prompts").append(make("p", "nothing", `The answers cannot be shown: ${error.message}`)); });
