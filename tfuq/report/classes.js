  const MOST_CLASSES = 20;

  // --- Data: all usable examples, the most trusted first ---------------------------------------

  const scores = floats(content.scores);
  const labels = integers(content.labels, scores.length);
  const predicted = integers(content.predicted, scores.length);
  const groups = content.groups.map((group) => ({ ...group, codes: integers(group.codes, scores.length) }));
  const rightUpTo = new Uint32Array(scores.length + 1);
  labels.forEach((label, i) => { rightUpTo[i + 1] = rightUpTo[i] + (label === predicted[i]); });

  // The losses that the rule was fitted to, unless these are errors.
  const OWN_DASHES = 4;
  const own = content.own.map((loss) => {
    const losses = floats(loss.losses);
    const counts = integers(loss.counts, scores.length);
    const lost = new Float64Array(scores.length + 1);
    const counted = new Uint32Array(scores.length + 1);
    counts.forEach((counts, i) => {
      lost[i + 1] = lost[i] + losses[i];
      counted[i + 1] = counted[i] + counts;
    });
    return { ...loss, lost, counted };
  });
  const ownAt = ({ lost, counted, grows }, accepted) => {
    const risk = counted[accepted] ? lost[accepted] / counted[accepted] : NaN;
    return grows ? 1 - risk : risk;
  };

  const decide = (threshold) => {
    const accepted = acceptedAt(scores, threshold);
    const right = rightUpTo[accepted];
    return {
      threshold, accepted, right,
      rejected: content.total - accepted,
      wrong: accepted - right,
      coverage: accepted / content.total,
      accuracy: accepted ? right / accepted : NaN,
      own: own.map((loss) => ownAt(loss, accepted)),
    };
  };

  // --- Charts ----------------------------------------------------------------------------------

  const drawCurve = () => {
    const also = own.map(({ name }) => `, ${name}`).join("");
    const what = `Coverage and accuracy of the accepted${also} at each threshold; the same numbers are in the table below.`;
    const { svg, x, y } = axes("curve", what, content.largest, `threshold of the ${content.score}`, undefined, content.smallest);
    const points = Array.from({ length: 501 }, (_, i) => decide(content.smallest + (i / 500) * (content.largest - content.smallest)));
    const path = (of) => points
      .map((p, i) => [p, i === 0 || Number.isNaN(of(points[i - 1])) ? "M" : "L"])
      .filter(([p]) => !Number.isNaN(of(p)))
      .map(([p, letter]) => `${letter}${x(p.threshold).toFixed(1)} ${y(of(p)).toFixed(1)}`)
      .join("");
    [["accuracy", "accuracy of accepted", LEFT], ["coverage", "coverage", LEFT + 270]].forEach(([name, label, at]) => {
      drawn(svg, "path", { class: name, d: path((p) => p[name]) });
      drawn(svg, "line", { class: name, x1: at, x2: at + 34, y1: TOP - 19, y2: TOP - 19 });
      drawn(svg, "text", { class: `${name}-label`, x: at + 42, y: TOP - 14 }, label);
    });
    own.forEach(({ name, target, grows }, i) => {
      const look = `own own-${i % OWN_DASHES}`;
      drawn(svg, "path", { class: look, d: path((p) => p.own[i]) });
      const promise = target === null ? "" : `, the rule's promise ${grows ? "at least" : "at most"} ${percent(target)}`;
      if (promise) {
        const line = drawn(svg, "line", { class: "promised", x1: LEFT, x2: RIGHT, y1: y(target), y2: y(target) });
        drawn(line, "title", {}, `${name}${promise}`);
      }
      const item = element("li");
      const sample = drawn(item, "svg", { viewBox: "0 0 40 10", "aria-hidden": "true" });
      drawn(sample, "line", { class: look, x1: 0, x2: 40, y1: 5, y2: 5 });
      item.append(`${name}${promise}`);
      byId("own").append(item);
    });
    byId("own").hidden = !own.length;
    content.marks.filter(([, mark]) => Number.isFinite(Number(mark))).forEach(([name, mark]) => {
      const line = drawn(svg, "line", { class: "mark", x1: x(mark), x2: x(mark), y1: TOP, y2: BOTTOM });
      drawn(line, "title", {}, `${name}: ${short(Number(mark))}`);
      if (content.marks.length === 1) {
        const isLate = x(mark) > RIGHT - 60;
        drawn(svg, "text", { x: x(mark) + (isLate ? -5 : 5), y: BOTTOM - 8, "text-anchor": isLate ? "end" : "start" }, name);
      }
    });
    const now = drawn(svg, "line", { class: "now", y1: TOP, y2: BOTTOM });
    return (decision) => {
      const at = Number.isFinite(decision.threshold) ? decision.threshold : (decision.threshold > 0 ? content.largest : content.smallest);
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

  const listed = (names) => {
    const more = names.length > content.mostNamed ? ` and ${names.length - content.mostNamed} more` : "";
    return names.slice(0, content.mostNamed).join(", ") + more;
  };

  const classTable = () => {
    const { names } = content;
    const header = content.classHeader;
    const [whole, body] = table("Accepted answers, class by class", header);
    const totals = new Uint32Array(names.length);
    labels.forEach((label) => { totals[label]++; });
    const rows = names.map((name, k) => {
      const cells = header.slice(1).map(() => element("td"));
      write(cells[0], count(totals[k]));
      body.append(element("tr", {}, scope("row", name), ...cells));
      return cells.slice(1);
    });
    byId("classes").append(whole, element("p", { class: "hint" }, content.classNote));
    return ({ accepted }) => {
      const [taken, right, told] = [0, 1, 2].map(() => new Uint32Array(names.length));
      for (let i = 0; i < accepted; i++) {
        taken[labels[i]]++;
        told[predicted[i]]++;
        if (labels[i] === predicted[i]) right[labels[i]]++;
      }
      rows.forEach((cells, k) => {
        const texts = [
          totals[k] ? `${count(taken[k])} (${percent(taken[k] / totals[k])})` : count(taken[k]),
          rate(right[k], taken[k]), count(told[k]), rate(right[k], told[k]),
        ];
        cells.forEach((cell, i) => write(cell, texts[i]));
      });
      const silent = [...names.keys()].filter((k) => !told[k] && totals[k]);
      const answers = names.filter((_, k) => told[k]);
      byId("only").hidden = !silent.length || !answers.length;
      if (byId("only").hidden) return;
      const missed = silent.reduce((sum, k) => sum + taken[k], 0);
      const those = listed(silent.map((k) => names[k]));
      write(byId("only"), `It answers only ${listed(answers)}. ` + (missed
        ? `No answer is ${those}: of ${count(missed)} accepted cases of these every one is called something else.`
        : `No case of ${those} is accepted.`));
    };
  };

  const ownInWords = ({ name, zeroOne, lost, counted, grows }, figure, accepted) => {
    const total = counted[accepted];
    const good = grows ? total - lost[accepted] : lost[accepted];
    return `; ${name} ${zeroOne ? rate(Math.round(good), total) : percent(figure)}`;
  };

  const inWords = (d) => {
    const where = `${content.score} ${content.grows ? "≥" : "≤"} ${short(d.threshold)}`;
    if (!d.accepted) return `At ${where} no answer is accepted.`;
    return `At ${where}: ${count(d.accepted)} of ${count(content.total)} accepted (${percent(d.coverage)}), `
      + `${count(d.wrong)} of them wrong; accuracy ${percent(d.accuracy)}${own.map((loss, i) => ownInWords(loss, d.own[i], d.accepted)).join("")}.`;
  };

  const confusionMatrix = () => {
    const { names } = content;
    const size = names.length;
    const [whole, body] = table("Accepted answers, by true (rows) and predicted class: blue is right, orange wrong", ["true \\ predicted", ...names]);
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
    if (size > 6) byId("confusion").parentElement.classList.add("wide");
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
        const colour = k % (size + 1) ? "213, 94, 0" : "0, 114, 178";  // wrong, right
        cell.style.backgroundColor = `rgba(${colour}, ${(0.45 * share).toFixed(3)})`;
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
    if (picture) made.append(opener(picture, index));
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

  const confusion = content.names.length > MOST_CLASSES ? confusedPairs() : confusionMatrix();
  const parts = [showPromise, classTable(), showTiles, speaker(inWords), drawCurve(), confusion, ...groups.map(groupTable), examples()];
  drawReliability();
  control(decide, parts);
