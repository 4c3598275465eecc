"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const content = JSON.parse(byId("content").textContent);
  const MOST_CLASSES = 20;
  const NONE = "–";

  // --- Data: all usable examples, the most trusted first ---------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const scores = new Float32Array(bytes(content.scores).buffer);
  const integers = (text) => {
    const raw = bytes(text);
    const width = raw.length / scores.length;
    const kind = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width];
    return new kind(raw.buffer);
  };
  const labels = integers(content.labels);
  const predicted = integers(content.predicted);
  const groups = content.groups.map((group) => ({ ...group, codes: integers(group.codes) }));
  const rightUpTo = new Uint32Array(scores.length + 1);
  labels.forEach((label, i) => { rightUpTo[i + 1] = rightUpTo[i] + (label === predicted[i]); });

  // Scores are compared in float32, as in Python, so that 0.7 is 0.7.
  const acceptedAt = (threshold) => {
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

  const decide = (threshold) => {
    const accepted = acceptedAt(threshold);
    const right = rightUpTo[accepted];
    return {
      threshold, accepted, right,
      rejected: content.total - accepted,
      wrong: accepted - right,
      coverage: accepted / content.total,
      accuracy: accepted ? right / accepted : NaN,
    };
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

  // --- Charts ----------------------------------------------------------------------------------

  const LEFT = 62, RIGHT = 622, TOP = 34, BOTTOM = 318;

  const ticks = (largest) => {
    const power = 10 ** Math.floor(Math.log10(largest / 5));
    const step = [1, 2, 2.5, 5, 10].find((times) => times * power >= largest / 5) * power;
    return Array.from({ length: Math.floor(largest / step + 1e-6) + 1 }, (_, i) => i * step);
  };

  const axes = (place, description, largest, xTitle, yTitle) => {
    const svg = drawn(byId(place), "svg", { viewBox: "0 0 640 372", role: "img", "aria-label": description });
    const x = (value) => LEFT + (RIGHT - LEFT) * Math.min(Math.max(value / largest, 0), 1);
    const y = (value) => BOTTOM - (BOTTOM - TOP) * value;
    for (let i = 0; i <= 5; i++) {
      const part = i / 5;
      drawn(svg, "line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(part), y2: y(part) });
      drawn(svg, "text", { x: LEFT - 8, y: y(part) + 5, "text-anchor": "end" }, `${20 * i} %`);
    }
    ticks(largest).forEach((tick) => {
      drawn(svg, "text", { x: x(tick), y: BOTTOM + 20, "text-anchor": "middle" }, short(tick));
    });
    drawn(svg, "line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM });
    drawn(svg, "line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: BOTTOM });
    drawn(svg, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 44, "text-anchor": "middle" }, xTitle);
    if (yTitle) drawn(svg, "text", { x: LEFT, y: TOP - 14 }, yTitle);
    return { svg, x, y };
  };

  const drawCurve = () => {
    const what = "Coverage and accuracy of the accepted at each threshold; the same numbers are in the table below.";
    const { svg, x, y } = axes("curve", what, content.largest, `threshold of the ${content.score}`);
    const points = Array.from({ length: 501 }, (_, i) => decide((i / 500) * content.largest));
    const path = (name) => points
      .map((p, i) => [p, i === 0 || Number.isNaN(points[i - 1][name]) ? "M" : "L"])
      .filter(([p]) => !Number.isNaN(p[name]))
      .map(([p, letter]) => `${letter}${x(p.threshold).toFixed(1)} ${y(p[name]).toFixed(1)}`)
      .join("");
    [["accuracy", "accuracy of accepted", LEFT], ["coverage", "coverage", LEFT + 270]].forEach(([name, label, at]) => {
      drawn(svg, "path", { class: name, d: path(name) });
      drawn(svg, "line", { class: name, x1: at, x2: at + 34, y1: TOP - 19, y2: TOP - 19 });
      drawn(svg, "text", { class: `${name}-label`, x: at + 42, y: TOP - 14 }, label);
    });
    content.marks.filter(([, mark]) => Number.isFinite(Number(mark))).forEach(([name, mark]) => {
      const line = drawn(svg, "line", { class: "mark", x1: x(mark), x2: x(mark), y1: TOP, y2: BOTTOM });
      drawn(line, "title", {}, `${name}: ${short(Number(mark))}`);
      if (content.marks.length === 1) drawn(svg, "text", { x: x(mark) + 5, y: BOTTOM - 8 }, name);
    });
    const now = drawn(svg, "line", { class: "now", y1: TOP, y2: BOTTOM });
    return (decision) => {
      const at = Number.isFinite(decision.threshold) ? decision.threshold : Math.sign(decision.threshold) * content.largest;
      now.setAttribute("x1", x(at));
      now.setAttribute("x2", x(at));
    };
  };

  const drawReliability = () => {
    const what = "Accuracy of the examples at each confidence; the same numbers are in the table below.";
    const { svg, x, y } = axes("reliability", what, 1, "confidence", "accuracy");
    const { lower, upper, accuracy, count: counts } = content.reliability;
    const bars = lower
      .map((edge, i) => ({ left: x(edge), right: x(upper[i]), top: y(accuracy[i]), times: counts[i] }))
      .filter(({ times }) => times);
    bars.forEach(({ left, right, top }) => {
      drawn(svg, "rect", { class: "bar", x: left, y: top, width: right - left, height: BOTTOM - top });
    });
    drawn(svg, "line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) });
    const compact = new Intl.NumberFormat("en-US", { notation: "compact" });
    bars.forEach(({ left, right, top, times }) => {
      const at = { x: (left + right) / 2, y: top - 4 };
      drawn(svg, "text", { class: "small", ...at, "text-anchor": "middle" }, compact.format(times));
    });
  };

  // --- Parts that follow the threshold ---------------------------------------------------------

  const TILES = { coverage: percent, accuracy: percent, accepted: count, rejected: count, right: count, wrong: count };

  const showTiles = (decision) => {
    Object.entries(TILES).forEach(([name, format]) => {
      const place = byId(name);
      place.value = String(decision[name]);
      write(place, format(decision[name]));
    });
  };

  const inWords = (d) => {
    const where = `${content.score} ${content.grows ? "≥" : "≤"} ${short(d.threshold)}`;
    if (!d.accepted) return `At ${where} no answer is accepted.`;
    return `At ${where}: ${count(d.accepted)} of ${count(content.total)} accepted (${percent(d.coverage)}), `
      + `${count(d.wrong)} of them wrong; accuracy ${percent(d.accuracy)}.`;
  };

  let later;
  const say = (decision) => {
    const text = inWords(decision);
    write(byId("said"), text);
    clearTimeout(later);  // a screen reader need not read every step
    later = setTimeout(() => write(byId("status"), text), 300);
  };

  const confusionMatrix = () => {
    const { names } = content;
    const size = names.length;
    const [whole, body] = table("Accepted answers, by true (rows) and predicted class", ["true \\ predicted", ...names]);
    whole.classList.add("matrix");
    if (names.some((name) => name.length > 4)) {
      whole.querySelectorAll("th:not(:first-child)").forEach((head) => head.classList.add("turned"));
    }
    const cells = [];
    names.forEach((name, i) => {
      const row = element("tr", {}, scope("row", name));
      names.forEach((_, j) => {
        const cell = element("td", i === j ? { class: "diagonal" } : {});
        cells.push(cell);
        row.append(cell);
      });
      body.append(row);
    });
    byId("confusion").append(whole);
    return ({ accepted }) => {
      const counts = new Uint32Array(size * size);
      const rows = new Uint32Array(size);
      for (let i = 0; i < accepted; i++) {
        counts[labels[i] * size + predicted[i]]++;
        rows[labels[i]]++;
      }
      cells.forEach((cell, k) => {
        const share = counts[k] / (rows[Math.floor(k / size)] || 1);
        write(cell, count(counts[k]));
        cell.style.backgroundColor = `rgba(0, 114, 178, ${(0.45 * share).toFixed(3)})`;
      });
    };
  };

  const confusedPairs = () => {
    const size = content.names.length;
    const [whole, body] = table(`Most frequent errors among the accepted, at most ${MOST_CLASSES}`, ["true", "predicted", "count"]);
    byId("confusion").append(whole);
    return ({ accepted }) => {
      const counts = new Map();
      for (let i = 0; i < accepted; i++) {
        if (labels[i] === predicted[i]) continue;
        const pair = labels[i] * size + predicted[i];
        counts.set(pair, (counts.get(pair) || 0) + 1);
      }
      const largest = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, MOST_CLASSES);
      body.replaceChildren(...largest.map(([pair, times]) => element("tr", {},
        scope("row", content.names[Math.floor(pair / size)]),
        element("td", {}, content.names[pair % size]),
        element("td", {}, count(times)))));
      if (!largest.length) body.append(element("tr", {}, element("td", { colspan: 3 }, "none")));
    };
  };

  const groupTable = (group) => {
    const header = [group.column, "examples", "accepted", "coverage", "accuracy of accepted", "accepted and wrong"];
    const title = `By ${group.column}, at this threshold`;
    const [whole, body] = table(title, header);
    const rows = group.names.map((name, k) => {
      const cells = header.slice(1).map(() => element("td"));
      cells[0].textContent = count(group.totals[k]);
      body.append(element("tr", {}, scope("row", name), ...cells));
      return cells.slice(1);
    });
    byId("groups").append(element("div", { class: "scroll", role: "region", "aria-label": title }, whole));
    return ({ accepted }) => {
      const taken = new Uint32Array(rows.length);
      const right = new Uint32Array(rows.length);
      for (let i = 0; i < accepted; i++) {
        taken[group.codes[i]]++;
        if (labels[i] === predicted[i]) right[group.codes[i]]++;
      }
      rows.forEach((cells, k) => {
        const texts = [
          count(taken[k]), percent(taken[k] / group.totals[k]),
          percent(taken[k] ? right[k] / taken[k] : NaN), count(taken[k] - right[k]),
        ];
        cells.forEach((cell, i) => write(cell, texts[i]));
      });
    };
  };

  const card = ({ rank, index, picture }) => {
    const isRight = labels[rank] === predicted[rank];
    const made = element("li", { class: isRight ? "right" : "wrong", "data-index": index });
    if (picture) made.append(element("img", { src: picture, alt: `Picture of example ${index}` }));
    made.append(element("strong", {}, `${isRight ? "✓ right" : "✗ wrong"}: ${content.names[predicted[rank]]}`));
    if (!isRight) made.append(`true: ${content.names[labels[rank]]}`, element("br"));
    made.append(`${content.score} ${scores[rank].toPrecision(4)}`, element("br"), `example ${index}`);
    return made;
  };

  const examples = () => {
    const cards = content.examples.map((example) => [example.rank, card(example)]);
    const show = (place, chosen, all) => {
      const none = cards.length === 0 ? "This page keeps no examples." : all ? "None of those that this page keeps." : "None.";
      const shown = chosen.length ? chosen.map(([, made]) => made) : [element("li", { class: "none" }, none)];
      const before = [...byId(place).children];
      if (before.length === shown.length && before.every((old, i) => old === shown[i])) return;
      byId(place).replaceChildren(...shown);
    };
    return ({ accepted, rejected }) => {
      const first = cards.findIndex(([rank]) => rank >= accepted);
      const border = first < 0 ? cards.length : first;
      show("just-accepted", cards.slice(Math.max(border - content.shown, 0), border).reverse(), accepted);
      show("just-rejected", cards.slice(border, border + content.shown), rejected);
    };
  };

  // --- The threshold ---------------------------------------------------------------------------

  const slider = byId("threshold");
  const exact = byId("exact");
  const confusion = content.names.length > MOST_CLASSES ? confusedPairs() : confusionMatrix();
  const parts = [showTiles, say, drawCurve(), confusion, ...groups.map(groupTable), examples()];
  drawReliability();

  const choose = (threshold, from) => {
    if (from !== slider) slider.value = threshold;
    if (from !== exact) exact.value = Number.isFinite(threshold) ? threshold : "";
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

  // What is wider than its place can be scrolled by the keyboard; nothing else is a stop for it.
  const letScroll = () => document.querySelectorAll(".scroll").forEach((place) => {
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  });
  addEventListener("resize", letScroll);
  letScroll();
})();
