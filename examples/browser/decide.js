// A model that tfuq exported as ONNX, its decision and the reasons, in a browser.
//
// The file holds the whole of it: preprocessing, networks, calibration, rule. Here is only what
// turns a picture into its input, as the metadata beside the file say, and outputs into words.

/** Loads `model.onnx` and the metadata beside it, of which the file's hash is checked. */
export async function load(url, ort) {
  const about = await (await fetch(`${url}.json`)).json();
  const bytes = await (await fetch(url)).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const [expected] = Object.values(about.files);
  if (found !== expected.sha256) throw new Error("the file is not as it was written");
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  return { about, session, ort };
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

/** The decision on one input: an answer with its reason, or a person. */
export function decisionOf(outputs, about) {
  const known = outputs.probabilities.every(Number.isFinite);
  const label = outputs.label[0];
  const name = about.class_names ? about.class_names[label] : `class ${label}`;
  if (!known) return { accept: false, reasons: ["the input is none that the model was made for"] };
  if (!about.rule) return { accept: null, label: name, reasons: ["no rule came with the model"] };
  const accept = outputs.accept[0] === 1;
  const { score, threshold } = about.rule.config;
  const value = outputs[score] && outputs[score][0];
  const grows = GROW_WITH_TRUST.includes(score);
  const side = accept === grows ? "is at least" : "is below";
  const figures = value === undefined ? "" : ` of ${value.toFixed(3)}`;
  const bound = typeof threshold === "number" ? ` ${side} ${threshold.toFixed(3)}` : "";
  return { accept, label: name, reasons: [`its ${score.replace(/_/g, " ")}${figures}${bound}`] };
}
