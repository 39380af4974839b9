"use strict";
// Texts of the data reach the page as text nodes only.
const $ = (id) => document.getElementById(id);
const CHOICES = ["left", "right", "tie"];
const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", 0: "tie" };
const UNKEPT = "This browser keeps no votes: save them before you close the page.";
let page, items, store, state; // state.votes: [[id, choice], ...] in the order in which they were given

// Characters that hide or act are written as their escapes.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const visible = (text) => text.replace(/\r\n?/g, "\n").replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

async function unpacked() {
  const packed = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function fresh() {
  const random = crypto.getRandomValues(new Uint8Array(8));
  return { session: [...random].map((b) => b.toString(16).padStart(2, "0")).join(""), rater: "", votes: [] };
}

// What this browser kept, as far as it is what this page wrote.
function kept() {
  const known = new Set(items.map(([id]) => id));
  try {
    const { session, rater, votes } = JSON.parse(localStorage.getItem(store));
    const sound = votes.filter(([id, choice]) => known.delete(id) && CHOICES.includes(choice));
    return { session: String(session), rater: String(rater), votes: sound };
  } catch {
    return fresh();
  }
}

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify(state));
  } catch {
    note(UNKEPT);
  }
}

function note(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

const current = () => {
  const voted = new Set(state.votes.map(([id]) => id));
  return items.find(([id]) => !voted.has(id));
};

function answer(node, text) {
  const blank = !text.trim();
  node.textContent = blank ? "an empty answer" : visible(text);
  node.classList.toggle("empty", blank);
}

function draw() {
  const item = current(), done = state.votes.length;
  $("where").textContent = `${done} of ${items.length} voted on`;
  const track = document.querySelector(".track");
  track.setAttribute("aria-valuemax", items.length);
  track.setAttribute("aria-valuenow", done);
  track.firstElementChild.style.width = `${(100 * done) / Math.max(1, items.length)}%`;
  $("item").hidden = !item;
  $("end").hidden = Boolean(item);
  $("undo").disabled = $("save").disabled = !done;
  for (const button of document.querySelectorAll("[data-vote]")) button.disabled = !item;
  if (!item) return;
  const [, messages, left, right] = item;
  $("asked").replaceChildren(...messages.flatMap(([role, text]) => {
    const who = document.createElement("b"), said = document.createElement("p");
    who.textContent = role;
    said.textContent = visible(text);
    said.dir = "auto";
    return [who, said];
  }));
  answer($("left"), left);
  answer($("right"), right);
  $("asked").scrollTop = $("asked").scrollHeight; // the last turn is what was answered
  scrollTo(0, 0);
}

function vote(choice) {
  const item = current();
  if (!item) return;
  state.votes.push([item[0], choice]);
  keep();
  draw();
}

function undo() {
  if (!state.votes.pop()) return;
  keep();
  draw();
}

function save() {
  if (!state.votes.length) return;
  const content = { page, session: state.session, rater: state.rater, saved: Date.now(), votes: Object.fromEntries(state.votes) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = `votes-${state.rater.replace(/[^\p{L}\p{N}_-]+/gu, "-") || state.session}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function press(event) {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target === $("rater")) {
    if (event.key === "Enter" || event.key === "Escape") $("rater").blur();
    return;
  }
  if (Object.hasOwn(KEYS, event.key)) vote(KEYS[event.key]);
  else if (event.key === "Backspace" || event.key === "u") undo();
  else if (event.key === "s") save();
  else return;
  event.preventDefault();
}

async function start() {
  ({ page, items } = await unpacked());
  store = `dpo_lab votes ${page}`;
  state = kept();
  keep();
  $("rater").value = state.rater;
  $("rater").addEventListener("input", () => { state.rater = $("rater").value.trim(); keep(); });
  for (const button of document.querySelectorAll("[data-vote]")) button.addEventListener("click", () => vote(button.dataset.vote));
  $("undo").addEventListener("click", undo);
  $("save").addEventListener("click", save);
  addEventListener("keydown", press);
  addEventListener("storage", (event) => { if (event.key === store) { state = kept(); draw(); } }); // another tab
  draw();
}
start().catch(() => note("This browser is too old to show the answers, or the file is damaged."));
