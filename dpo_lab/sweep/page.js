"use strict";
// Texts of the data reach the page as text nodes, or escaped where Plotly would read them as markup.
const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const signed = (text) => text.replace("-", "−");
const MEASURES = {
  accuracy: { title: "held-out accuracy", of: (s) => s.accuracy[0], text: percent },
  margin: { title: "margin in nats", of: (s) => s.margin[0], text: (x) => signed(x.toFixed(2)) },
  kl: { title: "KL", of: (s) => s.kl, text: (x) => signed(Number(x.toPrecision(3)).toString()) },
};
let data;

async function unpacked(id) {
  const packed = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  $(id).remove();
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// A row of buttons of which one is pressed.
function choice(box, change) {
  box?.addEventListener("click", (event) => {
    const { value } = event.target.dataset;
    if (!value) return;
    for (const button of box.children) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    change(value);
  });
}

const board = $("board");
const SHOWN = board ? board.tBodies.length - [...board.tBodies].filter((body) => body.hidden).length : 0;
let all = false;

function arrange(bodies) {
  bodies.forEach((body, i) => { body.hidden = !all && i >= SHOWN; });
  board.append(...bodies);
}

function sortBy(head) {
  const column = head.cellIndex;
  const was = head.getAttribute("aria-sort");
  const high = ["accuracy", "margin"].includes(head.dataset.sort);
  const down = was === "none" ? high : was === "ascending";
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (body) => body.rows[0].cells[column].dataset.v;
  const bodies = [...board.tBodies];
  const numeric = bodies.every((body) => value(body) === undefined || value(body) === "" || !Number.isNaN(Number(value(body))));
  const first = new Map(bodies.map((body) => [body, Number(body.rows[0].cells[0].dataset.v)]));
  arrange(bodies.sort((a, b) => {
    const x = value(a), y = value(b);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || first.get(a) - first.get(b);
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
    return (down ? -order : order) || first.get(a) - first.get(b);
  }));
}

if (board) {
  board.addEventListener("click", (event) => {
    const head = event.target.closest("th[data-sort]");
    if (head) return sortBy(head);
    const row = event.target.closest("tr.setting");
    if (!row || event.target.closest("a") || getSelection().toString()) return;
    const fold = row.querySelector(".fold"), open = fold.getAttribute("aria-expanded") !== "true";
    fold.setAttribute("aria-expanded", String(open));
    for (const trial of row.parentNode.querySelectorAll(".trial")) trial.hidden = !open;
  });
  $("all")?.addEventListener("click", () => {
    all = !all;
    $("all").textContent = all ? "Show fewer" : `Show all ${board.tBodies.length.toLocaleString("en")} settings`;
    arrange([...board.tBodies]);
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {  // a page opened from a file may not have the clipboard
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
      getSelection().removeAllRanges();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// Each chart is drawn when it comes near the window.
const drawers = new Map();
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    drawers.get(target)();
    target.dataset.drawn = "true";
  }
}, { rootMargin: "500px" });
const whenNear = (node, draw) => { if (node) { drawers.set(node, draw); seen.observe(node); } };

async function start() {
  data = JSON.parse(await unpacked("data"));
  whenNear($("heat"), startHeat);
  whenNear($("parallel"), startParallel);
  const script = make("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  whenNear($("curves"), startCurves);
  whenNear($("pareto"), startPareto);
  for (const box of document.querySelectorAll("[data-effect]")) whenNear(box, () => drawEffect(box));
  document.documentElement.dataset.ready = "true";
}
addEventListener("DOMContentLoaded", start);
