// The explorer page: a model, a task, a puzzle, a step and a frame choose one tile of a picture; the candidate curve
// stands beside it. Plain script, no library; the data come from explorer/data.js (tools/make_explorer.py).
"use strict";

(() => {
  const data = window.cosExplorer;
  if (!data) return;
  const part = (name) => document.getElementById(`explorer-${name}`);
  const model = part("model"), task = part("task"), puzzle = part("run"), play = part("play");
  const step = part("step"), frame = part("frame");
  const picture = part("picture"), curve = part("curve"), rows = part("legend").tBodies[0], all = part("all");
  const base = new URL("explorer/", document.currentScript.src);
  const box = { left: 34, top: 10, width: 276, height: 190 };
  const dashes = ["", "6 3", "2 3"];
  let run, timer = null;

  const draw = (name, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    return node;
  };
  const x = (s) => box.left + (box.width * s) / Math.max(1, run.sigmas.length - 1);
  const y = (share) => box.top + box.height * (1 - share);
  const right = (name) => run.answers.includes(name);
  const puzzles = () => data.models[model.selectedIndex].tasks[task.selectedIndex].runs;
  const style = (k) => `stroke: var(--explorer-${k % 8}); stroke-dasharray: ${dashes[Math.floor(k / 8) % 3] || "none"}`;
  const path = (k) => run.evidence.map((shares, s) => `${s ? "L" : "M"}${x(s).toFixed(1)} ${y(shares[k]).toFixed(1)}`);

  function drawCurves() {
    const last = run.sigmas.length - 1;
    curve.replaceChildren();
    for (const share of [0, 0.5, 1]) {
      curve.append(draw("line", { class: "grid", x1: box.left, x2: box.left + box.width, y1: y(share), y2: y(share) }));
      curve.append(draw("text", { x: box.left - 6, y: y(share) + 4, "text-anchor": "end" }, String(share)));
    }
    for (const s of [0, Math.round(last / 2), last])
      curve.append(draw("text", { x: x(s), y: box.top + box.height + 16, "text-anchor": "middle" }, String(s)));
    curve.append(draw("text", { x: x(last / 2), y: 236, "text-anchor": "middle" }, "denoising step"));
    run.names.forEach((name, k) => {
      const line = draw("path", { d: path(k).join(""), class: right(name) ? "right" : "other", style: style(k) });
      curve.append(line);
    });
    curve.append(draw("line", { id: "explorer-now", class: "now", y1: box.top, y2: box.top + box.height }));
    rows.replaceChildren(...run.names.map((name, k) => {
      const row = document.createElement("tr"), head = document.createElement("th");
      const swatch = draw("svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
      swatch.append(draw("path", { d: "M0 4L24 4", class: right(name) ? "right" : "other", style: style(k) }));
      head.scope = "row";
      head.append(swatch, right(name) ? `${name} ★` : name);
      row.append(head, document.createElement("td"));
      return row;
    }));
  }

  function show() {
    const s = Number(step.value), f = Number(frame.value), shares = run.evidence[s];
    const leader = shares.indexOf(Math.max(...shares)), name = run.names[leader];
    const noise = run.sigmas[s].toFixed(2), share = shares[leader].toFixed(2);
    part("step-value").value = `${s} of ${step.max}`;
    part("frame-value").value = `${f} of ${frame.max}`;
    step.setAttribute("aria-valuetext", `step ${s} of ${step.max}, noise level ${noise}`);
    frame.setAttribute("aria-valuetext", `frame ${f} of ${frame.max}`);
    part("state").textContent = `Step ${s}, frame ${f}, noise level ${noise}. ` +
      `Leading answer: ${name} (${right(name) ? "right" : "wrong"}), share ${share}. ` +
      `As a final film it would score ${run.scores[s].toFixed(2)}${run.solved[s] ? ", solved." : ", not solved."}`;
    picture.setAttribute("aria-label", `${task.value}, ${model.value}: clean estimate at step ${s}, frame ${f}`);
    const now = document.getElementById("explorer-now");
    now.setAttribute("x1", x(s));
    now.setAttribute("x2", x(s));
    [...rows.rows].forEach((row, k) => { row.cells[1].textContent = shares[k].toFixed(2); });
    const mark = part("mark").style, high = 100 / run.sigmas.length, wide = 100 / data.frames;
    Object.assign(mark, { top: `${s * high}%`, left: `${f * wide}%`, height: `${high}%`, width: `${wide}%` });
    if (all.complete && all.naturalWidth) {
      const pen = picture.getContext("2d");
      pen.imageSmoothingEnabled = false;
      pen.drawImage(all, f * data.width, s * data.height, data.width, data.height, 0, 0, data.width, data.height);
      picture.dataset.tile = `${run.sheet} ${s} ${f}`;
    }
  }

  function chooseRun() {
    run = puzzles()[puzzle.selectedIndex];
    step.max = run.sigmas.length - 1;
    part("prompt").textContent = run.prompt;
    curve.setAttribute("aria-label", `Share of each of ${run.names.length} possible answers over the denoising steps; ` +
      `the right one: ${run.answers.join(" or ")}. The values at the chosen step stand in the table.`);
    all.alt = `All clean estimates of ${model.value} on ${task.value}, puzzle ${run.seed}: ` +
      "rows are steps, columns are frames";
    all.src = new URL(run.sheet, base);
    drawCurves();
    show();
  }

  function listPuzzles() {
    const chosen = Math.max(0, puzzle.selectedIndex);
    puzzle.replaceChildren(...puzzles().map((r) => new Option(
      `seed ${r.seed}, ${r.solved[r.solved.length - 1] ? "solved" : "not solved"}`)));
    puzzle.selectedIndex = Math.min(chosen, puzzle.options.length - 1);
    chooseRun();
  }

  function setPlaying(on) {
    clearInterval(timer);
    timer = on ? setInterval(advance, 450) : null;
    play.setAttribute("aria-pressed", String(on));
    play.textContent = on ? "Stop" : "Play the steps";
    part("state").setAttribute("aria-live", on ? "off" : "polite");
  }

  function advance() {
    if (Number(step.value) >= Number(step.max)) { setPlaying(false); return; }
    step.value = Number(step.value) + 1;
    show();
  }

  model.append(...data.models.map((m) => new Option(`${m.title} (${m.name})`, m.name)));
  task.append(...data.models[0].tasks.map((t) => new Option(t.name.replace(/_/g, " "), t.name)));
  picture.width = data.width;
  picture.height = data.height;
  frame.max = data.frames - 1;
  for (const choice of [model, task]) choice.addEventListener("change", listPuzzles);
  puzzle.addEventListener("change", chooseRun);
  all.addEventListener("load", show);
  for (const slider of [step, frame]) slider.addEventListener("input", () => { setPlaying(false); show(); });
  play.addEventListener("click", () => {
    if (timer === null && step.value === step.max) step.value = 0;
    setPlaying(timer === null);
    show();
  });
  part("sheet").addEventListener("click", (event) => {
    const area = all.getBoundingClientRect();
    frame.value = Math.floor(((event.clientX - area.left) / area.width) * data.frames);
    step.value = Math.floor(((event.clientY - area.top) / area.height) * run.sigmas.length);
    setPlaying(false);
    show();
  });
  frame.value = frame.max;
  part("missing").hidden = true;
  part("body").hidden = false;
  listPuzzles();
})();
