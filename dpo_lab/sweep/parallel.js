// Parallel coordinates: an SVG of our own, so that it needs no WebGL and fits a narrow window.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 360, TOP = 34, BOTTOM = 346, WIDEST_SPREAD = 20;
const draw = (tag, attributes, parent) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent?.append(node);
  return node;
};

// Each axis: a name, the place of a setting between 0 (bottom) and 1, and what is written beside it.
function rails() {
  const ranks = new Map([...data.settings.keys()].sort((a, b) => data.settings[a].accuracy[0] - data.settings[b].accuracy[0]).map((s, i) => [s, i]));
  const spread = (i) => (data.settings.length > 1 ? ranks.get(i) / (data.settings.length - 1) - 0.5 : 0);
  const found = data.axes.map((axis, a) => {
    if (axis.scale === "grid") {
      const n = axis.values.length, gap = 1 / n, wide = Math.min(0.55 * gap, WIDEST_SPREAD / (BOTTOM - TOP) * 2);
      return {
        name: axis.name, at: (s, i) => (s.at[a] + 0.5) * gap + wide * spread(i),
        ticks: axis.values.map((text, k) => [(k + 0.5) * gap, text]),
      };
    }
    const scaled = axis.scale === "log" ? Math.log : (v) => v, ends = bounds(axis.numbers.map(scaled));
    const share = (v) => (scaled(v) - ends[0]) / (ends[1] - ends[0] || 1), last = axis.values.length - 1;
    const tell = (k) => Number(axis.numbers[k].toPrecision(3)).toString();
    return { name: axis.name, at: (s) => share(axis.numbers[s.at[a]]), ticks: [[0, tell(0)], [1, tell(last)]] };
  });
  for (const name of ["accuracy", "margin"]) {
    const { of, text } = MEASURES[name], [low, high] = bounds(data.settings.map(of));
    const share = (v) => (high > low ? (v - low) / (high - low) : 0.5);
    const ticks = high > low ? [low, (low + high) / 2, high].map((v) => [share(v), text(v)]) : [[0.5, text(low)]];
    found.push({ name, at: (s) => share(of(s)), ticks });
  }
  return found;
}

function startParallel() {
  const box = $("parallel"), brushes = new Map();
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth;
    drawParallel(box, brushes);
  }).observe(box);
}

function drawParallel(box, brushes) {
  const axes = rails(), wide = Math.max(box.clientWidth, 74 * axes.length);
  const svg = draw("svg", { width: wide, height: HEIGHT, viewBox: `0 0 ${wide} ${HEIGHT}`, role: "img", "aria-label": "parallel coordinates" });
  const left = 30, right = wide - 58, x = (k) => left + (right - left) * (axes.length > 1 ? k / (axes.length - 1) : 0.5);
  const y = (share) => BOTTOM - share * (BOTTOM - TOP);
  const [low, high] = bounds(data.settings.map((s) => s.accuracy[0]));
  const lines = data.settings.map((s, i) => ({ s, places: axes.map((axis) => axis.at(s, i)) }));
  const back = draw("g", {}, svg);
  const told = $("parallel-told");
  for (const line of [...lines].reverse()) {
    line.group = draw("g", {}, back);
    const steps = line.places.map((p, k) => {
      const [cx, cy] = [x(k), y(p)];
      if (!k) return `M${cx} ${cy.toFixed(1)}`;
      const middle = (x(k - 1) + cx) / 2;
      return `C${middle} ${y(line.places[k - 1]).toFixed(1)} ${middle} ${cy.toFixed(1)} ${cx} ${cy.toFixed(1)}`;
    }).join("");
    const share = high > low ? (line.s.accuracy[0] - low) / (high - low) : 1;
    draw("path", { class: "line", d: steps, style: `stroke:${ramp(0.22 + 0.78 * share)}` }, line.group);
    draw("path", { class: "hit", d: steps }, line.group);
    line.group.addEventListener("pointerenter", () => {
      line.group.classList.add("lit");
      const { s } = line;
      told.textContent = `${s.label}: accuracy ${percent(s.accuracy[0])}, margin ${MEASURES.margin.text(s.margin[0])} nats${s.kl === null ? "" : `, KL ${MEASURES.kl.text(s.kl)}`}`;
    });
    line.group.addEventListener("pointerleave", () => { line.group.classList.remove("lit"); tell(); });
  }
  const inside = (line) => [...brushes].every(([k, [a, b]]) => line.places[k] >= a && line.places[k] <= b);
  const tell = () => {
    const kept = lines.filter(inside);
    told.textContent = brushes.size
      ? `${kept.length} of ${lines.length} settings selected${kept.length ? `; the best of them: ${kept[0].s.label}, ${percent(kept[0].s.accuracy[0])}` : ""}`
      : "\u00a0";
  };
  const filter = () => { for (const line of lines) line.group.classList.toggle("off", !inside(line)); tell(); };
  axes.forEach((axis, k) => {
    draw("line", { class: "rail", x1: x(k), x2: x(k), y1: TOP, y2: BOTTOM }, svg);
    draw("text", { class: "name", x: Math.max(x(k), 4), y: 16, "text-anchor": k ? "middle" : "start" , dx: k ? 0 : -26 }, svg).textContent = shortened(axis.name, k);
    for (const [place, text] of axis.ticks) draw("text", { x: x(k) + 7, y: y(place) + 4 }, svg).textContent = shortened(text, k);
    brush(svg, axis, k, x(k), y, brushes, filter);
  });
  function shortened(text, k) {
    const room = Math.floor((k === axes.length - 1 ? 52 : x(1) - x(0)) / 6.6);
    return text.length > room ? `${text.slice(0, Math.max(3, room - 1))}…` : text;
  }
  box.replaceChildren(svg);
  filter();
}

function brush(svg, axis, k, x, y, brushes, filter) {
  const drawn = draw("rect", { class: "brush", x: x - 9, width: 18, height: 0, rx: 3 }, svg);
  const grip = draw("rect", { class: "grip", x: x - 14, y: TOP - 8, width: 28, height: BOTTOM - TOP + 16 }, svg);
  const show = () => {
    const [a, b] = brushes.get(k) ?? [0, 0];
    drawn.setAttribute("y", y(b));
    drawn.setAttribute("height", y(a) - y(b));
    drawn.style.display = brushes.has(k) ? "" : "none";
  };
  const share = (event) => Math.min(1.02, Math.max(-0.02, (BOTTOM - (event.clientY - svg.getBoundingClientRect().top)) / (BOTTOM - TOP)));
  let from = null;
  grip.addEventListener("pointerdown", (event) => { from = share(event); grip.setPointerCapture(event.pointerId); event.preventDefault(); });
  grip.addEventListener("pointermove", (event) => {
    if (from === null || Math.abs(share(event) - from) < 0.015) return;
    brushes.set(k, [Math.min(from, share(event)), Math.max(from, share(event))]);
    show(); filter();
  });
  grip.addEventListener("pointerup", (event) => {
    if (from !== null && Math.abs(share(event) - from) < 0.015) { brushes.delete(k); show(); filter(); }
    from = null;
  });
  show();
}
