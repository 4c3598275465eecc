  // --- Data ------------------------------------------------------------------------------------

  const [scores, means, lowers, uppers, trues] = ["scores", "means", "lowers", "uppers", "trues"]
    .map((name) => floats(content[name]));
  const bits = bytes(content.bits);
  const isInside = (i) => (bits[i] & 1) !== 0;
  const isWrong = (i) => (bits[i] & 2) !== 0;
  const errorOf = (i) => Math.abs(trues[i] - means[i]);
  const groups = content.groups.map((group) => ({ ...group, codes: integers(group.codes, scores.length) }));
  const upTo = (value) => {
    const sums = new Float64Array(scores.length + 1);
    scores.forEach((_, i) => { sums[i + 1] = sums[i] + value(i); });
    return sums;
  };
  const errors = upTo(errorOf);
  const insides = upTo((i) => Number(isInside(i)));
  const wrongs = upTo((i) => Number(isWrong(i)));

  const decide = (threshold) => {
    const accepted = acceptedAt(scores, threshold);
    return {
      threshold, accepted,
      rejected: content.total - accepted,
      wrong: wrongs[accepted],
      coverage: accepted / content.total,
      error: accepted ? errors[accepted] / accepted : NaN,
      inside: accepted ? insides[accepted] / accepted : NaN,
    };
  };
  const figure = (value) => (Number.isNaN(value) ? NONE : String(Number(value.toPrecision(4))));

  // --- Charts ----------------------------------------------------------------------------------

  const rounds = (low, high) => {
    const power = 10 ** Math.floor(Math.log10((high - low) / 5));
    const step = [1, 2, 2.5, 5, 10].find((times) => times * power >= (high - low) / 5) * power;
    const first = Math.ceil(low / step - 1e-6);
    return Array.from({ length: Math.floor(high / step + 1e-6) - first + 1 }, (_, i) => (first + i) * step);
  };

  const plane = (place, description, across, up, xTitle, yTitle, xText = short) => {
    const svg = drawn(byId(place), "svg", { viewBox: "0 0 640 372", role: "img", "aria-label": description });
    const within = ([low, high], value) => (Math.min(Math.max(value, low), high) - low) / (high - low);
    const x = (value) => LEFT + (RIGHT - LEFT) * within(across, value);
    const y = (value) => BOTTOM - (BOTTOM - TOP) * within(up, value);
    rounds(...up).forEach((tick) => {
      drawn(svg, "line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick) });
      drawn(svg, "text", { x: LEFT - 8, y: y(tick) + 5, "text-anchor": "end" }, short(tick));
    });
    rounds(...across).forEach((tick) => {
      drawn(svg, "text", { x: x(tick), y: BOTTOM + 20, "text-anchor": "middle" }, xText(tick));
    });
    drawn(svg, "line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM });
    drawn(svg, "line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: BOTTOM });
    drawn(svg, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 44, "text-anchor": "middle" }, xTitle);
    drawn(svg, "text", { x: LEFT, y: TOP - 14 }, yTitle);
    return { svg, x, y };
  };
  const rangeOf = (...arrays) => {
    let low = Infinity;
    let high = -Infinity;
    arrays.forEach((array) => array.forEach((value) => {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }));
    return low < high ? [low, high] : [low - 1, high + 1];
  };
  const through = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

  const drawScatter = () => {
    const what = "Predicted numbers with their intervals over the true ones; the largest errors are in a table below.";
    const chosen = content.drawn;
    const of = (array) => chosen.map((i) => array[i]);
    const across = rangeOf(of(trues));
    const up = rangeOf(of(lowers), of(uppers), of(trues));
    const { svg, x, y } = plane("scatter", what, across, up, `true ${content.quantity}`, "predicted");
    const marks = chosen.map((i) => {
      const kind = isInside(i) ? "held" : "missed";
      const group = drawn(svg, "g", { class: kind });
      drawn(group, "line", { x1: x(trues[i]), x2: x(trues[i]), y1: y(lowers[i]), y2: y(uppers[i]) });
      const [left, top] = [x(trues[i]), y(means[i])];
      if (isInside(i)) drawn(group, "circle", { cx: left, cy: top, r: 3 });
      else drawn(group, "rect", { x: left - 3, y: top - 3, width: 6, height: 6 });
      return [i, group];
    });
    const ends = [Math.max(across[0], up[0]), Math.min(across[1], up[1])];
    drawn(svg, "line", { class: "ideal", x1: x(ends[0]), x2: x(ends[1]), y1: y(ends[0]), y2: y(ends[1]) });
    if (chosen.length < scores.length) {
      byId("drawn").textContent = `${count(chosen.length)} of ${count(scores.length)} are drawn.`;
    } else byId("drawn").remove();
    return ({ accepted }) => marks.forEach(([i, group]) => group.classList.toggle("refused", i >= accepted));
  };

  const drawCurve = () => {
    const what = "Mean error of the accepted for each coverage; the same numbers are in the table below.";
    const size = scores.length;
    const ranks = [...new Set(Array.from({ length: 300 }, (_, i) => Math.ceil(((i + 1) / 300) * size)))];
    const values = ranks.map((rank) => errors[rank] / rank);
    const largest = rangeOf([0], values)[1];
    const per = (value) => `${Math.round(100 * value)} %`;
    const { svg, x, y } = plane("curve", what, [0, 1], [0, largest], "coverage", "mean absolute error of the accepted", per);
    drawn(svg, "path", { class: "accuracy", d: through(ranks.map((rank, k) => [x(rank / content.total), y(values[k])])) });
    content.marks.filter(([, mark]) => Number.isFinite(Number(mark))).forEach(([name, mark]) => {
      const at = x(decide(Number(mark)).coverage);
      const line = drawn(svg, "line", { class: "mark", x1: at, x2: at, y1: TOP, y2: BOTTOM });
      drawn(line, "title", {}, `${name}: ${short(Number(mark))}`);
    });
    const now = drawn(svg, "line", { class: "now", y1: TOP, y2: BOTTOM });
    return ({ coverage }) => {
      now.setAttribute("x1", x(coverage));
      now.setAttribute("x2", x(coverage));
    };
  };

  const drawCalibration = () => {
    const what = "Share of the labels below each quantile; the same numbers are in the table below.";
    const { svg, x, y } = axes("calibration", what, 1, "level of the quantile", "labels below it");
    const { level, share, low, high } = content.calibration;
    const at = (values) => level.map((q, i) => [x(q), y(values[i])]);
    drawn(svg, "path", { class: "chance", d: `${through([...at(low), ...at(high).reverse()])}Z` });
    drawn(svg, "line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) });
    drawn(svg, "path", { class: "accuracy", d: through(at(share)) });
    at(share).forEach(([cx, cy]) => drawn(svg, "circle", { class: "point", cx, cy, r: 4 }));
  };

  // --- Parts that follow the threshold ---------------------------------------------------------

  const TILES = { coverage: percent, error: figure, inside: percent, accepted: count, rejected: count, wrong: count };

  const showTiles = (decision) => {
    Object.entries(TILES).forEach(([name, format]) => {
      const place = byId(name);
      if (!place) return;
      place.value = String(decision[name]);
      write(place, format(decision[name]));
    });
  };

  const inWords = (d) => {
    const where = `${content.score} ≤ ${short(d.threshold)}`;
    if (!d.accepted) return `At ${where} no answer is accepted.`;
    const off = content.tolerance === null ? "" : `, ${count(d.wrong)} of them off by more than ${short(content.tolerance)}`;
    return `At ${where}: ${count(d.accepted)} of ${count(content.total)} accepted (${percent(d.coverage)})${off}; `
      + `mean error ${figure(d.error)}.`;
  };

  const groupTable = (group) => {
    const off = content.tolerance === null ? [] : [`off by more than ${short(content.tolerance)}`];
    const header = [group.column, "examples", "accepted", "coverage", "mean error of accepted", "in their interval", ...off];
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
      const sums = rows.map(() => ({ taken: 0, error: 0, inside: 0, wrong: 0 }));
      for (let i = 0; i < accepted; i++) {
        const own = sums[group.codes[i]];
        own.taken += 1;
        own.error += errorOf(i);
        own.inside += Number(isInside(i));
        own.wrong += Number(isWrong(i));
      }
      rows.forEach((cells, k) => {
        const { taken, error, inside, wrong } = sums[k];
        const mean = (sum) => (taken ? sum / taken : NaN);
        const texts = [
          count(taken), percent(taken / group.totals[k]), figure(mean(error)), percent(mean(inside)), count(wrong),
        ];
        cells.forEach((cell, i) => write(cell, texts[i]));
      });
    };
  };

  const card = (i) => {
    const made = element("li", { class: isInside(i) ? "right" : "wrong", "data-index": content.index[i] });
    const picture = content.pictures[i];
    if (picture) made.append(opener(picture, content.index[i]));
    made.append(element("strong", {}, `${isInside(i) ? "✓ in its interval" : "✗ outside"}: off by ${figure(errorOf(i))}`));
    const lines = [
      `true ${figure(trues[i])}`, `predicted ${figure(means[i])}`,
      `from ${figure(lowers[i])} to ${figure(uppers[i])}`, `example ${content.index[i]}`,
    ];
    lines.forEach((line) => made.append(line, element("br")));
    return made;
  };

  const worst = () => {
    const order = Uint32Array.from(scores, (_, i) => i).sort((a, b) => errorOf(b) - errorOf(a) || a - b);
    let before = null;
    return ({ accepted }) => {
      const found = [];
      for (let k = 0; k < order.length && found.length < content.shown; k++) {
        if (order[k] < accepted) found.push(order[k]);
      }
      if (before === found.join()) return;
      before = found.join();
      const none = element("li", { class: "none" }, "None.");
      byId("worst").replaceChildren(...(found.length ? found.map(card) : [none]));
    };
  };

  // --- The threshold ---------------------------------------------------------------------------

  const parts = [showPromise, showTiles, speaker(inWords), drawScatter(), drawCurve(), ...groups.map(groupTable), worst()];
  drawCalibration();
  control(decide, parts);
