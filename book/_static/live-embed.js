// A run of a model inside a chapter, computed when the reader asks for it. The element names the run and the step chosen
// at first: <div class="explorer live-embed" data-run="model=…&task=…&puzzle=…&seed=…&steps=…" data-at="3">. In it, the
// button with data-start begins, those with data-edit (and data-value) make that edit of live-model.js at the chosen step,
// and one with data-seed draws other noise.
"use strict";

(() => {
  const live = window.cosLive, { chart } = window.cosAnswers;

  function embed(box) {
    const { seed, ...wanted } = Object.fromEntries(new URLSearchParams(box.dataset.run));
    const start = box.querySelector("[data-start]"), buttons = [...box.querySelectorAll("[data-edit], [data-seed]")];
    const views = document.createElement("div"), state = document.createElement("p");
    let parts, answers, run, now, draw, before = [], edits = [], turn = 0;
    views.hidden = true;
    views.innerHTML = `<div class="explorer-slider"><label>Step</label><input type="range" min="0" step="1"><output></output></div>
      <div class="explorer-views live-embed-views">
        <div><p class="explorer-title">Expected last frame</p><canvas class="explorer-picture" role="img"></canvas></div>
        <div><p class="explorer-title">Share of each answer, by step</p><svg class="explorer-curve" role="img"></svg></div>
      </div>`;
    const [slider, value, picture, curve] = ["input", "output", "canvas", "svg"].map((part) => views.querySelector(part));
    state.setAttribute("role", "status");
    slider.id = `${box.dataset.run}-step`;
    views.querySelector("label").htmlFor = slider.id;

    function show() {
      const done = run.done(), says = (step) => live.leader(run.states[step], answers, done);
      const step = Math.min(Number(slider.value), run.states.length - 1);
      live.paint(picture, run.states[step].film(4 * (parts.model.frames - 1)));
      picture.setAttribute("aria-label", `last frame of the clean estimate at step ${step}`);
      draw(run.states.map((one) => one.shares), step, before, edits);
      value.value = `${step} of ${slider.max}`;
      state.textContent = `Leading answer at step 0: ${says(0)}; at step ${step}: ${says(step)}` +
        (done ? `; at the end: ${says(run.states.length - 1)}.` : ". Computing …");
      for (const button of buttons) {
        button.disabled = !done;
        if (button.dataset.edit === "block") // pressed: left out
          button.setAttribute("aria-pressed", String(run.plan[step].keep[button.dataset.value] === 0));
      }
    }

    async function compute(first) {
      draw = chart(curve, answers, run.plan.map((one) => one.sigma), (step) => {
        slider.value = step;
        show();
      });
      curve.setAttribute("aria-label", `Share of each of ${answers.length} possible answers over the denoising steps.`);
      views.hidden = false;
      if (await run.compute(first, show)) show();
    }

    async function begin(drawn) {
      const mine = ++turn;
      run?.stop();
      if (!parts) {
        live.check();
        state.textContent = "Loading the model …";
        const { worlds, prompts } = await live.loadWorlds(), model = await live.loadModel(wanted.model);
        const world = Object.values(worlds).find((one) => wanted.model in one.models);
        parts = { model, world, prompts, steps: Number(wanted.steps) };
        parts.puzzle = live.puzzle(world, world.tasks[wanted.task][wanted.puzzle]);
        answers = live.answersOf(parts.puzzle);
        [slider.max, slider.value] = [parts.steps - 1, box.dataset.at ?? 0];
      }
      if (mine !== turn) return;
      [now, before, edits] = [drawn, [], []];
      run = live.newRun({ ...parts, seed: drawn });
      await compute(0);
    }

    function press({ dataset }) {
      if (dataset.edit === undefined) return begin(now + 1);
      const at = Number(slider.value);
      before = run.states.map((one) => one.shares);
      edits = [...new Set([...edits, at])];
      run.edit(dataset.edit, at, Number(dataset.value));
      return compute(at);
    }

    const guard = (work) => work.catch((error) => {
      state.textContent = `The model cannot run here (${error.message}). The explorer shows recorded runs.`;
    });
    start.addEventListener("click", () => {
      start.textContent = "Undo all";
      for (const button of buttons) [button.hidden, button.disabled] = [false, true];
      guard(begin(Number(seed)));
    });
    slider.addEventListener("input", show);
    for (const button of buttons) button.addEventListener("click", () => guard(press(button)));
    start.hidden = false;
    box.append(state, views);
    box.cosRun = () => ({ states: run?.states, right: answers?.map((one) => one.right), done: Boolean(run?.done()) }); // for tests
  }

  for (const box of document.querySelectorAll(".live-embed")) embed(box);
})();
