// Runs the steps that the library read off a ψ, with slopes beside the values.
// A step is [name, operand, …]; an operand is the number of a value, or null for the next constant.
const sigmoid = x => x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
const softplus = x => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
const scaled = (slope, factor) => slope === 0 ? 0 : slope * factor; // 0 beside an infinite factor too

// Functions of one argument: the value at x, and the slope at x where the value is v.
const UNARY = {
  neg: [x => -x, () => -1],
  sigmoid: [sigmoid, (x, v) => v * sigmoid(-x)],
  softplus: [softplus, x => sigmoid(x)],
  logsigmoid: [x => -softplus(-x), x => sigmoid(-x)],
  exp: [Math.exp, (x, v) => v],
  expm1: [Math.expm1, x => Math.exp(x)],
  log: [Math.log, x => 1 / x],
  log1p: [Math.log1p, x => 1 / (1 + x)],
  sqrt: [Math.sqrt, (x, v) => 0.5 / v],
  tanh: [Math.tanh, (x, v) => 1 - v * v],
  sin: [Math.sin, x => Math.cos(x)],
  cos: [Math.cos, x => -Math.sin(x)],
  abs: [Math.abs, x => Math.sign(x)],
  isinf: [x => +(Math.abs(x) === Infinity), () => 0],
};

// Functions of two: the value, and the slope from those of both.
const BINARY = {
  add: [(x, y) => x + y, (x, y, dx, dy) => dx + dy],
  sub: [(x, y) => x - y, (x, y, dx, dy) => dx - dy],
  mul: [(x, y) => x * y, (x, y, dx, dy) => scaled(dx, y) + scaled(dy, x)],
  div: [(x, y) => x / y, (x, y, dx, dy, v) => scaled(dx, 1 / y) - scaled(dy, v / y)],
  pow: [(x, y) => x ** y, (x, y, dx, dy, v) => scaled(dx, y * x ** (y - 1)) + scaled(dy, v * Math.log(x))],
  min: [Math.min, (x, y, dx, dy) => y < x ? dy : dx],
  max: [Math.max, (x, y, dx, dy) => y > x ? dy : dx],
  relu: [Math.max, (x, y, dx) => x > 0 ? dx : 0],
  gate: [scaled, (x, y, dx, dy) => x === 0 ? 0 : scaled(dx, y) + scaled(dy, x)],
  lt: [(x, y) => +(x < y), () => 0],
  le: [(x, y) => +(x <= y), () => 0],
  gt: [(x, y) => +(x > y), () => 0],
  ge: [(x, y) => +(x >= y), () => 0],
  eq: [(x, y) => +(x === y), () => 0],
  and: [(x, y) => +(x && y), () => 0],
};

// The steps of a form with the constants of a cell in their places, as [run, operands].
function filled(form, constants) {
  let next = 0;
  return form.map(([name, ...operands]) => [name, operands.map(o => o === null ? { constant: constants[next++] } : o)]);
}

// Values and slopes at many log-odds; inputs are the values 1, 2, … (parameters left open).
function evaluate(steps, inputs, points) {
  const value = new Float64Array(points.length), slope = new Float64Array(points.length);
  const first = 1 + inputs.length, size = first + steps.length;
  const v = new Float64Array(size), d = new Float64Array(size);
  inputs.forEach((x, i) => { v[1 + i] = x; });
  const program = steps.map(([name, operands]) => ({
    unary: UNARY[name], binary: BINARY[name], where: name === "where",
    index: operands.map(o => typeof o === "number" ? o : -1),
    constant: operands.map(o => typeof o === "number" ? 0 : o.constant),
  }));
  for (let i = 0; i < points.length; i++) {
    v[0] = points[i];
    d[0] = 1;
    for (let k = 0; k < program.length; k++) step(program[k], v, d, first + k);
    value[i] = v[size - 1];
    slope[i] = d[size - 1];
  }
  return { value, slope };
}

function step({ unary, binary, where, index, constant }, v, d, out) {
  const get = n => index[n] < 0 ? constant[n] : v[index[n]];
  const move = n => index[n] < 0 ? 0 : d[index[n]];
  if (where) {
    const from = get(0) ? 1 : 2;
    v[out] = get(from);
    d[out] = move(from);
  } else if (unary) {
    const x = get(0), dx = move(0);
    v[out] = unary[0](x);
    d[out] = dx === 0 ? 0 : dx * unary[1](x, v[out]);
  } else {
    const x = get(0), y = get(1);
    v[out] = binary[0](x, y);
    d[out] = binary[1](x, y, move(0), move(1), v[out]);
  }
}
