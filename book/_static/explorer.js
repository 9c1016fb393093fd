// The explorer page: a task, a puzzle, a step and a frame choose one tile of a picture for each model; the shares of the
// answers stand below. Plain script, no library; the data come from explorer/data.js (tools/make_explorer.py).
"use strict";

(() => {
  const data = window.cosExplorer, { chart, table, outline, address } = window.cosAnswers;
  if (!data) return;
  const part = (name) => document.getElementById(`explorer-${name}`);
  const [task, puzzle, step, frame, play] = ["task", "puzzle", "step", "frame", "play"].map(part);
  const base = new URL("explorer/", document.currentScript.src);
  const views = data.models.map((model, i) => ({
    model, picture: part(`picture-${i}`), curve: part(`curve-${i}`), sheet: part(`sheet-${i}`), mark: part(`mark-${i}`),
  }));
  let answers, pointed = null, timer = null, showTable;

  function drawPicture({ model, run, picture, sheet }, s, f) {
    picture.setAttribute("aria-label", `${task.value}, ${model.title}: clean estimate at step ${s}, frame ${f}`);
    if (!sheet.complete || !sheet.naturalWidth) return;
    const { width, height } = data;
    picture.getContext("2d").drawImage(sheet, f * width, s * height, width, height, 0, 0, width, height);
    outline(picture, answers, pointed);
    picture.dataset.tile = `${run.sheet} ${s} ${f}`;
  }

  function show() {
    const s = Number(step.value), f = Number(frame.value), { sigmas } = views[0].run;
    const noise = sigmas[s].toFixed(2), rows = sigmas.length;
    part("step-value").value = `${s} of ${step.max}`;
    part("frame-value").value = `${f} of ${frame.max}`;
    step.setAttribute("aria-valuetext", `step ${s} of ${step.max}, noise level ${noise}`);
    frame.setAttribute("aria-valuetext", `frame ${f} of ${frame.max}`);
    part("state").textContent = `Step ${s}, frame ${f}, noise level ${noise}. Leading answer: ` + views.map(({ model, run }) => {
      const shares = run.evidence[s], { name, right } = answers[shares.indexOf(Math.max(...shares))];
      return `${model.title}, ${name} (${right ? "right" : "wrong"}${run.solved[s] ? ", solved" : ""})`;
    }).join("; ") + ".";
    for (const view of views) {
      drawPicture(view, s, f);
      view.show(view.run.evidence, s);
      Object.assign(view.mark.style, {
        top: `${(s * 100) / rows}%`, left: `${(f * 100) / data.frames}%`, height: `${100 / rows}%`, width: `${100 / data.frames}%`,
      });
    }
    showTable(views.map(({ run }) => run.evidence[s]));
  }

  function goTo(s, f = frame.value) {
    stop();
    [step.value, frame.value] = [s, f];
    show();
    remember();
  }

  function choose() {
    for (const view of views) {
      view.run = view.model.tasks[task.selectedIndex].runs[puzzle.selectedIndex];
      view.sheet.alt = `All clean estimates of ${view.model.title} on ${task.value}, puzzle ${view.run.seed}: ` +
        "rows are steps, columns are frames";
      view.sheet.src = new URL(view.run.sheet, base);
      view.curve.setAttribute("aria-label", `${view.model.title}: share of each of ${view.run.names.length} possible answers ` +
        `over the denoising steps; the right one: ${view.run.answers.join(" or ")}. The table has the values.`);
    }
    const { run } = views[0];
    answers = run.names.map((name, k) => ({ name, right: run.answers.includes(name), cells: run.cells[k] }));
    for (const view of views) view.show = chart(view.curve, answers, run.sigmas, goTo);
    showTable = table(part("legend"), answers, views.map(({ model }) => model.title), (k) => { pointed = k; show(); });
    step.max = run.sigmas.length - 1;
    part("prompt").textContent = run.prompt;
    show();
  }

  function listPuzzles() {
    const chosen = Math.max(0, puzzle.selectedIndex), { runs } = data.models[0].tasks[task.selectedIndex];
    puzzle.replaceChildren(...runs.map((run) => new Option(`puzzle ${run.seed}`, run.seed)));
    puzzle.selectedIndex = Math.min(chosen, runs.length - 1);
  }

  // ---- the address: chapters lead to their case by it ----

  function remember() {
    const values = [task, puzzle, step, frame].map((field) => [field.id.slice(9), field.value]);
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
    caption();
  }

  function caption() {
    part("told").textContent = "";
    for (const button of part("presets").children) {
      const here = new URLSearchParams(button.dataset.run), now = new URLSearchParams(location.hash.slice(1));
      const fits = ["task", "puzzle"].every((key) => here.get(key) === now.get(key));
      button.setAttribute("aria-pressed", String(fits));
      if (fits) part("told").textContent = button.dataset.told;
    }
  }

  // Go where the address says; what it does not name keeps its value, what does not exist is passed over.
  function visit() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const take = (field) => {
      const value = wanted.get(field.id.slice(9));
      if (field.options ? [...field.options].some((one) => one.value === value) : /^\d+$/.test(value)) field.value = value;
    };
    take(task);
    listPuzzles();
    take(puzzle);
    choose();
    take(step);
    take(frame);
    caption();
    show();
  }

  function example(button) {
    history.pushState(null, "", `#${button.dataset.run}`);
    stop();
    visit();
  }

  // ---- play ----

  function stop() {
    clearInterval(timer);
    timer = null;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play the steps";
    part("state").setAttribute("aria-live", "polite");
  }

  function start() {
    if (step.value === step.max) step.value = 0;
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Stop";
    part("state").setAttribute("aria-live", "off");
    timer = setInterval(() => {
      step.value = Number(step.value) + 1;
      show();
      if (step.value === step.max) stop();
    }, 450);
    show();
  }

  task.append(...data.models[0].tasks.map((one) => new Option(one.name.replace(/_/g, " "), one.name)));
  frame.max = frame.value = data.frames - 1;
  task.addEventListener("change", () => { listPuzzles(); choose(); remember(); });
  puzzle.addEventListener("change", () => { choose(); remember(); });
  for (const slider of [step, frame]) slider.addEventListener("input", () => goTo(step.value));
  play.addEventListener("click", () => (timer === null ? start() : stop()));
  for (const view of views) {
    [view.picture.width, view.picture.height] = [data.width, data.height];
    view.sheet.addEventListener("load", show);
    view.sheet.addEventListener("click", (event) => {
      const area = view.sheet.getBoundingClientRect(), index = (at, size, count) => Math.floor((at / size) * count);
      goTo(index(event.clientY - area.top, area.height, view.run.sigmas.length),
        index(event.clientX - area.left, area.width, data.frames));
    });
  }
  part("presets").addEventListener("click", ({ target }) => { if (target.dataset.run) example(target); });
  window.addEventListener("hashchange", visit);
  part("missing").hidden = true;
  part("body").hidden = false;
  address(part("presets").firstElementChild.dataset.run);
  visit();
})();
