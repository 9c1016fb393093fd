// The shares of a puzzle's answers: curves over the steps, a table, outlines on a picture. Used by the explorer and by
// the live page. An answer is {name, right, cells}: cells are those in which it differs from the unanswered board.
"use strict";

window.cosAnswers = (() => {
  const box = { left: 30, top: 8, width: 282, height: 176 }, dashes = ["none", "6 3", "2 3"];

  const draw = (name, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return node;
  };
  // Right answers are blue, the wrong ones have the six other colours, then the same colours dashed.
  const place = (answers, k) => answers.slice(0, k).filter(({ right }) => right === answers[k].right).length;
  const hue = (answers, k) => `--explorer-${answers[k].right ? (place(answers, k) % 2) * 7 : 1 + (place(answers, k) % 6)}`;
  const look = (answers, k) => ({
    class: answers[k].right ? "right" : "other",
    style: `stroke: var(${hue(answers, k)}); stroke-dasharray: ${answers[k].right ? "none" : dashes[Math.floor(place(answers, k) / 6) % 3]}`,
  });

  // Curves of `answers` over the noise levels `sigmas`; a click calls pick(step).
  function chart(svg, answers, sigmas, pick) {
    const last = Math.max(1, sigmas.length - 1), foot = box.top + box.height;
    const x = (step) => box.left + (box.width * step) / last, y = (share) => box.top + box.height * (1 - share);
    const frame = [0, 0.5, 1].flatMap((share) => [
      draw("line", { class: "grid", x1: box.left, x2: box.left + box.width, y1: y(share), y2: y(share) }),
      draw("text", { x: box.left - 6, y: y(share) + 4, "text-anchor": "end" }, String(share)),
    ]);
    const stride = Math.ceil(last / 4);
    for (let step = 0; step < sigmas.length; step += stride)
      frame.push(draw("text", { x: x(step), y: foot + 16, "text-anchor": "middle" }, String(step)));
    const range = sigmas.length > 1 ? `, noise level ${sigmas[0].toFixed(2)} to ${sigmas.at(-1).toFixed(2)}` : "";
    frame.push(draw("text", { x: box.left + box.width / 2, y: foot + 34, "text-anchor": "middle" }, `denoising step${range}`));
    const line = (rows, k) => rows.map((row, step) => `${step ? "L" : "M"}${x(step).toFixed(1)} ${y(row[k]).toFixed(1)}`);
    svg.setAttribute("viewBox", "0 0 320 224");
    svg.onclick = (event) => {
      const area = svg.getBoundingClientRect(), at = ((event.clientX - area.left) / area.width) * 320;
      pick(Math.min(sigmas.length - 1, Math.max(0, Math.round(((at - box.left) / box.width) * last))));
    };
    // shares: a row for each computed step; before: the same of an earlier run, drawn faintly; edits: steps marked
    return (shares, step, before = [], edits = []) => svg.replaceChildren(
      ...frame,
      ...edits.map((at) => draw("path", { class: "edit", d: `M${x(at)} ${foot}l-5 8h10z` })),
      ...answers.map((_, k) => draw("path", { ...look(answers, k), class: "before", d: line(before, k).join("") })),
      ...answers.map((_, k) => draw("path", { ...look(answers, k), d: line(shares, k).join("") })),
      ...(shares.length === 1 ? answers.map((_, k) =>
        draw("circle", { cx: x(0), cy: y(shares[0][k]), r: 4, style: `fill: var(${hue(answers, k)})` })) : []),
      draw("line", { class: "now", x1: x(step), x2: x(step), y1: box.top, y2: foot }),
    );
  }

  // A row for each answer, a column of shares for each of `columns`; point(k or null) as the reader points at an answer.
  function table(node, answers, columns, point) {
    const cell = (kind, text, scope = "") => Object.assign(document.createElement(kind), { textContent: text, scope });
    node.tHead.rows[0].replaceChildren(...["answer", ...columns].map((text) => cell("th", text, "col")));
    node.tBodies[0].replaceChildren(...answers.map((answer, k) => {
      const row = document.createElement("tr"), head = cell("th", "", "row"), button = document.createElement("button");
      const swatch = draw("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
      swatch.append(draw("path", { d: "M0 4L24 4", ...look(answers, k) }));
      Object.assign(button, { type: "button", title: "show this answer on the picture" });
      button.append(swatch, answer.right ? `${answer.name} ★` : answer.name);
      for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => point(k));
      for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => point(null));
      head.append(button);
      row.append(head, ...columns.map(() => cell("td", "")));
      return row;
    }));
    return (values) => [...node.tBodies[0].rows].forEach((row, k) => values.forEach((shares, column) => {
      row.cells[column + 1].textContent = shares ? shares[k].toFixed(2) : "";
    }));
  }

  // Frames the cells of answer k on a picture of 80 x 80 pixels.
  function outline(canvas, answers, k) {
    if (k === null) return;
    const pen = canvas.getContext("2d"), size = canvas.width / 10;
    pen.strokeStyle = getComputedStyle(canvas).getPropertyValue(hue(answers, k));
    pen.lineWidth = canvas.width / 80;
    for (const cell of answers[k].cells) {
      const corner = [(cell % 10) * size, Math.floor(cell / 10) * size].map((value) => value + pen.lineWidth / 2);
      pen.strokeRect(...corner, size - pen.lineWidth, size - pen.lineWidth);
    }
  }

  // The case that the address names, after "#" (or after "?", as other pages ask: their scripts take "#..." for a place on
  // the page itself); where it names none, `first`.
  function address(first) {
    if (!location.hash.includes("=")) history.replaceState(null, "", `#${location.search.slice(1) || first}`);
  }

  return { chart, table, outline, address };
})();
