  const byId = (id) => document.getElementById(id);
  const content = JSON.parse(byId("content").textContent);
  const NONE = "–";

  // --- Data: all usable examples, the most trusted first ---------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const integers = (text, length) => {
    const raw = bytes(text);
    const kind = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[raw.length / length];
    return new kind(raw.buffer);
  };

  // Scores are compared in float32, as in Python, so that 0.7 is 0.7.
  const acceptedAt = (scores, threshold) => {
    const t = Math.fround(threshold);
    let low = 0;
    let high = scores.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      const passes = content.grows ? scores[middle] >= t : scores[middle] <= t;
      if (passes) low = middle + 1; else high = middle;
    }
    return low;
  };

  // --- Texts and elements ----------------------------------------------------------------------

  const count = (value) => value.toLocaleString("en-US");
  const percent = (value) => (Number.isNaN(value) ? NONE : `${(100 * value).toFixed(1)} %`);
  const short = (value) =>
    Number.isFinite(value) ? String(Number(value.toPrecision(6))) : value > 0 ? "∞" : "−∞";

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    made.append(...children);
    return made;
  };
  const drawn = (parent, tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const write = (cell, text) => { if (cell.textContent !== text) cell.textContent = text; };
  const scope = (kind, text) => element("th", { scope: kind }, text);

  const table = (title, header) => {
    const body = element("tbody");
    const head = element("tr", {}, ...header.map((text) => scope("col", text)));
    const caption = element("caption", {}, title);
    return [element("table", {}, caption, element("thead", {}, head), body), body];
  };

  // A picture as a button that shows it at its own size; Escape closes it.
  const opener = ({ uri, width, height, of }, index) => {
    const name = `Picture of example ${index}`;
    const made = element("button", { type: "button", class: "picture", "aria-haspopup": "dialog" });
    made.append(element("img", { src: uri, alt: `${name}, enlarge` }));
    made.addEventListener("click", () => {
      const reduced = of[0] === width ? "" : `, reduced from ${of[0]} x ${of[1]}`;
      write(byId("enlarged-title"), `${name}, ${width} x ${height} pixels${reduced}`);
      const shown = byId("enlarged-picture");
      [["src", uri], ["alt", name], ["width", width], ["height", height]]
        .forEach(([key, value]) => shown.setAttribute(key, value));
      byId("enlarged").showModal();
    });
    return made;
  };

  // Wilson's interval at 95 %, as in Python.
  const Z2 = 1.959963984540054 ** 2;
  const rate = (times, total) => {
    if (!total) return NONE;
    const part = times / total;
    const centre = (times + Z2 / 2) / (total + Z2);
    const half = Math.sqrt(Z2 * (part * (1 - part) * total + Z2 / 4)) / (total + Z2);
    const ends = [centre - half, centre + half].map((end) => percent(Math.min(Math.max(end, 0), 1)));
    return `${percent(part)} [${ends.join(", ")}]`;
  };

  // --- Charts ----------------------------------------------------------------------------------

  const LEFT = 62, RIGHT = 622, TOP = 34, BOTTOM = 318;

  const ticks = (largest, smallest = 0) => {
    const span = largest - smallest;
    const power = 10 ** Math.floor(Math.log10(span / 5));
    const step = [1, 2, 2.5, 5, 10].find((times) => times * power >= span / 5) * power;
    const first = Math.ceil(smallest / step - 1e-6);
    return Array.from({ length: Math.floor(largest / step + 1e-6) - first + 1 }, (_, i) => (first + i) * step);
  };

  const axes = (place, description, largest, xTitle, yTitle, smallest = 0) => {
    const svg = drawn(byId(place), "svg", { viewBox: "0 0 640 372", role: "img", "aria-label": description });
    const x = (value) => LEFT + (RIGHT - LEFT) * Math.min(Math.max((value - smallest) / (largest - smallest), 0), 1);
    const y = (value) => BOTTOM - (BOTTOM - TOP) * value;
    for (let i = 0; i <= 5; i++) {
      const part = i / 5;
      drawn(svg, "line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(part), y2: y(part) });
      drawn(svg, "text", { x: LEFT - 8, y: y(part) + 5, "text-anchor": "end" }, `${20 * i} %`);
    }
    ticks(largest, smallest).forEach((tick) => {
      drawn(svg, "text", { x: x(tick), y: BOTTOM + 20, "text-anchor": "middle" }, short(tick));
    });
    drawn(svg, "line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM });
    drawn(svg, "line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: BOTTOM });
    drawn(svg, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 44, "text-anchor": "middle" }, xTitle);
    if (yTitle) drawn(svg, "text", { x: LEFT, y: TOP - 14 }, yTitle);
    return { svg, x, y };
  };

  // --- The threshold ---------------------------------------------------------------------------

  const speaker = (inWords) => {
    let later;
    return (decision) => {
      const text = inWords(decision);
      write(byId("said"), text);
      clearTimeout(later);  // a screen reader need not read every step
      later = setTimeout(() => write(byId("status"), text), 300);
    };
  };

  const promised = (d) => {
    const judged = content.wrong === null ? ""
      : ` Of the accepted here ${rate(d.wrong, d.accepted)} ${content.wrong}, an interval for a threshold that was chosen before these examples were seen.`;
    const seen = d.accepted ? judged : " Nothing is accepted.";
    const marks = content.marks.map(([, mark]) => Number(mark));
    if (content.promises && marks.length === 1) {
      return Math.fround(marks[0]) === Math.fround(d.threshold)
        ? `This is the rule's threshold: what is said of it above is promised here.${seen}`
        : `Nothing is promised at this threshold, only at the rule's, ${short(marks[0])}.${seen}`;
    }
    if (content.promises) {
      return `Nothing is promised at one threshold for all: the rule has one for each class or group.${seen}`;
    }
    const why = marks.length ? "the rule was given by hand or for a coverage" : "there is no rule";
    return `Nothing is promised: ${why}.${seen}`;
  };

  const showPromise = (decision) => write(byId("promise"), promised(decision));

  // What is wider than its place can be scrolled by the keyboard; nothing else is a stop for it.
  const letScroll = () => document.querySelectorAll(".scroll").forEach((place) => {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  });

  const control = (decide, parts) => {
    const slider = byId("threshold");
    const exact = byId("exact");
    const choose = (threshold, from) => {
      if (from !== slider) slider.value = threshold;
      if (from !== exact) exact.value = Number.isFinite(threshold) ? Number(threshold.toPrecision(9)) : "";
      const decision = decide(threshold);
      slider.setAttribute("aria-valuetext", short(threshold));
      parts.forEach((show) => show(decision));
    };
    slider.addEventListener("input", () => choose(Number(slider.value), slider));
    exact.addEventListener("input", () => {
      if (exact.value !== "") choose(Number(exact.value), exact);
    });
    content.marks.forEach(([name, mark]) => {
      const button = element("button", { type: "button" }, `${name}: ${short(Number(mark))}`);
      button.addEventListener("click", () => choose(Number(mark)));
      byId("marks").append(button);
    });
    if (!content.marks.length) byId("marks").remove();
    choose(Number(content.threshold));
    addEventListener("resize", letScroll);
    letScroll();
  };
