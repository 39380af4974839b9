// Curves, effects, Pareto front (Plotly) and the heat map (a table).
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#a6568c", "#b8860b"];
const FAINT = "#b9bcc4", INK = "#1d1d1b", SOFT = "#62625c", HAIR = "#eeeeea", LINE = "#dfdfd8";
const RAMP = ["#edf3f9", "#c6dbee", "#8fbadd", "#5492c5", "#27689f", "#0f3d69"];
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };

function ramp(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), i = Math.min(Math.floor(place), RAMP.length - 2);
  const at = (color, k) => parseInt(color.slice(1 + 2 * k, 3 + 2 * k), 16);
  return `rgb(${[0, 1, 2].map((k) => Math.round(at(RAMP[i], k) + (place - i) * (at(RAMP[i + 1], k) - at(RAMP[i], k)))).join(",")})`;
}

const axisStyle = (title, more) => ({
  title: { text: title, font: { size: 12.5, color: SOFT }, standoff: 8 },
  gridcolor: HAIR, linecolor: LINE, zeroline: false, automargin: true, tickfont: { color: SOFT }, ...more,
});

function layout(more) {
  return {
    font: { family: "system-ui, sans-serif", size: 12.5, color: INK },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 14, t: 10, b: 44 }, showlegend: false, hovermode: "closest", hoverdistance: 24,
    dragmode: innerWidth < 720 ? false : "zoom",
    hoverlabel: { bgcolor: "#fff", bordercolor: LINE, font: { color: INK, size: 12.5 }, align: "left" }, ...more,
  };
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const shareAxis = { tickformat: ".0%" };
const bounds = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

// The range of most values: a few that ran away would flatten all others.
function calmRange(values) {
  const sorted = Float64Array.from(values).sort(), at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const [inner, outer] = [at(0.02), at(0.98)];
  if (high - low > 4 * (outer - inner) && outer > inner) {
    [low, high] = [Math.max(low, inner - 0.3 * (outer - inner)), Math.min(high, outer + 0.3 * (outer - inner))];
  }
  const pad = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - pad, high + pad];
}

let unit = "step";
function startCurves() {
  choice($("unit"), (value) => { unit = value; drawCurves(); });
  $("metric").addEventListener("change", drawCurves);
  drawCurves();
}

function drawCurves() {
  const [key, title, note] = data.metrics[$("metric").value], lines = data.curves[key];
  const smooth = key.startsWith("train/") && key !== "train/lr";
  $("metric-note").textContent = [note, smooth ? "smoothed over a twentieth of the run" : ""].filter(Boolean).join("; ") || "\u00a0";
  const groups = [[], ...COLORS.map(() => [])];  // the rest first, so that the best are drawn on top
  for (const line of lines) {
    const { setting } = data.trials[line[0]];
    groups[setting >= 0 && setting < COLORS.length ? setting + 1 : 0].push(line);
  }
  const many = groups[0].length > 60;
  const traces = groups.map((group, i) => {
    const x = [], y = [], text = [];
    for (const [number, steps, values] of group) {
      const { label, batch } = data.trials[number], name = escaped(label);
      for (let k = 0; k < steps.length; k++) {
        x.push(unit === "pairs" ? steps[k] * batch : steps[k]);
        y.push(values[k]);
        text.push(name);
      }
      x.push(null); y.push(null); text.push("");
    }
    const few = group.length && group.every((line) => line[1].length <= 12);
    return {
      x, y, text, type: "scatter", mode: few ? "lines+markers" : "lines", connectgaps: false,
      line: { color: i ? COLORS[i - 1] : FAINT, width: i ? 2.2 : 1 }, marker: { size: i ? 6 : 4 },
      opacity: i ? 0.95 : many ? 0.3 : 0.55,
      hovertemplate: `<b>%{text}</b><br>${unit} %{x}: %{y:${key.endsWith("accuracies") ? ".1%" : ".4g"}}<extra></extra>`,
    };
  }).filter((trace) => trace.x.length);
  const values = traces.flatMap((trace) => trace.y.filter((v) => v !== null));
  Plotly.react($("curves"), traces, layout({
    xaxis: axisStyle(unit === "pairs" ? "pairs" : "step", { rangemode: "tozero" }),
    yaxis: axisStyle(title, { range: calmRange(values), ...(key.endsWith("accuracies") ? shareAxis : { exponentformat: "e" }) }),
  }), CONFIG);
}

function drawEffect(box) {
  const { axis, points } = data.effects[box.dataset.effect], { name, values, numbers, scale } = data.axes[axis];
  const grid = scale === "grid";
  const x = points.map((p) => (grid ? escaped(values[p[0]]) : numbers[p[0]]));
  const reach = (p, at, end) => (p[end] === null ? 0 : Math.abs(p[end] - p[at]));
  const trace = (at, yaxis, color, tell) => ({
    x, y: points.map((p) => p[at]), yaxis, type: "scatter", mode: grid ? "lines+markers" : "markers",
    line: { color, width: 1, dash: "dot" }, marker: { color, size: 9 },
    error_y: {
      type: "data", symmetric: false, color, thickness: 1.6, width: 5,
      array: points.map((p) => reach(p, at, at + 2)), arrayminus: points.map((p) => reach(p, at, at + 1)),
    },
    text: points.map((p) => {
      const ends = p[at + 1] === null || p[at + 2] === null ? "" : ` [${tell(p[at + 1])} to ${tell(p[at + 2])}]`;
      return `<b>${escaped(name)} ${escaped(values[p[0]])}</b>, ${p[7]} setting${p[7] === 1 ? "" : "s"}<br>${tell(p[at])}${ends}`;
    }),
    hovertemplate: "%{text}<extra></extra>",
  });
  // All axes have one scale, so that their effects can be compared.
  const range = (at) => {
    const all = data.effects.flatMap((e) => e.points.flatMap((p) => [p[at], p[at + 1] ?? p[at], p[at + 2] ?? p[at]])), [low, high] = bounds(all);
    return [low - 0.08 * (high - low || 1), high + 0.08 * (high - low || 1)];
  };
  Plotly.newPlot(box, [trace(1, "y", COLORS[0], percent), trace(4, "y2", COLORS[2], MEASURES.margin.text)], layout({
    margin: { l: 52, r: 10, t: 6, b: 30 },
    xaxis: axisStyle("", {
      type: grid ? "category" : scale, anchor: "y2", showgrid: false, automargin: true, exponentformat: "e",
      ...(grid ? { categoryarray: values.map(escaped), tickvals: values.map(escaped), ticktext: values.map((v) => escaped(cut(v, 14))), range: [-0.5, values.length - 0.5] } : {}),
    }),
    yaxis: axisStyle("accuracy", { domain: [0.54, 1], range: range(1), nticks: 5, ...shareAxis }),
    yaxis2: axisStyle("margin, nats", { domain: [0, 0.46], range: range(4), nticks: 5 }),
  }), CONFIG);
}

let paretoMeasure = "accuracy";
function startPareto() {
  choice($("pareto-measure"), (value) => { paretoMeasure = value; drawPareto(); });
  drawPareto();
}

function drawPareto() {
  const { title, of, text } = MEASURES[paretoMeasure], there = data.settings.filter((s) => s.kl !== null);
  const front = [];
  let best = -Infinity;
  for (const s of [...there].sort((a, b) => a.kl - b.kl || of(b) - of(a))) if (of(s) > best) { best = of(s); front.push(s); }
  const tokens = there.map((s) => s.tokens).filter((n) => n !== null), [short, long] = bounds(tokens);
  const size = (s) => (s.tokens === null || long === short || !tokens.length ? 11 : 8 + 14 * Math.sqrt((s.tokens - short) / (long - short)));
  const told = (s) => `<b>${escaped(s.label)}</b><br>${text(of(s))} at KL ${MEASURES.kl.text(s.kl)}${s.tokens === null ? "" : `<br>${Math.round(s.tokens)} tokens an answer`}`;
  const dots = (chosen, color, opacity) => ({
    x: chosen.map((s) => s.kl), y: chosen.map(of), text: chosen.map(told), type: "scatter", mode: "markers",
    marker: { color, opacity, size: chosen.map(size), line: { color: "#fff", width: 1.2 } }, hovertemplate: "%{text}<extra></extra>",
  });
  const line = {
    x: front.map((s) => s.kl), y: front.map(of), type: "scatter", mode: "lines", hoverinfo: "skip",
    line: { color: COLORS[1], width: 1.6, shape: "hv", dash: "dot" },
  };
  const on = new Set(front), [low, high] = bounds(there.map(of)), [left, right] = bounds(there.map((s) => s.kl));
  const room = innerWidth < 720 ? 0 : front.length <= 6 ? front.length : 0;
  Plotly.react($("pareto"), [line, dots(there.filter((s) => !on.has(s)), "#8f949e", 0.6), dots(front, COLORS[1], 0.95)], layout({
    xaxis: axisStyle("KL to the reference, nats per token", { range: [left - 0.06 * (right - left || left || 1), right + 0.06 * (right - left || left || 1)] }),
    yaxis: axisStyle(title, { range: [low - 0.1 * (high - low || 1), high + 0.14 * (high - low || 1)], ...(paretoMeasure === "accuracy" ? shareAxis : {}) }),
    annotations: front.slice(0, room).map((s, i) => ({
      x: s.kl, y: of(s), text: escaped(cut(s.label, 44)), showarrow: false, yshift: 17, font: { size: 11.5, color: SOFT },
      xanchor: i === front.length - 1 && i ? "right" : i ? "center" : "left",
    })),
  }), CONFIG);
  $("pareto-note").textContent = `Orange: no other setting has more ${paretoMeasure} at this KL or less.` +
    (tokens.length ? ` Larger dots: longer answers, ${Math.round(short)} to ${Math.round(long)} tokens.` : "");
}

let heatMeasure = "accuracy";
function startHeat() {
  choice($("heat-measure"), (value) => { heatMeasure = value; drawHeat(); });
  const [across, down] = [$("heat-x"), $("heat-y")];
  let was = [across.value, down.value];
  for (const select of [across, down]) {
    select.addEventListener("change", () => {
      if (across.value === down.value) (select === across ? down : across).value = was[select === across ? 0 : 1];
      was = [across.value, down.value];
      drawHeat();
    });
  }
  drawHeat();
}

function drawHeat() {
  const x = Number($("heat-x").value), y = Number($("heat-y").value), [columns, rows] = [data.axes[x], data.axes[y]];
  const { of, text, title } = MEASURES[heatMeasure], cells = rows.cells.map(() => columns.cells.map(() => []));
  for (const s of data.settings) if (of(s) !== null) cells[rows.cell[s.at[y]]][columns.cell[s.at[x]]].push(of(s));
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  const [low, high] = bounds(cells.flat().filter((list) => list.length).map(mean));
  const table = make("table", "heat"), head = make("thead"), body = make("tbody");
  table.append(make("caption", "", columns.name), head, body);
  const heads = make("tr");
  const named = (name) => Object.assign(make("th", "", name), { title: name });
  heads.append(make("th", "", rows.name), ...columns.cells.map(named));
  head.append(heads);
  rows.cells.forEach((name, i) => {
    const row = make("tr");
    row.append(named(name));
    for (const list of cells[i]) {
      const cell = make("td", list.length ? "" : "none", list.length ? text(mean(list)) : "–");
      if (list.length) {
        const share = high > low ? (mean(list) - low) / (high - low) : 0.5;
        cell.style.background = ramp(share);
        cell.style.color = share > 0.55 ? "#fff" : INK;
      }
      cell.title = `${list.length} setting${list.length === 1 ? "" : "s"}`;
      row.append(cell);
    }
    body.append(row);
  });
  $("heat").replaceChildren(table);
  const others = data.axes.length > 2 ? ", the mean over the other axes" : "";
  $("heat-note").textContent = `Darker: higher ${title}${others}. A hatched cell has no finished setting.`;
}
