// A model that tfuq exported as ONNX, its decision and the reasons, in a browser.
//
// The file holds the whole of it: preprocessing, networks, calibration, rule. Here is only what
// turns a picture into its input, as the metadata beside the file say, and outputs into words.

/** Loads `model.onnx` and the metadata beside it, of which the file's hash is checked. */
export async function load(url, ort) {
  if (!crypto.subtle) throw new Error("a browser checks files of https and of localhost alone");
  const about = await (await fetched(`${url}.json`)).json();
  const bytes = await (await fetched(url)).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const [expected] = Object.values(about.files);
  if (found !== expected.sha256) throw new Error("the file is not as it was written");
  const label = about.outputs.label;
  if (!label || label.shape.slice(1).some((size) => size !== 1)) {
    throw new Error("this page tells one class of a picture: no numbers, several labels or pixels");
  }
  if (Object.keys(about.signature.inputs).length !== 1) throw new Error("the model takes several inputs");
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { about, session, ort };
}

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url} is not there (${answer.status})`);
  return answer;
}

/** The picture in a file as its pixels are stored, as the server takes it. */
export async function bitmapOf(file) {
  const bytes = withoutExif(new Uint8Array(await file.arrayBuffer()));
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  return createImageBitmap(new Blob([bytes], { type: file.type }), options);
}

/** A JPEG without what says how a camera was held: browsers turn pictures, decoders do not. */
export function withoutExif(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return bytes;
  const parts = [bytes.subarray(0, 2)];
  let at = 2;
  while (at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda) {
    const end = at + 2 + (bytes[at + 2] << 8) + bytes[at + 3];
    if (bytes[at + 1] !== 0xe1) parts.push(bytes.subarray(at, end));
    at = end;
  }
  parts.push(bytes.subarray(at));
  return new Uint8Array(parts.flatMap((part) => Array.from(part)));
}

/** Pixels of a picture as the model takes them: size, order of colours and range as declared. */
export function pixelsOf(picture, about) {
  const said = about.inputs;
  if (!said || !said.size) throw new Error("the metadata say neither range nor size of images");
  const [height, width] = said.size;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  return fromRGBA(context.getImageData(0, 0, width, height).data, about);
}

/** The same of RGBA bytes of the declared size. */
export function fromRGBA(bytes, about) {
  const { value_range: [low, high], channels } = about.inputs;
  const unit = (high - low) / 255;
  const planes = channels === "bgr" ? [2, 1, 0] : [0, 1, 2];
  const count = bytes.length / 4;
  for (let at = 3; at < bytes.length; at += 4) {
    if (bytes[at] !== 255) throw new Error("the picture is transparent in places");
  }
  const values = new Float32Array(count * (channels === "gray" ? 1 : 3));
  for (let i = 0, k = 0; i < count; i++) {
    const at = 4 * i;
    if (channels === "gray") {
      const gray = 0.299 * bytes[at] + 0.587 * bytes[at + 1] + 0.114 * bytes[at + 2];
      values[k++] = low + gray * unit;
    } else {
      for (const plane of planes) values[k++] = low + bytes[at + plane] * unit;
    }
  }
  return values;
}

/** Outputs by name for `count` inputs, float32 one after the other; integers as numbers. */
export async function outputsOf({ about, session, ort }, values, count) {
  const [[name, info]] = Object.entries(about.signature.inputs);
  const tensor = new ort.Tensor("float32", values, [count, ...info.shape.slice(1)]);
  const told = await session.run({ [name]: tensor });
  return Object.fromEntries(Object.entries(told).map(([key, { data }]) => [key, Array.from(data, Number)]));
}

const GROW_WITH_TRUST = ["confidence", "margin"];
const OUTPUT_OF = { entropy: "predictive_entropy", given: "ood_score" };
const ROUNDING = 1e-6; // a score this close to a detector's threshold passes, as on the server

/** The decision on one input: an answer with its reason, or a person. */
export function decisionOf(outputs, about) {
  const known = outputs.probabilities.every(Number.isFinite);
  const label = outputs.label[0];
  const name = about.class_names ? about.class_names[label] : `class ${label}`;
  if (!known) return { accept: false, reasons: ["the input is none that the model was made for"] };
  const checks = checksOf(outputs, about);
  if (!checks.length) return { accept: null, label: name, reasons: ["no rule came with the model"] };
  const accept = checks.every(({ passed }) => passed);
  const reasons = checks.filter(({ passed }) => passed === accept).map(({ text }) => text);
  return { accept, label: name, reasons };
}

/** Whether each part that decides is content, and why: those of the server. */
function checksOf(outputs, about) {
  const accept = outputs.accept && outputs.accept[0] === 1;
  const checks = [];
  if (about.rule) {
    checks.push({ passed: accept, text: textOfRule(outputs, about.rule.config, accept) });
  } else if (about.conformal) {
    const size = outputs.prediction_set.reduce((sum, each) => sum + each, 0);
    checks.push({ passed: accept, text: `its set holds ${size} classes; it must hold 1` });
  }
  const told = about.ood ? about.ood.threshold : null;
  if (told !== null) {
    const threshold = typeof told === "number" ? told : told === "inf" ? Infinity : -Infinity;
    const score = outputs.ood_score[0];
    const passed = score <= threshold + ROUNDING * Math.max(1, Math.abs(threshold));
    const side = passed ? "at most" : "above";
    const figures = `${score.toFixed(3)} is ${side} ${threshold.toFixed(3)}`;
    checks.push({ passed, text: `its out-of-distribution score of ${figures}` });
  }
  return checks;
}

function textOfRule(outputs, { score, threshold, by, keys }, accept) {
  let bound = threshold;
  if (by === "class") {
    const place = keys.indexOf(outputs.label[0]);
    if (place < 0) return "its class has no threshold: it is never accepted";
    bound = threshold[place];
  }
  const output = OUTPUT_OF[score] || score;
  const value = score === "margin" ? marginOf(outputs.probabilities) : outputs[output] && outputs[output][0];
  const sides = GROW_WITH_TRUST.includes(score) ? ["is below", "is at least"] : ["is above", "is at most"];
  const figures = value === undefined ? "" : ` of ${value.toFixed(3)}`;
  const limit = typeof bound === "number" ? bound.toFixed(3) : bound; // infinity is a text
  return `its ${output.replace(/_/g, " ")}${figures} ${sides[Number(accept)]} ${limit}`;
}

function marginOf(probabilities) {
  const all = probabilities.length > 1 ? probabilities : [probabilities[0], 1 - probabilities[0]];
  const [first, second] = Array.from(all).sort((a, b) => b - a);
  return first - second;
}
