"use strict";
// Charts and the list of responses. Model output is only inserted as text nodes.
const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set(); // indices of hidden runs
const tip = document.getElementById("tip");

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const color = (run) => `var(--c${run % 8})`;
const number = (x, digits = 4) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(digits))));

// --- tooltip ---

function showTip(event, lines) {
  tip.replaceChildren(...lines);
  tip.hidden = false;
  tip.style.left = "0"; // measured at the left edge, where the window does not narrow it
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - box.width - 6);
  const above = event.clientY - box.height - 12;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${above > 6 ? above : event.clientY + 18}px`;
}

function tipLine(label, value, run) {
  const line = element("div");
  if (run !== undefined) line.append(element("span", { class: `key c${run % 8}` }));
  line.append(`${label} `, element("b", {}, value));
  return line;
}

// --- charts ---

const HEIGHT = 190, LEFT = 46, RIGHT = 12, TOP = 8, BOTTOM = 34;
const charts = [];

function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((x) => x * power).find((x) => x >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found;
}

function path(xs, ys, x, y) {
  let text = "", pen = "M";
  xs.forEach((at, i) => {
    if (ys[i] === null) pen = "M";
    else (text += `${pen}${x(at).toFixed(1)} ${y(ys[i]).toFixed(1)}`), (pen = "L");
  });
  return text;
}

// options: title, xlabel, log (log2 x axis), series of {run, x, y} and optionally smooth (running mean),
// low and high (band), label, faint (dashed).
function lineChart(host, options) {
  const figure = element("figure", {}, element("figcaption", {}, options.title));
  host.append(figure);
  const draw = () => {
    figure.querySelector("svg")?.remove();
    const width = Math.max(260, figure.clientWidth);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": options.title });
    figure.append(svg);
    const series = options.series.filter((s) => !hidden.has(s.run));
    const scale = options.log ? Math.log2 : (v) => v;
    const xs = series.flatMap((s) => s.x), ys = series.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]);
    const known = ys.filter((v) => v !== null);
    if (!known.length) return;
    let [low, high] = [Math.min(...known), Math.max(...known)];
    const margin = (high - low || Math.abs(high) || 1) * 0.06;
    [low, high] = [low >= 0 && low < 6 * margin ? 0 : low - margin, high + margin];
    const [first, last] = [scale(Math.min(...xs)), scale(Math.max(...xs))];
    const x = (v) => LEFT + ((scale(v) - first) / (last - first || 1)) * (width - LEFT - RIGHT);
    const y = (v) => TOP + ((high - v) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    for (const v of ticks(low, high, 5)) {
      svg.append(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }));
      svg.append(drawn("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, number(v, 3)));
    }
    const powers = options.log ? [...new Set(xs)].sort((a, b) => a - b) : ticks(first, last, width / 80);
    for (const v of powers) svg.append(drawn("text", { x: x(v), y: HEIGHT - 19, "text-anchor": "middle" }, number(v)));
    svg.append(drawn("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    const middle = (LEFT + width - RIGHT) / 2;
    svg.append(drawn("text", { x: middle, y: HEIGHT - 4, "text-anchor": "middle" }, options.xlabel));
    for (const s of series) {
      const faint = s.faint ? " faint" : "";
      if (s.low) {
        const area = path([...s.x, ...[...s.x].reverse()], [...s.high, ...[...s.low].reverse()], x, y) + "Z";
        svg.append(drawn("path", { class: `area${faint}`, d: area, style: `fill: ${color(s.run)}` }));
      }
      const style = `stroke: ${color(s.run)}`;
      if (s.smooth) svg.append(drawn("path", { class: "series raw", d: path(s.x, s.y, x, y), style }));
      svg.append(drawn("path", { class: `series${faint}`, d: path(s.x, s.smooth ?? s.y, x, y), style }));
      if (s.low) {
        s.x.forEach((at, i) => svg.append(drawn("circle", { cx: x(at), cy: y(s.y[i]), r: 2.6, style: `fill: ${color(s.run)}` })));
      }
    }
    const cursor = drawn("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    svg.append(cursor);
    const all = [...new Set(xs)];
    const look = (event) => {
      const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
      const near = all.reduce((a, b) => (Math.abs(x(b) - at) < Math.abs(x(a) - at) ? b : a));
      cursor.setAttribute("x1", x(near));
      cursor.setAttribute("x2", x(near));
      cursor.setAttribute("visibility", "visible");
      const lines = [element("div", {}, `${options.xlabel} ${near}`)];
      for (const s of series) {
        // Long runs are binned, so that two runs may have no step in common.
        if (near < s.x[0] || near > s.x.at(-1)) continue;
        const i = s.x.reduce((best, v, j) => (Math.abs(v - near) < Math.abs(s.x[best] - near) ? j : best), 0);
        let value = number(s.y[i]);
        if (s.x[i] !== near) value += ` at ${s.x[i]}`;
        if (s.smooth && s.smooth[i] !== null) value += ` (mean ${number(s.smooth[i])})`;
        if (s.low) value += ` [${number(s.low[i], 3)}, ${number(s.high[i], 3)}]`;
        if (s.problems) value += `, ${s.problems[i]} problems`;
        lines.push(tipLine(s.label ?? data.runs[s.run], value, s.run));
      }
      showTip(event, lines);
    };
    svg.addEventListener("pointermove", look);
    svg.addEventListener("pointerdown", look);
    svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      tip.hidden = true;
    });
  };
  charts.push(draw);
}

// Means with intervals, one row each.
function intervalChart(host, { run, rows }) {
  const place = data.runs.indexOf(run);
  const figure = element("figure", {}, element("figcaption", {}, run));
  host.append(figure);
  charts.push(() => {
    figure.hidden = hidden.has(place);
    figure.querySelector("svg")?.remove();
    const width = Math.max(260, figure.clientWidth), row = 24, left = 128, right = 50;
    const height = rows.length * row + 34;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `mean entropies, ${run}` });
    const high = Math.max(...rows.map((r) => r.high ?? r.mean)) * 1.05 || 1;
    const x = (v) => left + (v / high) * (width - left - right);
    for (const v of ticks(0, high, (width - left) / 70)) {
      svg.append(drawn("line", { class: "grid", x1: x(v), x2: x(v), y1: 4, y2: rows.length * row + 4 }));
      svg.append(drawn("text", { x: x(v), y: rows.length * row + 17, "text-anchor": "middle" }, number(v, 3)));
    }
    svg.append(drawn("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "mean entropy (nats)"));
    rows.forEach((r, i) => {
      const y = i * row + row / 2 + 4, ink = r.other ? "var(--c7)" : color(place);
      const group = drawn("g", {});
      group.append(drawn("rect", { x: 0, y: y - row / 2, width, height: row, fill: "transparent" }));
      group.append(drawn("text", { class: "name", x: left - 8, y: y + 4, "text-anchor": "end" }, r.label));
      if (r.low !== null) {
        group.append(drawn("line", { class: "whisker", x1: x(r.low), x2: x(r.high), y1: y, y2: y, style: `stroke: ${ink}` }));
      }
      group.append(drawn("circle", { cx: x(r.mean), cy: y, r: 4.5, style: `fill: ${ink}` }));
      group.append(drawn("text", { x: width, y: y + 4, "text-anchor": "end" }, r.count.toLocaleString("en")));
      group.addEventListener("pointermove", (event) =>
        showTip(event, [
          tipLine(r.label, `${number(r.mean, 3)} [${number(r.low, 3)}, ${number(r.high, 3)}]`),
          tipLine("count", r.count.toLocaleString("en")),
        ]));
      group.addEventListener("pointerleave", () => (tip.hidden = true));
      svg.append(group);
    });
    figure.append(svg);
  });
}

// Map of sentences; the rare ones are drawn last, on top.
function sentenceMap(host, { run, groups }) {
  const place = data.runs.indexOf(run), height = 300, margin = 12;
  const inks = { base: "var(--c7)", common: "var(--c5)", rare: "var(--c1)" };
  const counts = Object.entries(groups).map(([name, points]) => {
    const key = element("span", { class: "key", style: `background: ${inks[name]}` });
    return element("span", { class: "kind" }, key, `${name} ${points.length.toLocaleString("en")} `);
  });
  const figure = element("figure", { class: "map" }, element("figcaption", {}, `sentences, ${run} `, ...counts));
  host.append(figure);
  const points = Object.entries(groups).flatMap(([name, list]) => list.map((point) => [name, ...point]));
  const range = (i) => points.reduce(([a, b], p) => [Math.min(a, p[i]), Math.max(b, p[i])], [Infinity, -Infinity]);
  const [left, right] = range(1), [low, high] = range(2);
  charts.push(() => {
    figure.hidden = hidden.has(place);
    figure.querySelector("svg")?.remove();
    const width = Math.max(260, figure.clientWidth);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `map of sentences, ${run}` });
    const x = (v) => margin + ((v - left) / (right - left || 1)) * (width - 2 * margin);
    const y = (v) => margin + ((high - v) / (high - low || 1)) * (height - 2 * margin);
    for (const [name, px, py] of points) {
      const size = name === "rare" ? 3.4 : 2.2;
      svg.append(drawn("circle", { cx: x(px).toFixed(1), cy: y(py).toFixed(1), r: size, opacity: 0.6, style: `fill: ${inks[name]}` }));
    }
    const mark = drawn("circle", { class: "mark", r: 6, visibility: "hidden" });
    svg.append(mark);
    const look = (event) => {
      const box = svg.getBoundingClientRect(), scale = width / box.width;
      const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      const far = (p) => (x(p[1]) - at[0]) ** 2 + (y(p[2]) - at[1]) ** 2;
      const [name, px, py, text, entropy, distance] = points.reduce((a, b) => (far(b) < far(a) ? b : a));
      mark.setAttribute("cx", x(px));
      mark.setAttribute("cy", y(py));
      mark.setAttribute("visibility", "visible");
      const lines = [element("div", {}, text), tipLine("", name === "base" ? "base sentence" : `${name} sentence`)];
      if (entropy !== undefined) lines.push(tipLine("entropy", `${number(entropy, 3)} nats`), tipLine("distance", number(distance, 3)));
      showTip(event, lines);
    };
    svg.addEventListener("pointermove", look);
    svg.addEventListener("pointerdown", look);
    svg.addEventListener("pointerleave", () => {
      mark.setAttribute("visibility", "hidden");
      tip.hidden = true;
    });
    figure.append(svg);
  });
}

// --- responses ---

const PAGE = 12;

function values(row, shade) {
  if (shade === "entropy") return row.entropies;
  if (shade === "surprise") return row.log_probs?.map((x) => -x);
  return row.after && row.entropies.map((_, i) => Math.abs(of(row.after, i) - of(row.before, i)));
}

// A list of one number is the value of all tokens.
const of = (list, i) => (list.length === 1 ? list[0] : list[i]);

function responses() {
  const form = document.getElementById("filters");
  if (!form) return;
  const list = document.getElementById("list"), more = document.getElementById("more");
  let rows = [], source, most = 1, shown = 0;

  function pieces(row) {
    return row.tokens.map((token) => source.pieces[token]);
  }

  function text(row) {
    row.search ??= `${source.prompts[row.prompt]}\n${row.tokens ? pieces(row).map((p) => p[0]).join("") : row.text}`.toLowerCase();
    return row.search;
  }

  function card(row) {
    const facts = [
      row.step === null ? null : `step ${row.step}`,
      `problem ${row.problem}, sample ${row.sample}`,
      `${row.length} tokens${row.finish ? `, ended by ${row.finish}` : ""}`,
      `mean entropy ${number(row.entropy, 3)}`,
      row.log_prob === null ? null : `log-prob ${number(row.log_prob, 4)}`,
      row.answer === null ? null : `answer ${row.answer}`,
      row.reward === null ? null : `reward ${number(row.reward)}`,
      ...Object.entries(row.rewards).map(([name, value]) => `${name} ${value === null ? "none" : number(value)}`),
      row.before && row.before.length === 1 ? `advantage before shaping ${number(row.before[0])}` : null,
      row.before ? null : "advantage unknown",
    ].filter((fact) => fact !== null);
    const badge = element("span", { class: `badge ${row.verdict}` }, row.verdict);
    const head = element("header", {}, badge, ...facts.map((fact) => element("span", {}, fact)));
    const body = element("div", { class: "text" });
    if (!row.tokens) body.append(row.text);
    const shading = row.tokens && values(row, form.shade.value);
    const answers = new Map(row.observations);  // of an environment, by the number of tokens before
    (row.tokens ? pieces(row) : []).forEach(([piece, special], i) => {
      if (answers.has(i)) body.append(element("span", { class: "observation" }, answers.get(i)));
      const span = element("span", special ? { class: "special" } : {}, piece);
      span.number = i;
      const share = shading ? Math.min(1, Math.max(0, shading[i]) / most) : 0;
      if (share > 0.01) span.style.background = `rgb(var(--heat) / ${(0.85 * share).toFixed(3)})`;
      body.append(span);
    });
    if (row.length > row.entropies.length) body.append(` … ${row.length - row.entropies.length} more tokens`);
    body.row = row;
    return element("article", { class: "card" }, head, element("div", { class: "prompt" }, source.prompts[row.prompt]), body);
  }

  function showMore() {
    list.append(...rows.slice(shown, shown + PAGE).map(card));
    shown = Math.min(rows.length, shown + PAGE);
    more.hidden = shown >= rows.length;
  }

  function filter() {
    source = data.samples[Number(form.source.value)];
    const [verdict, wanted, shade] = [form.verdict.value, form.text.value.toLowerCase(), form.shade.value];
    const judged = ["correct", "wrong", "unparsable"];
    rows = source.rows.filter((row) =>
      (!verdict || (verdict === "other" ? !judged.includes(row.verdict) : row.verdict === verdict)) &&
      (!wanted || text(row).includes(wanted)));
    const order = form.order.value;
    if (order) rows = [...rows].sort((a, b) => (b[order] ?? 0) - (a[order] ?? 0));
    const shades = source.rows.flatMap((row) => values(row, shade) ?? []).sort((a, b) => a - b);
    most = shades.length ? shades[Math.floor(0.99 * (shades.length - 1))] || 1e-9 : 1;
    const unit = shade === "bonus" ? "" : " nats";
    const scale = document.getElementById("scale");
    scale.replaceChildren(`${rows.length} of ${source.rows.length} responses.`);
    if (shades.length) scale.append(` ${form.shade.selectedOptions[0].text}: 0`, element("i"), `${number(most, 3)}${unit} and more (99th percentile)`);
    list.replaceChildren();
    shown = 0;
    showMore();
  }

  function look(event) {
    const span = event.target, row = span.parentElement?.row;
    list.querySelector(".on")?.classList.remove("on");
    if (!row || span.number === undefined) return void (tip.hidden = true);
    span.classList.add("on");
    const i = span.number, [piece, special] = pieces(row)[i];
    const lines = [
      tipLine(special ? "token without text" : "token", special ? piece : JSON.stringify(piece)),
      tipLine("entropy", `${number(row.entropies[i])} nats`),
    ];
    if (row.log_probs) lines.push(tipLine("log-prob", `${number(row.log_probs[i])} (p = ${number(Math.exp(row.log_probs[i]), 3)})`));
    if (row.before) {
      const [before, after] = [of(row.before, i), of(row.after, i)];
      lines.push(tipLine("advantage", `${number(before)} → ${number(after)}`));
      lines.push(tipLine("by shaping", `${after >= before ? "+" : ""}${number(after - before, 3)}`));
    }
    showTip(event, lines);
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", showMore);
  list.addEventListener("pointerover", look);
  list.addEventListener("click", look);
  list.addEventListener("pointerleave", () => (tip.hidden = true));
  addEventListener("scroll", () => (tip.hidden = true), { passive: true });
  filter();
}

// --- page ---

const host = (name) => document.getElementById(`charts-${name}`);
const redraw = () => charts.forEach((draw) => draw());
for (const panel of data.training) lineChart(host("training"), { ...panel, xlabel: "step" });
if (data.pass_at_k.length) {
  lineChart(host("evaluation"), { title: "Pass@K", xlabel: "K", log: true, series: data.pass_at_k });
  for (const panel of data.over_steps) lineChart(host("evaluation"), { ...panel, xlabel: "step" });
}
for (const groups of data.analysis) intervalChart(host("analysis"), groups);
for (const map of data.maps) sentenceMap(host("analysis"), map);
for (const button of document.querySelectorAll("#legend button")) {
  button.addEventListener("click", () => {
    const run = Number(button.dataset.run), off = !hidden.has(run);
    if (off) hidden.add(run);
    else hidden.delete(run);
    button.setAttribute("aria-pressed", String(!off));
    redraw();
  });
}
redraw();
let last = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== last) redraw();
  last = innerWidth;
});
responses();
