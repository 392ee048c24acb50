// The page: cards of losses on one side, what they do on the other.
const $ = id => document.getElementById(id);
const MOST = 6;
const PRESETS = {
  "Bonuses": ["cross_entropy", "encouraging(log_end=0)", "encouraging(log_end=0.5)", "encouraging", "encouraging(log_end=1)"],
  "Focus": ["cross_entropy", "mixed(focus=0)", "mixed(focus=0.2)", "mixed(focus=0.4)", "expectation"],
  "Rivals": ["cross_entropy", "focal", "halted_focal", "generalized_cross_entropy", "tamed_cross_entropy"],
  "Margins": ["cross_entropy", "hinge", "squared_hinge", "exponential"],
};
let items = [], runs = [], cursor = 700, pending = 0, said = 0;
const pAt = {}; // by chart, from a place in it to its p

// An element: h("button", {class: …, onclick: …}, children…)
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value);
  }
  element.append(...children);
  return element;
}

const swatch = slot => {
  const box = h("span", { className: "swatch", ariaHidden: "true" });
  box.innerHTML = `<svg width="34" height="10"><path class="line s${slot}" stroke-dasharray="${DASHES[slot]}" d="M0 5H34"/></svg>`;
  return box;
};
const freeSlot = () => [...Array(MOST).keys()].find(s => !items.some(i => i.slot === s));

function show(list) {
  items = [];
  for (const item of list.slice(0, MOST)) items.push({ ...item, slot: freeSlot() });
  cards();
}

function add(item) {
  if (items.length >= MOST) return say(`${MOST} losses are shown at most; remove one first.`);
  items.push({ ...item, slot: freeSlot() });
  cards();
}

function say(text) {
  $("status").textContent = text;
  clearTimeout(said);
  said = setTimeout(() => { $("status").textContent = ""; }, 4000);
}

// ---- cards ----

function cards(focus = null) {
  $("cards").replaceChildren(...items.map(card));
  $("add").disabled = items.length >= MOST;
  if (focus !== null) $("cards").children[focus]?.querySelector("select").focus();
  refresh();
}

function card(item, place) {
  const { entry } = item;
  const choice = h("select", { ariaLabel: `Loss ${place + 1}`, onchange: e => { change(place, ENTRIES[e.target.value]); } },
    ...ENTRIES.map((e, i) => h("option", { value: i, selected: e === entry }, e.title)));
  const remove = h("button", { className: "quiet", ariaLabel: `Remove loss ${place + 1}, ${entry.title}`, title: "Remove", onclick: () => { items.splice(place, 1); cards(Math.max(0, place - 1)); } }, "×");
  const box = h("article", { className: "card" }, h("header", {}, swatch(item.slot), choice, remove));
  if (entry.formula) box.append(h("p", { className: "formula" }, `ψ = ${entry.formula}`));
  box.append(h("p", { className: "about" }, entry.about || "A loss given by its spec."));
  if (entry === OWN) box.append(formulaField(item));
  box.append(...entry.controls.map(control => slider(item, control)));
  box.append(line(item, "python", "Python"), line(item, "spec", "Spec"), h("p", { className: "relations" }));
  const more = [
    ...entry.identities.map(i => h("li", {}, h("code", {}, i.text), " ", h("button", { className: "quiet", onclick: () => both(item, i) }, "Show both"))),
    ...(entry.note ? [h("li", {}, entry.note)] : []), ...(entry.source ? [h("li", {}, `Source: ${entry.source}.`)] : []),
    ...(entry.isPsi ? [] : [h("li", {}, "Not a function of p alone: shown where the wrong classes share the rest evenly.")]),
  ];
  if (more.length) box.append(h("details", {}, h("summary", {}, "Identities and source"), h("ul", {}, ...more)));
  return box;
}

function change(place, entry) {
  items[place] = { ...placed(entry), slot: items[place].slot };
  cards(place);
}

function slider(item, control) {
  const text = () => { const v = item.values[control.name]; return v === null ? "off" : typeof v === "boolean" ? (v ? "yes" : "no") : String(v); };
  const output = h("output", {}, text());
  const input = h("input", {
    type: "range", min: 0, max: control.stops.length - 1, step: 1, ariaValueText: text(),
    "data-parameter": control.name, title: `${control.meaning}; in ${control.domain}`,
    oninput: e => {
      item.values[control.name] = control.stops[Number(e.target.value)];
      output.textContent = e.target.ariaValueText = text();
      refresh();
    },
  });
  input.value = control.stops.indexOf(item.values[control.name]);
  return h("label", { className: "control" }, h("span", {}, h("b", {}, control.name), ` ${control.meaning}`), input, output);
}

function formulaField(item) {
  const error = h("p", { className: "error", role: "alert" });
  const input = h("input", { type: "text", value: item.expression, spellcheck: false, autocapitalize: "off", "aria-label": "Your ψ, in a and p", oninput: e => {
    try {
      parsed(e.target.value);
      error.textContent = "";
      input.ariaInvalid = "false";
      item.expression = e.target.value;
      refresh();
    } catch (problem) {
      error.textContent = `${problem.message} Shown is the last ψ that could be read.`;
      input.ariaInvalid = "true";
    }
  } });
  return h("div", { className: "own" }, input, h("p", { className: "hint" }, "In a and p: + − * / **, < >, exp log log1p sqrt tanh sin cos abs sigmoid softplus logsigmoid relu min max where(c, x, y)."), error);
}

function line(item, kind, name) {
  const code = h("code", { className: kind });
  const copy = h("button", { className: "quiet", ariaLabel: `Copy the ${name} line`, onclick: () => copied(code.textContent) }, "Copy");
  return h("p", { className: "code" }, h("span", { className: "kind" }, name), code, copy);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea", { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  say(`Copied: ${text}`);
}

// The left side where the card is, the right side beside it.
function both(item, identity) {
  if (!identity.left || !identity.right) return;
  const [left, right] = [identity.left, identity.right].map(s => placed(entryFor(s.name, s.values), s.values));
  const place = items.indexOf(item);
  items[place] = { ...left, slot: item.slot };
  if (!items.some(i => specOf(i) === specOf(right))) add(right); else cards(place);
}

// ---- what they do ----

function refresh() {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(update);
}

function update() {
  for (const item of items) {
    const spec = specOf(item); // other losses than the one that moves are as they were
    if (item.known !== spec) Object.assign(item, { curves: curvesOf(item), known: spec });
  }
  items.forEach((item, i) => {
    const box = $("cards").children[i];
    const spec = box.querySelector(".spec");
    box.querySelector(".python").textContent = pythonOf(item);
    spec.textContent = specOf(item);
    spec.parentElement.hidden = item.entry === OWN;
    const whole = item.curves.a.value.every(Number.isFinite) && item.curves.a.slope.every(Number.isFinite);
    box.querySelector(".relations").textContent = whole ? relations(item, i) : `Not finite at some a between ${number(A[0])} and ${A.at(-1)}.`;
  });
  charts();
  reading();
  examples();
  distribution();
  remember();
}

function relations(item, place) {
  const found = items.slice(0, place).map(other => [other, relation(item.curves, other.curves)]).filter(([, r]) => r);
  return found.map(([other, { factor, offset }]) => {
    const times = factor === 1 ? "" : `${number(factor)} × `;
    const shift = offset === 0 ? "" : ` ${offset > 0 ? "+" : "−"} ${number(Math.abs(offset))}`;
    const same = factor === 1 && offset !== 0 ? ": the same gradient" : "";
    return `= ${times}${specOf(other)}${shift}${same}`;
  }).join("; ");
}

function charts() {
  const lines = (grid, name, part = y => y) => items.map(i => ({ slot: i.slot, x: grid === "p" ? P : A, y: part(i.curves[grid][name]) }));
  const pull = lines("p", "slope", y => y.map(Math.abs)), loss = lines("p", "value"), psi = lines("a", "value");
  const names = items.map(specOf).join(", ") || "no loss";
  const p = P[cursor - 1], a = LOGITS[cursor - 1];
  const inner = y => y.slice(19, 980);
  pAt.pull = draw($("pull"), { series: pull, xRange: [0, 1], yRange: rangeOf(pull.map(s => inner(s.y)), 3), xLabel: "p, the probability of the true class", yLabel: "|∂L/∂z_y|", cursor: p, seen: `Gradient of the true class's logit against p, for ${names}` });
  pAt.loss = draw($("loss"), { series: loss, xRange: [0, 1], yRange: rangeOf(loss.map(s => inner(s.y)), 5), xLabel: "p", yLabel: "loss, nats", cursor: p, seen: `Loss against p, for ${names}` });
  draw($("psi"), { series: psi, xRange: [-8, 8], yRange: rangeOf(psi.map(s => s.y.slice(80, 401)), 8), xLabel: "a = log(p/(1 − p)), the log-odds", yLabel: "ψ(a), nats", cursor: Math.abs(a) <= 8 ? a : null, seen: `Loss against log-odds, for ${names}` });
}

function reading() {
  const k = cursor - 1, base = items.find(i => i.entry.name === "cross_entropy")?.curves.volume ?? 0.5;
  $("at").textContent = `p = ${P[k].toFixed(3)}, a = ${LOGITS[k].toFixed(2).replace("-", "−")}`;
  $("p").ariaValueText = $("at").textContent;
  const rows = items.map(({ slot, curves, ...item }) => {
    const size = curves.p.slope.map(Math.abs), peak = size.reduce((best, s, i) => s > size[best] ? i : best, 0);
    const volume = curves.volume === null ? "–" : curves.volume === Infinity ? "∞" : `${number(curves.volume)} (${number(Number((curves.volume / base).toPrecision(3)))} ×)`;
    return row(slot, specOf(item), [number(curves.p.value[k]), number(size[k]), peak === 0 ? "→ 0" : peak === P.length - 1 ? "→ 1" : P[peak].toFixed(2), volume]);
  });
  $("reading").tBodies[0].replaceChildren(...rows);
}

const row = (slot, name, cells) => h("tr", {}, h("th", { scope: "row" }, swatch(slot), h("span", {}, name)), ...cells.map(c => h("td", {}, c)));

function examples() {
  const most = Math.max(0.1, ...items.flatMap(i => i.curves.gradients.flat().map(Math.abs)).filter(x => x < 1e3));
  $("examples").replaceChildren(...DATA.examples.map((example, e) => {
    const head = h("tr", {}, h("th", { scope: "col" }, "logit"), ...example.logits.map((z, j) => h("th", { scope: "col" }, `${number(z)}${j === 0 ? " ✓" : ""}`)));
    const body = items.map(i => row(i.slot, specOf(i), i.curves.gradients[e].map(g => {
      const bar = h("span", { className: `bar s${i.slot}` });
      bar.style.width = `${Math.min(50, 50 * Math.abs(g) / most)}%`;
      bar.style[g < 0 ? "right" : "left"] = "50%";
      return h("span", { className: "gradient" }, bar, h("span", {}, number(g)));
    })));
    return h("div", { className: "scroll" }, h("table", {}, h("caption", {}, `${example.title}: p = ${example.p.toFixed(3)}, a = ${example.a.toFixed(2).replace("-", "−")}`), h("thead", {}, head), h("tbody", {}, ...body)));
  }));
}

// ---- a run's log-odds ----

function distribution() {
  const run = runs[Number($("run").value)];
  $("distribution").hidden = !run;
  if (!run) return;
  const { values } = run, bins = 48;
  const low = Math.max(-25, Math.floor(values[0])), high = Math.min(40, Math.ceil(values[values.length - 1])), step = (Math.max(low + 1, high) - low) / bins;
  const beyond = [values[0] < low && `the first bar holds all below ${-low ? `−${-low}` : 0}`, values[values.length - 1] > high && `the last bar all above ${high}`];
  const xLabel = ["a, the log-odds of the true class", ...beyond.filter(Boolean)].join("; ");
  const bin = a => Math.min(bins - 1, Math.max(0, Math.floor((a - low) / step)));
  const counted = new Float64Array(bins);
  values.forEach(a => { counted[bin(a)] += 1 / values.length; });
  const looked = items.filter(i => i.curves.at).map(i => ({ item: i, ...attention(i.curves, values) }));
  const middle = Float64Array.from({ length: bins }, (_, b) => low + (b + 0.5) * step);
  const series = looked.map(({ item, pull, total }) => {
    const y = new Float64Array(bins);
    values.forEach((a, n) => { y[bin(a)] += total > 0 ? pull[n] / total : 0; });
    return { slot: item.slot, x: middle, y };
  });
  const bars = [...counted].map((y, b) => ({ from: low + b * step, to: low + (b + 1) * step, y }));
  draw($("histogram"), { series, bars, xRange: [low, Math.max(low + 1, high)], yRange: rangeOf([counted, ...series.map(s => s.y)], 1), xLabel, yLabel: "share", seen: `Shares of examples (bars) and of each loss's gradient (lines), ${run.title}` });
  bands(looked, values, run);
}

function bands(looked, values, run) {
  const names = DATA.bands.slice(1).map((p, i) => `${DATA.bands[i]}–${p}`);
  const percent = x => `${(100 * x).toFixed(1)} %`;
  const counts = new Float64Array(names.length);
  values.forEach(a => { counts[bandOf(a)] += 1; });
  const head = h("tr", {}, h("th", { scope: "col" }, "p of the true class"), h("th", { scope: "col", title: "The smallest share of the examples that carries half of the gradient" }, "half of it on"), ...names.map(n => h("th", { scope: "col" }, n)));
  const first = h("tr", {}, h("th", { scope: "row" }, "examples"), h("td", {}, "–"), ...[...counts].map(c => h("td", {}, percent(c / values.length))));
  const rows = looked.map(({ item, shares, half }) => row(item.slot, specOf(item), [percent(half), ...[...shares].map(percent)]));
  $("bands").replaceChildren(h("caption", {}, `${run.title}: ${run.count} log-odds; share of the gradient by p`), h("thead", {}, head), h("tbody", {}, first, ...rows));
  const left = items.filter(i => !i.curves.at).map(specOf);
  $("left").textContent = left.length ? `Left out, since they are not functions of the log-odds alone: ${left.join(", ")}.` : "";
}

function addRun(title, count, values) {
  runs.push({ title, count, values: values.sort() });
  $("run").append(h("option", { value: runs.length - 1 }, title));
  $("run").value = runs.length - 1;
}

// ---- the address bar keeps what is shown ----

function remember() {
  try { history.replaceState(null, "", `#${encodeURIComponent(items.map(specOf).join(" | "))}`); } catch { /* not from a file, in some browsers */ }
}

function remembered() {
  try {
    const found = decodeURIComponent(location.hash.slice(1)).split(" | ").filter(Boolean).map(itemOf);
    return found.length && found.every(Boolean) ? found : null;
  } catch { return null; }
}

// ---- start ----

for (const [name, specs] of Object.entries(PRESETS)) $("presets").append(h("button", { onclick: () => show(specs.map(itemOf)) }, name));
$("add").addEventListener("click", () => { add(placed(DATA.losses.find(e => !items.some(i => i.entry === e)) ?? OWN)); $("cards").lastElementChild.querySelector("select").focus(); });
$("own").addEventListener("click", () => { add(placed(OWN)); $("cards").lastElementChild.querySelector("input")?.focus(); });
$("p").addEventListener("input", e => { cursor = Number(e.target.value); charts(); reading(); });
for (const id of ["pull", "loss"]) $(id).addEventListener("pointermove", e => {
  cursor = Math.min(999, Math.max(1, Math.round(1000 * pAt[id](e))));
  $("p").value = cursor;
  charts();
  reading();
});
$("run").addEventListener("change", refresh);
$("file").addEventListener("change", async e => {
  for (const file of e.target.files) {
    try {
      const values = await logOddsOf(file);
      if (!values.length) throw Error("It holds no finite log-odds.");
      addRun(file.name, values.length, values);
      $("file-error").textContent = "";
    } catch (problem) { $("file-error").textContent = `${file.name}: ${problem.message}`; }
  }
  refresh();
});
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
new ResizeObserver(refresh).observe($("pull"));
addEventListener("hashchange", () => { const list = remembered(); if (list) show(list); });
for (const run of DATA.runs) addRun(run.title, run.count, unpacked(run.values));
if (DATA.runs.length) $("run").value = 0;
show(remembered() ?? DATA.shown.map(s => placed(entryFor(s.name, s.values), s.values)));
