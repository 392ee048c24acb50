// A ψ that somebody types, such as "softplus(-a) + 0.5*(1 - p)**2": Python's operators, the
// log-odds a and the probability p. It becomes steps (see steps.js) and the Python that means it.
const TORCH = {
  exp: "torch.exp", expm1: "torch.expm1", log: "torch.log", log1p: "torch.log1p", sqrt: "torch.sqrt",
  tanh: "torch.tanh", sin: "torch.sin", cos: "torch.cos", abs: "torch.abs", sigmoid: "torch.sigmoid",
  relu: "torch.relu", softplus: "F.softplus", logsigmoid: "F.logsigmoid",
};
const PAIRS = { min: "torch.minimum", max: "torch.maximum" };
const NAMED = { pi: Math.PI, e: Math.E };
const COMPARED = { "<": "lt", "<=": "le", ">": "gt", ">=": "ge" };

function tokens(text) {
  const pattern = /\s*(?:(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)|([A-Za-z_]\w*)|(\*\*|<=|>=|[-+*/()<>,^−·×]))/gy;
  const found = [];
  let end = 0;
  for (let match; (match = pattern.exec(text)); end = pattern.lastIndex) {
    const [, number, name, sign] = match;
    const plain = { "^": "**", "−": "-", "·": "*", "×": "*" };
    found.push({ number, name, sign: plain[sign] ?? sign, at: end });
  }
  if (text.slice(end).trim()) throw Error(`Cannot read “${text.slice(end).trim()}”.`);
  return found;
}

// The steps of a typed ψ, and its Python; an Error says what is wrong with it.
function parsed(text) {
  const rest = tokens(text), steps = [];
  const peek = sign => rest.length > 0 && rest[0].sign === sign;
  const expect = sign => {
    if (!peek(sign)) throw Error(`Expected “${sign}” ${rest.length ? `before “${shown(rest[0])}”` : "at the end"}.`);
    rest.shift();
  };
  const emit = (name, operands, python, level) => {
    if (operands.every(o => typeof o.at === "object")) return folded(name, operands);
    steps.push([name, operands.map(o => o.at)]);
    return { at: steps.length, python, level };
  };
  const inside = (node, level) => node.level < level ? `(${node.python})` : node.python;
  const join = (name, sign, x, y, level) =>
    emit(name, [x, y], `${inside(x, level)} ${sign} ${inside(y, level + 1)}`, level);

  // 1 − σ(x) is σ(−x), and the logarithm of either is a logsigmoid: nothing is rounded away.
  const complement = ({ log }) => {
    const minus = emit("neg", [log], `-${inside(log, 3)}`, 3);
    return { ...emit("sigmoid", [minus], `torch.sigmoid(${minus.python})`, 5), log: minus };
  };

  function comparison() {
    const left = sum();
    const name = rest.length > 0 && COMPARED[rest[0].sign];
    if (!name) return left;
    const { sign } = rest.shift();
    return { ...join(name, sign, left, sum(), 0), truth: true };
  }
  function sum() {
    let left = term();
    while (peek("+") || peek("-")) {
      const { sign } = rest.shift();
      const right = term();
      left = sign === "-" && left.at.constant === 1 && right.log ? complement(right) : join(sign === "+" ? "add" : "sub", sign, left, right, 1);
    }
    return left;
  }
  function term() {
    let left = factor();
    while (peek("*") || peek("/")) {
      const { sign } = rest.shift();
      left = join(sign === "*" ? "mul" : "div", sign, left, factor(), 2);
    }
    return left;
  }
  function factor() {
    if (peek("+")) { rest.shift(); return factor(); }
    if (!peek("-")) return power();
    rest.shift();
    const x = factor();
    return emit("neg", [x], `-${inside(x, 3)}`, 3);
  }
  function power() {
    const base = atom();
    if (!peek("**")) return base;
    rest.shift();
    const exponent = factor();
    return emit("pow", [base, exponent], `${inside(base, 5)} ** ${inside(exponent, 3)}`, 4);
  }
  function atom() {
    const token = rest.shift();
    if (!token) throw Error("The formula ends too early.");
    if (token.number) return constant(Number(token.number));
    if (token.sign === "(") {
      const node = comparison();
      expect(")");
      return node; // with its level, so that brackets come back where they are needed
    }
    if (!token.name) throw Error(`Expected a number, a, p or a function instead of “${token.sign}”.`);
    return peek("(") ? call(token.name) : named(token.name);
  }
  function named(name) {
    if (name === "a") return { at: 0, python: "a", level: 5 };
    if (name === "p") return { ...emit("sigmoid", [{ at: 0 }], "torch.sigmoid(a)", 5), log: { at: 0, python: "a", level: 5 } };
    if (name in NAMED) return constant(NAMED[name]);
    throw Error(`Unknown name “${name}”: there are a (log-odds), p (probability), pi and e.`);
  }
  function call(name) {
    expect("(");
    const operands = [comparison()];
    while (peek(",")) { rest.shift(); operands.push(comparison()); }
    expect(")");
    const listed = operands.map(o => o.python).join(", ");
    const count = name in TORCH ? 1 : name in PAIRS ? 2 : name === "where" ? 3 : 0;
    if (!count) throw Error(`Unknown function “${name}”: there are ${[...Object.keys(TORCH), ...Object.keys(PAIRS), "where"].join(", ")}.`);
    if (operands.length !== count) throw Error(`${name} takes ${count} argument${count > 1 ? "s" : ""}; got ${operands.length}.`);
    if (name === "log" && operands[0].log) return emit("logsigmoid", [operands[0].log], `F.logsigmoid(${operands[0].log.python})`, 5);
    if (name === "relu") return emit("relu", [operands[0], constant(0)], `torch.relu(${listed})`, 5);
    if (name in TORCH) return emit(name, operands, `${TORCH[name]}(${listed})`, 5);
    if (name === "where" && (!operands[0].truth || typeof operands[0].at === "object"))
      throw Error("where wants a comparison with a or p first, such as where(a < 1, …, …).");
    if (name === "where") return emit("where", operands, `torch.where(${listed})`, 5);
    const fixed = operands.findIndex(o => typeof o.at === "object");
    const other = operands[1 - fixed];
    const python = fixed < 0 ? `${PAIRS[name]}(${listed})`
      : `torch.clamp(${other.python}, ${name === "max" ? "min" : "max"}=${operands[fixed].python})`;
    return emit(name, operands, python, 5);
  }
  const result = comparison();
  if (rest.length) throw Error(`Did not expect “${shown(rest[0])}”.`);
  if (typeof result.at === "object") throw Error("The loss must depend on a or p.");
  steps.push(["add", [result.at, { constant: 0 }]]);
  return { steps, python: result.python };
}

const shown = token => token.number ?? token.name ?? token.sign;
const constant = x => ({ at: { constant: x }, python: String(x), level: x < 0 ? 3 : 5 });

// What needs no log-odds is computed at once.
function folded(name, operands) {
  const values = operands.map(o => o.at.constant);
  return constant((UNARY[name] ?? BINARY[name])[0](...values));
}
