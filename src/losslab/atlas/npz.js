// Reads log-odds from a file: the .npz beside a run's record, or a .npy of one's own.
async function logOddsOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const array = file.name.endsWith(".npy") ? bytes : await member(bytes, "log_odds.npy");
  return numbers(array);
}

// One file of a zip archive, found by the directory at its end.
async function member(bytes, wanted) {
  const view = new DataView(bytes.buffer);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw Error("This is no .npz file: expected the one beside a run's .json, or a .npy.");
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [name, extra, comment] = [28, 30, 32].map(o => view.getUint16(at + o, true));
    if (new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + name)) === wanted) {
      const local = view.getUint32(at + 42, true);
      const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      const packed = bytes.slice(start, start + view.getUint32(at + 20, true));
      return view.getUint16(at + 10, true) === 0 ? packed : inflated(packed);
    }
    at += 46 + name + extra + comment;
  }
  throw Error("This .npz holds no log_odds: expected the file beside a run's .json.");
}

async function inflated(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function numbers(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes[0] !== 0x93) throw Error("This is no .npy array.");
  const wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const kind = /'descr': *'<(f4|f8)'/.exec(new TextDecoder("latin1").decode(bytes.subarray(0, start)));
  if (!kind) throw Error("Expected log-odds as float32 or float64.");
  const size = Number(kind[1][1]), count = Math.floor((bytes.byteLength - start) / size);
  const read = size === 4 ? view.getFloat32 : view.getFloat64;
  return Float64Array.from({ length: count }, (_, i) => read.call(view, start + i * size, true)).filter(Number.isFinite);
}

// Log-odds that were written into the page.
function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer));
}
