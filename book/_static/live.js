// The live page: the reader chooses a puzzle, a seed and steps, and changes the run while live-model.js computes it.
"use strict";

(() => {
  const live = window.cosLive, { chart, table, outline, address } = window.cosAnswers, { paint } = live;
  const part = (name) => document.getElementById(`live-${name}`);
  const [model, task, puzzle, seed, steps, step, frame] =
    ["model", "task", "puzzle", "seed", "steps", "step", "frame"].map(part);
  const picture = part("picture"), strip = part("strip"), sheet = part("sheet"), board = part("board"), body = part("body");
  const COLUMNS = 9, PITCH = live.SIDE + 4, STEPS = [1, 2, 4, 8, 20, 40];
  let worlds, prompts, world, engine, game, answers; // what there is; what is chosen
  let run, before, edits, turn = 0; // the run, its shares before the last edit, the steps edited
  let drawn = null, pointed = null, timer = null, showCurve, showTable;

  const at = () => Number(step.value), draft = document.createElement("canvas");
  const tell = (text) => { part("state").textContent = text; };
  const guard = (work) => work.catch((error) => {
    part("missing").hidden = false;
    part("error").textContent = `(${error.message})`;
    tell("The model cannot run here.");
  });

  // ---- what is chosen, and its place in the address ----

  function remember() {
    const values = [model, task, puzzle, seed, steps, step, frame].map((field) => [field.id.slice(5), field.value]);
    if (drawn) {
      const bits = drawn.walls.map(Number).join("").match(/.{4}/g);
      values.push(["maze", [bits.map((four) => parseInt(four, 2).toString(16)).join(""), drawn.start, drawn.goal].join(".")]);
    }
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
    caption();
  }

  // Which example is shown, if any.
  function caption() {
    const shown = drawn ? "" : location.hash.slice(1);
    part("told").textContent = "";
    for (const button of part("presets").children) {
      const here = shown.startsWith(button.dataset.run);
      button.setAttribute("aria-pressed", String(here));
      if (here) part("told").textContent = button.dataset.told;
    }
  }

  // Do what the address says; what it does not name keeps its value, what does not exist is passed over.
  function visit() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const choose = (field) => {
      const value = wanted.get(field.id.slice(5));
      if ([...field.options].some((option) => option.value === value)) field.value = value;
    };
    choose(model);
    listTasks();
    choose(task);
    listPuzzles();
    choose(puzzle);
    choose(steps);
    if (/^\d{1,6}$/.test(wanted.get("seed"))) seed.value = wanted.get("seed");
    const [, bits, start, goal] = /^([0-9a-f]{25})\.(\d\d?)\.(\d\d?)$/.exec(wanted.get("maze")) ?? [];
    drawn = null;
    if (bits && start !== goal && task.value === "maze") {
      const walls = [...bits].flatMap((digit) => [8, 4, 2, 1].map((bit) => Boolean(parseInt(digit, 16) & bit)));
      drawn = { walls, start: Number(start), goal: Number(goal) };
    }
    caption();
    return begin(wanted.get("step"), wanted.get("frame"));
  }

  function listTasks() {
    const chosen = task.value;
    world = Object.values(worlds).find((one) => model.value in one.models);
    task.replaceChildren(...Object.keys(world.tasks).map((name) => new Option(name.replace(/_/g, " "), name)));
    if (chosen in world.tasks) task.value = chosen;
  }

  function listPuzzles() {
    const chosen = Math.max(0, puzzle.selectedIndex);
    puzzle.replaceChildren(...world.tasks[task.value].map((text, i) => new Option(text.title, i)));
    puzzle.selectedIndex = Math.min(chosen, puzzle.options.length - 1);
  }

  // ---- the run ----

  // A new run of what is chosen. The step follows the computation, unless one is wanted.
  async function begin(wanted = null, shown = null) {
    const mine = ++turn;
    run?.stop();
    run = null;
    stop();
    tell(`Loading the model: ${model.selectedOptions[0].text} …`);
    const loaded = await live.loadModel(model.value);
    if (mine !== turn) return;
    engine = loaded;
    game = drawn ? live.maze(world, drawn.walls, drawn.start, drawn.goal)
      : live.puzzle(world, world.tasks[task.value][puzzle.value]);
    answers = live.answersOf(game);
    run = live.newRun({ model: engine, world, puzzle: game, prompts, seed: Number(seed.value), steps: Number(steps.value) });
    [before, edits, pointed] = [[], [], null];
    frame.max = 4 * (engine.frames - 1);
    frame.value = shown ?? frame.max;
    step.max = run.plan.length - 1;
    step.value = wanted ?? 0;
    part("draw").hidden = task.value !== "maze";
    for (const name of ["given", "canvas"]) paint(part(name), live.draw(world, game.board));
    listCells();
    listPrompts();
    listBlocks();
    showTable = table(part("legend"), answers, ["share", "before"], (k) => { pointed = k; show(); });
    [sheet.width, sheet.height] = [COLUMNS * PITCH, run.plan.length * PITCH];
    await compute(0, wanted === null);
  }

  // Compute the steps from `first` on.
  async function compute(first, follow) {
    showCurve = chart(part("curve"), answers, run.plan.map((one) => one.sigma), goTo);
    const done = await run.compute(first, (i) => {
      for (let k = 0; k < COLUMNS; k++) {
        paint(draft, run.states[i].film(columnFrame(k)));
        sheet.getContext("2d").drawImage(draft, k * PITCH, i * PITCH);
      }
      if (follow) step.value = i;
      show();
    });
    if (done) remember();
  }

  // Edit the run at the chosen step, and compute the rest anew.
  function alter(name, value) {
    if (!run?.done()) return;
    stop();
    before = run.states.map((state) => state.shares);
    edits = [...new Set([...edits, at()])];
    run.edit(name, at(), value);
    guard(compute(at(), false));
  }

  // ---- what is seen ----

  const columnFrame = (column) => Math.round((column * frame.max) / (COLUMNS - 1));

  function show() {
    const states = run?.states ?? [], s = Math.min(at(), states.length - 1), f = Number(frame.value), state = states[s];
    if (!state) return;
    const level = state.sigma.toFixed(2), now = run.plan[s], done = run.done();
    part("step-value").value = `${s} of ${step.max}`;
    part("frame-value").value = `${f} of ${frame.max}`;
    step.setAttribute("aria-valuetext", `step ${s} of ${step.max}, noise level ${level}`);
    frame.setAttribute("aria-valuetext", `frame ${f} of ${frame.max}`);
    tell(`Step ${s}, frame ${f}, noise level ${level}. Leading answer: ${live.leader(state, answers, done)}. ` +
      (done ? `The run ends with: ${live.leader(states.at(-1), answers, done)}.` : "Computing …"));
    part("curve").setAttribute("aria-label", `Share of each of ${answers.length} possible answers over the denoising steps. ` +
      "The values at the chosen step stand in the table.");
    paint(picture, state.film(f));
    outline(picture, answers, pointed);
    [strip.width, strip.height] = [COLUMNS * PITCH, live.SIDE];
    strip.getContext("2d").drawImage(sheet, 0, -s * PITCH);
    showCurve(states.map((one) => one.shares), s, before, edits);
    showTable([state.shares, before[s]]);
    part("prompt").value = now.prompt;
    [...part("blocks").children].forEach((button, i) => button.setAttribute("aria-pressed", String(now.keep[i] === 1)));
    part("noise-frame").disabled = f === 0;
    Object.assign(part("mark").style, {
      top: `${(100 * s) / run.plan.length}%`, left: `${(100 * Math.round((f * (COLUMNS - 1)) / frame.max)) / COLUMNS}%`,
      height: `${100 / run.plan.length}%`, width: `${100 / COLUMNS}%`,
    });
  }

  function goTo(wanted, shown = frame.value) {
    stop();
    [step.value, frame.value] = [wanted, shown];
    show();
    remember();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    part("play").textContent = "Play the steps";
    part("play").setAttribute("aria-pressed", "false");
  }

  function play() {
    if (timer !== null) return stop();
    if (step.value === step.max) step.value = 0;
    part("play").textContent = "Stop";
    part("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      step.value = at() + 1;
      show();
      if (step.value === step.max) stop();
    }, 450);
    return show();
  }

  function listPrompts() {
    const known = Object.keys(prompts).filter((text) => (text === "") === (game.prompt === ""));
    part("prompt").replaceChildren(...known.map((text) => new Option(text || "(none)", text)));
    part("prompt").disabled = known.length < 2;
  }

  function listBlocks() {
    part("blocks").replaceChildren(...run.plan[0].keep.map((_, i) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: `block ${i}` });
      button.addEventListener("click", () => alter("block", i));
      return button;
    }));
  }

  // ---- the reader's maze ----

  // The cells of the board as buttons, one of which takes the tab key; arrows move among them.
  function listCells() {
    const focused = board.contains(document.activeElement) ? Number(document.activeElement.dataset.cell) : null;
    for (const old of board.querySelectorAll("button")) old.remove();
    if (task.value !== "maze") return;
    const names = Object.entries(world.names), area = live.CELLS ** 2;
    const things = { ball: "disc", red: "goal" };
    for (let cell = 0; cell < area; cell++) {
      const button = document.createElement("button"), [name] = names.find(([, tile]) => tile === game.board[cell]);
      const place = `row ${Math.floor(cell / live.CELLS)}, column ${cell % live.CELLS}`;
      Object.assign(button, { type: "button", tabIndex: cell === (focused ?? 0) ? 0 : -1, ariaLabel: `${place}: ${things[name] ?? name}` });
      button.dataset.cell = cell;
      button.addEventListener("click", () => press(cell));
      board.append(button);
    }
    if (focused !== null) board.querySelector(`[data-cell="${focused}"]`).focus();
  }

  function move(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -live.CELLS, ArrowDown: live.CELLS }[event.key];
    const next = way && board.querySelector(`[data-cell="${Number(event.target.dataset.cell) + way}"]`);
    if (!next) return;
    event.preventDefault();
    [event.target.tabIndex, next.tabIndex] = [-1, 0];
    next.focus();
  }

  function press(cell) {
    const { wall, ball, red } = world.names;
    const walls = [...game.board].map((tile) => tile === wall), start = game.board.indexOf(ball), goal = game.board.indexOf(red);
    const next = { walls, start, goal };
    if (part("tool").value === "wall") {
      if (cell === start || cell === goal) return;
      walls[cell] = !walls[cell];
    } else {
      next[part("tool").value] = cell;
      if (next.start === next.goal) return;
      walls[cell] = false;
    }
    drawn = next;
    guard(begin());
  }

  // A maze of 4 x 4 rooms without loops, as the model was trained on, with two far rooms.
  function carve() {
    const walls = Array(live.CELLS ** 2).fill(true), room = (r, c) => (2 * r + 1) * live.CELLS + 2 * c + 1;
    const any = (values) => values[Math.floor(Math.random() * values.length)];
    const all = [0, 1, 2, 3].flatMap((r) => [0, 1, 2, 3].map((c) => [r, c])), way = [any(all)];
    const start = room(...way[0]), far = {};
    walls[start] = false;
    while (way.length) {
      const [r, c] = way.at(-1);
      const next = any(all.filter(([a, b]) => Math.abs(a - r) + Math.abs(b - c) === 1 && walls[room(a, b)]));
      if (next) {
        walls[room(...next)] = walls[(room(...next) + room(r, c)) / 2] = false;
        far[room(...next)] = way.push(next);
      } else way.pop();
    }
    drawn = { walls, start, goal: Number(any(Object.keys(far).filter((cell) => far[cell] > 3))) };
    guard(begin());
  }

  // ---- wiring ----

  async function open() {
    live.check();
    ({ worlds, prompts } = await live.loadWorlds());
    for (const one of Object.values(worlds))
      model.append(...Object.entries(one.models).map(([name, title]) => new Option(title, name)));
    steps.append(...STEPS.map((count) => new Option(count, count)));
    steps.value = 20;
    part("missing").hidden = true;
    body.hidden = false;
    address(part("presets").firstElementChild.dataset.run);
    return visit();
  }

  function example(button) {
    history.pushState(null, "", `#${button.dataset.run}`);
    return visit();
  }

  const fresh = () => { drawn = null; guard(begin()); };
  model.addEventListener("change", () => { listTasks(); listPuzzles(); fresh(); });
  task.addEventListener("change", () => { listPuzzles(); fresh(); });
  puzzle.addEventListener("change", fresh);
  for (const field of [seed, steps]) field.addEventListener("change", () => guard(begin()));
  for (const field of [step, frame]) field.addEventListener("input", () => goTo(step.value));
  for (const [name, act] of Object.entries({
    play, carve,
    noise: () => alter("noise"),
    renoise: () => alter("renoise"),
    restart: () => alter("restart"),
    "noise-frame": () => alter("frame", Number(frame.value)),
    merge: () => alter("merge"),
    undo: () => guard(begin(step.value, frame.value)),
    again: () => { seed.value = Number(seed.value) + 1; guard(begin()); },
  })) part(name).addEventListener("click", act);
  part("prompt").addEventListener("change", ({ target }) => alter("prompt", target.value));
  board.addEventListener("keydown", move);
  for (const canvas of [strip, sheet])
    canvas.addEventListener("click", (event) => {
      const area = canvas.getBoundingClientRect(), row = Math.floor(((event.clientY - area.top) / area.height) * run.plan.length);
      goTo(canvas === sheet ? row : step.value, columnFrame(Math.floor(((event.clientX - area.left) / area.width) * COLUMNS)));
    });
  part("presets").addEventListener("click", ({ target }) => {
    if (target.dataset.run) guard(example(target));
  });
  window.addEventListener("hashchange", () => guard(visit()));
  window.cosLivePage = { // for tests and the console
    run: () => ({ states: run?.states, right: answers?.map((one) => one.right), done: Boolean(run?.done()) }),
  };
  guard(open());
})();
