// The losses on the page: where their controls stand, what they are there, how they are written.
const DATA = JSON.parse(document.getElementById("data").textContent);
const OWN = { name: "own", title: "your own ψ", controls: [], isPsi: true, formula: "", about: "Any function of the log-odds a, or of p.", note: "", source: "", identities: [] };
const ENTRIES = [...DATA.losses, OWN];
const P = Float64Array.from(DATA.p), A = Float64Array.from(DATA.a);
const LOGITS = P.map(p => Math.log(p / (1 - p)));

// A loss with its controls where they start, or at the given values.
function placed(entry, values = {}, expression = "softplus(-a) + 0.3*(1 - p)") {
  const at = Object.fromEntries(entry.controls.map(c => [c.name, nearest(c, c.name in values ? values[c.name] : c.start)]));
  return { entry, values: at, expression: entry === OWN ? expression : null };
}

function nearest(control, value) {
  if (value === null || typeof value === "boolean") return control.stops.includes(value) ? value : control.start;
  const stops = control.stops.filter(s => s !== null);
  return stops.reduce((best, s) => Math.abs(s - value) < Math.abs(best - value) ? s : best, stops[0]);
}

// The entry of a name that has controls for all these values.
function entryFor(name, values) {
  const named = DATA.losses.filter(e => e.name === name);
  const set = Object.keys(values).filter(k => values[k] !== null);
  return named.find(e => set.every(k => e.controls.some(c => c.name === k))) ?? named[0];
}

// The place of the gridded controls' stops in the entry's list; the last control moves fastest.
function position({ entry, values }) {
  return entry.controls.filter(c => c.input === null).reduce((n, c) => n * c.stops.length + c.stops.indexOf(values[c.name]), 0);
}

// Its steps and open inputs, or null for one that is tabulated.
function programOf(item) {
  if (item.entry === OWN) return { steps: parsed(item.expression).steps, inputs: [] };
  if (item.entry.tables) return null;
  const [form, ...constants] = item.entry.cells[item.entry.grid[position(item)]];
  const open = item.entry.controls.filter(c => c.input !== null).sort((x, y) => x.input - y.input);
  return { steps: filled(DATA.forms[form], constants), inputs: open.map(c => item.values[c.name]) };
}

// Loss and slope over the grids of p and of a; V, the gradient's volume, where the loss is ψ(a).
function curvesOf(item) {
  const program = programOf(item);
  if (!program) {
    const table = item.entry.tables[position(item)];
    const [p, a] = [table.p, table.a].map(([value, slope]) => ({ value: Float64Array.from(value), slope: Float64Array.from(slope) }));
    return { p, a, volume: null, gradients: table.gradients };
  }
  const at = points => evaluate(program.steps, program.inputs, points);
  const examples = at(DATA.examples.map(e => e.a)).slope;
  return {
    p: at(LOGITS), a: at(A), volume: volumeOf(at), at,
    gradients: DATA.examples.map((e, i) => e.direction.map(d => d * examples[i])),
  };
}

// V = ∫ |ψ'(a)| σ(a)σ(−a) da, by the midpoint rule; infinite where the hopeless end alone is.
const FINE = Float64Array.from({ length: 40000 }, (_, i) => -40 + (i + 0.5) / 500);
const WEIGHT = FINE.map(a => sigmoid(a) * sigmoid(-a) / 500);
function volumeOf(at) {
  const parts = at(FINE).slope.map((s, i) => Math.abs(s) * WEIGHT[i]);
  const most = parts.reduce((x, y) => Math.max(x, y), 0);
  return parts[0] > 1e-9 * most ? Infinity : parts.reduce((x, y) => x + y, 0);
}

const literal = (value, python) => typeof value === "boolean" ? (python ? (value ? "True" : "False") : String(value)) : String(value);
function settings({ entry, values }, python) {
  return entry.controls.filter(c => values[c.name] !== null && values[c.name] !== c.default)
    .map(c => `${c.name}=${literal(values[c.name], python)}`).join(", ");
}

// The spec string that the command line and losslab.loss take; for an own ψ, its formula.
function specOf(item) {
  if (item.entry === OWN) return `ψ: ${item.expression}`;
  if (item.entry.spec) return item.entry.spec;
  const set = settings(item, false);
  return set ? `${item.entry.name}(${set})` : item.entry.name;
}

function pythonOf(item) {
  if (item.entry === OWN) return `losslab.OddsLoss(lambda a: ${parsed(item.expression).python})`;
  if (item.entry.spec) return `losslab.loss(${JSON.stringify(item.entry.spec)})`;
  return `losslab.${item.entry.module}(${settings(item, true)})`;
}

// Back from a spec, as the address bar keeps it; null for what is none.
function itemOf(spec) {
  if (spec.startsWith("ψ: ")) return placed(OWN, {}, spec.slice(3));
  const whole = DATA.losses.find(e => e.spec === spec);
  if (whole) return placed(whole);
  const match = /^(\w+)(?:\((.*)\))?$/.exec(spec.trim());
  if (!match || !DATA.losses.some(e => e.name === match[1] && !e.spec)) return null;
  const values = {};
  for (const part of (match[2] ?? "").split(",").filter(s => s.trim())) {
    const [key, text] = part.split("=").map(s => s.trim());
    values[key] = text === "true" ? true : text === "false" ? false : text === "none" ? null : Number(text);
    if (Number.isNaN(values[key])) return null;
  }
  return placed(entryFor(match[1], values), values);
}

// "x is 2 × y − 1", if it is, by their values and slopes over all log-odds; null if not.
function relation(x, y) {
  const size = s => Math.max(...s.map(Math.abs));
  if (![x, y].every(c => c.a.value.every(Number.isFinite) && c.a.slope.every(Number.isFinite))) return null;
  const [dx, dy] = [x.a.slope, y.a.slope], top = dy.reduce((b, d, i) => Math.abs(d) > Math.abs(dy[b]) ? i : b, 0);
  if (!(size(dx) > 0) || !(size(dy) > 0)) return null;
  const factor = dx[top] / dy[top];
  if (dx.some((d, i) => !(Math.abs(d - factor * dy[i]) <= 1e-7 * size(dx)))) return null;
  const offset = x.a.value[top] - factor * y.a.value[top];
  if (x.a.value.some((v, i) => !(Math.abs(v - factor * y.a.value[i] - offset) <= 1e-6 * (1 + Math.abs(v))))) return null;
  const clean = n => Number(n.toPrecision(7));
  if (clean(factor) <= 0) return null;
  return { factor: clean(factor), offset: Math.abs(offset) < 1e-7 ? 0 : clean(offset) };
}

// The band of p that log-odds lie in; an inner edge belongs to the band below.
const EDGES = DATA.bands.slice(1, -1).map(p => Math.log(p / (1 - p)));
const bandOf = a => EDGES.filter(e => a > e).length;

// How the gradient of a loss is shared out over examples with these log-odds.
function attention(curves, values) {
  const pull = curves.at(values).slope.map(Math.abs);
  const total = pull.reduce((s, x) => s + x, 0);
  const shares = new Float64Array(EDGES.length + 1);
  values.forEach((a, i) => { shares[bandOf(a)] += total > 0 ? pull[i] / total : 0; });
  let sum = 0, half = 0;
  for (const x of pull.slice().sort().reverse()) { if (sum >= total / 2) break; sum += x; half += 1; }
  return { pull, total, shares, half: half / values.length };
}
