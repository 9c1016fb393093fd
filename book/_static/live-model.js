// A model in the page: what Python's `cosutils` computes for one film, in the browser. ONNX Runtime Web does the
// forwards (vendor/onnxruntime); data and graphs come from live/ (tools/export_live.py). Nothing here knows a page.
"use strict";

window.cosLive = (() => {
  const here = document.currentScript.src, CELLS = 10, CELL = 8, SIDE = CELLS * CELL, PATCH = CELL * CELL * 3;
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const ids = (board) => Uint8Array.from(board, (letter) => parseInt(letter, 36));
  const scripts = {};
  let runtime = null, known = null;

  const script = (path) => (scripts[path] ??= new Promise((done, failed) => {
    const node = Object.assign(document.createElement("script"), { src: new URL(path, here), onload: done });
    node.onerror = () => failed(new Error(`${path} is missing: \`make book\` writes it`));
    document.head.append(node);
  }));

  // A page opened from a file cannot fetch: the runtime comes as text in a script and is imported from a blob.
  const startRuntime = () => (runtime ??= (async () => {
    await script("vendor/onnxruntime/runtime.js");
    const packed = new Blob([bytes(window.cosRuntime.wasm)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const wasm = new Response(packed).arrayBuffer();
    const ort = await import(URL.createObjectURL(new Blob([window.cosRuntime.module], { type: "text/javascript" })));
    Object.assign(ort.env.wasm, { wasmBinary: await wasm, numThreads: 1, proxy: false });
    delete window.cosRuntime;
    return ort;
  })());

  const loadWorlds = () => (known ??= (async () => {
    await script("live/live.js");
    const { worlds, prompts } = window.cosData.live;
    for (const world of Object.values(worlds)) world.tiles = floats(world.tiles);
    return { worlds, prompts: Object.fromEntries(Object.entries(prompts).map(([name, text]) => [name, floats(text)])) };
  })());

  async function loadModel(name) {
    const [ort] = await Promise.all([startRuntime(), script(`live/${name}.js`)]);
    const facts = window.cosData[name];
    facts.session ??= ort.InferenceSession.create(bytes(facts.graph), { executionProviders: ["wasm"] });
    const codec = Object.fromEntries(Object.entries(facts.codec).map(([part, text]) => [part, floats(text)]));
    return { ...facts, name, ort, codec, session: await facts.session, size: facts.channels * facts.frames * CELLS ** 2 };
  }

  // Standard normal numbers (mulberry32, then Box and Muller), a function of seed and stream. Not the draws of torch.
  function noise(seed, stream, size) {
    let state = (Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b)) >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let value = Math.imul(state ^ (state >>> 15), state | 1);
      value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
      return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
    };
    const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    return Float32Array.from({ length: size }, normal);
  }

  // Noise levels of `steps` steps and the closing 0: see cosutils.pipelines.schedule.flow_sigmas.
  const sigmas = (steps, shift) => Array.from({ length: steps + 1 }, (_, i) => {
    const s = 1 - i / steps;
    return (shift * s) / (1 + (shift - 1) * s);
  });

  // Condition channels of a board: a mask, 1 on the first frame, then the latents of [board, grey, grey, ...].
  function condition(model, board) {
    const { channels, frames, codec } = model, area = CELLS ** 2, out = new Float32Array((4 + channels) * frames * area);
    for (let c = 0; c < 4; c++) out.fill(1, c * frames * area, (c * frames + 1) * area);
    for (let c = 0; c < channels; c++) {
      const start = (4 + c) * frames * area;
      out.fill(codec.grey[c], start, start + frames * area);
      for (let cell = 0; cell < area; cell++) out[start + cell] = codec.still[board[cell] * channels + c];
    }
    return out;
  }

  // Velocity of every row of x, [Float32Array]. memory: the last estimates or null; keep, merge: one number a block.
  async function velocity(model, x, given, prompt, sigma, memory, keep, merge) {
    const { ort, size, frames } = model, row = size + given.length + (model.memory ? size : 0);
    const entry = new Float32Array(x.length * row);
    x.forEach((values, i) => {
      entry.set(values, i * row);
      entry.set(given, i * row + size);
      if (model.memory && memory) entry.set(memory[i], i * row + size + given.length);
    });
    const tensor = (values, shape) => new ort.Tensor("float32", values, shape);
    const found = await model.session.run({
      entry: tensor(entry, [x.length, row / (frames * CELLS ** 2), frames, CELLS, CELLS]),
      prompt: tensor(prompt, [1, model.words, prompt.length / model.words]),
      sigma: tensor(new Float32Array([sigma]), [1]),
      keep: tensor(Float32Array.from(keep), [model.blocks]),
      merge: tensor(Float32Array.from(merge), [model.blocks]),
    });
    const values = found[model.session.outputNames[0]].data;
    return x.map((_, i) => values.slice(i * size, (i + 1) * size));
  }

  // Pixel frame t of latents, 80 x 80 x 3 in [0, 1]; the first latent frame gives one frame, every other four.
  function decode(model, latents, t) {
    const { channels, frames, codec } = model, area = CELLS ** 2, patch = new Float32Array(PATCH);
    const f = Math.ceil(t / 4), start = ((t + 3) % 4) * PATCH, picture = new Float32Array(SIDE * SIDE * 3);
    for (let cell = 0; cell < area; cell++) {
      patch.set(codec.mean.subarray(start, start + PATCH));
      for (let c = 0; c < channels; c++) {
        const z = latents[(c * frames + f) * area + cell], row = codec.basis.subarray(c * 4 * PATCH + start);
        for (let i = 0; i < PATCH; i++) patch[i] += z * row[i];
      }
      for (let i = 0; i < PATCH; i++) patch[i] = (patch[i] + 1) / 2;
      paste(picture, cell, patch, 0);
    }
    return picture;
  }

  function paste(picture, cell, values, start) {
    const corner = (Math.floor(cell / CELLS) * CELL * SIDE + (cell % CELLS) * CELL) * 3;
    for (let y = 0; y < CELL; y++)
      for (let i = 0; i < CELL * 3; i++)
        picture[corner + y * SIDE * 3 + i] = Math.min(1, Math.max(0, values[start + y * CELL * 3 + i]));
  }

  // A board of tile numbers as a picture.
  function draw(world, board) {
    const picture = new Float32Array(SIDE * SIDE * 3);
    board.forEach((tile, cell) => paste(picture, cell, world.tiles, tile * PATCH));
    return picture;
  }

  // The nearest tile of every cell.
  function read(world, picture) {
    const count = world.tiles.length / PATCH, patch = new Float32Array(PATCH);
    return Uint8Array.from({ length: CELLS ** 2 }, (_, cell) => {
      const corner = (Math.floor(cell / CELLS) * CELL * SIDE + (cell % CELLS) * CELL) * 3;
      for (let y = 0; y < CELL; y++)
        patch.set(picture.subarray(corner + y * SIDE * 3, corner + y * SIDE * 3 + CELL * 3), y * CELL * 3);
      let best = 0, least = Infinity;
      for (let tile = 0; tile < count; tile++) {
        let distance = 0;
        for (let i = 0; i < PATCH; i++) distance += (patch[i] - world.tiles[tile * PATCH + i]) ** 2;
        if (distance < least) [best, least] = [tile, distance];
      }
      return best;
    });
  }

  // What `shares` needs of a puzzle: the pixels in which its answers differ from the unanswered board.
  function basis(world, puzzle) {
    const blank = draw(world, puzzle.blank);
    const deltas = Object.values(puzzle.options).map((last) => draw(world, last).map((value, i) => value - blank[i]));
    const where = [...blank.keys()].filter((i) => deltas.some((delta) => delta[i]));
    const rows = deltas.map((delta) => where.map((i) => delta[i]));
    const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    return { where, rows, blank: where.map((i) => blank[i]), gram: rows.map((a) => rows.map((b) => dot(a, b))), dot };
  }

  // Share of every possible answer in a picture: non-negative least squares, as Sample.candidates, by coordinates.
  function shares({ where, rows, blank, gram, dot }, picture) {
    const rest = where.map((i, n) => picture[i] - blank[n]), aim = rows.map((row) => dot(row, rest));
    const found = rows.map(() => 0);
    for (let round = 0, change = 1; change > 1e-9 && round < 5000; round++) {
      change = 0;
      for (let k = 0; k < found.length; k++) {
        const better = Math.max(0, found[k] + (aim[k] - dot(gram[k], found)) / gram[k][k]);
        change = Math.max(change, Math.abs(better - found[k]));
        found[k] = better;
      }
    }
    return found.map((share) => Math.min(1, share));
  }

  // Is a film right: see Sample.score. Cells that are right over cells that changed in either film, frame by frame.
  function solved(world, puzzle, film) {
    const seen = film.map((picture) => read(world, picture)), first = puzzle.board;
    const agreements = Object.values(puzzle.films).map((right) => seen.map((frame, t) => {
      let touched = 0, good = 0;
      frame.forEach((tile, cell) => {
        if (tile === first[cell] && right[t][cell] === first[cell]) return;
        touched += 1;
        good += tile === right[t][cell];
      });
      return touched ? good / touched : 1;
    }));
    return agreements.some((row) => {
      const between = row.slice(1, -1);
      return row.at(-1) === 1 && between.reduce((sum, value) => sum + value, 0) / between.length >= world.motion;
    });
  }

  // A puzzle as the page uses it, from its text in live.js: boards become tile numbers.
  function puzzle(world, text) {
    const boards = (letters) => letters.match(/.{100}/g).map(ids);
    const films = Object.fromEntries(Object.entries(text.films).map(([name, film]) => [name, boards(film)]));
    const options = Object.fromEntries(Object.entries(text.options).map(([name, last]) => [name, ids(last)]));
    return ready(world, { ...text, films, options, blank: ids(text.blank), board: Object.values(films)[0][0] });
  }

  const ready = (world, made) => ({ ...made, names: Object.keys(made.options), basis: basis(world, made) });

  // A maze that the reader drew, as cosutils.mini.tasks.maze makes its own. walls: 100 truth values; cells are numbers.
  // An answer is the shortest walk to the goal or to a dead end; of many dead ends the twelve farthest are kept.
  function maze(world, walls, start, goal) {
    const tile = world.names, walks = { [start]: [start] }, queue = [start];
    for (const cell of queue) {
      const column = cell % CELLS;
      const near = [cell + CELLS, cell - CELLS, column < CELLS - 1 ? cell + 1 : -1, column ? cell - 1 : -1];
      for (const next of near)
        if (next >= 0 && next < CELLS ** 2 && !walls[next] && !walks[next]) {
          walks[next] = [...walks[cell], next];
          queue.push(next);
        }
    }
    const scene = Uint8Array.from(walls, (wall) => (wall ? tile.wall : tile.floor));
    scene[goal] = tile.red;
    const film = (path) => Array.from({ length: 17 }, (_, t) => {
      const frame = scene.slice(), way = (t / 16) * (path.length - 1), low = Math.floor(way);
      const at = way - low === 0.5 ? low + (low % 2) : Math.round(way); // numpy rounds a half to the even number
      for (const cell of path.slice(0, at)) frame[cell] = tile.blue;
      frame[path[at]] = path[at] === goal ? tile.ball_on_red : tile.ball;
      return frame;
    });
    const name = (cell) => `to ${Math.floor(cell / CELLS)},${cell % CELLS}`;
    const inner = new Set(Object.values(walks).flatMap((path) => path.slice(0, -1)));
    const dead = queue.filter((cell) => !inner.has(cell) && cell !== goal && cell !== start).slice(-12).sort((a, b) => a - b);
    const ends = walks[goal] ? [goal, ...dead] : dead;
    return ready(world, {
      prompt: "walk through the maze to the red goal",
      films: walks[goal] ? { [name(goal)]: film(walks[goal]) } : {},
      options: Object.fromEntries(ends.map((cell) => [name(cell), film(walks[cell]).at(-1)])),
      blank: film([start])[0],
      board: film([start])[0],
    });
  }

  // One step: x is what the model sees; returns the estimate, its reading and the state after the Euler step.
  // Frames and the verdict on the whole film are computed when they are asked for.
  async function step(model, world, puzzle, given, prompt, x, sigma, next, { memory, keep, merge }) {
    const v = await velocity(model, x, given, prompt, sigma, memory, keep, merge);
    const x0 = x.map((values, i) => values.map((value, n) => value - sigma * v[i][n]));
    const count = 4 * model.frames - 3, seen = [];
    const film = (t) => (seen[t] ??= decode(model, x0[0], t));
    let verdict;
    return {
      x, x0, sigma, film,
      after: x.map((values, i) => values.map((value, n) => value + (next - sigma) * v[i][n])),
      shares: shares(puzzle.basis, film(count - 1)),
      solved: () => (verdict ??= solved(world, puzzle, Array.from({ length: count }, (_, t) => film(t)))),
    };
  }

  // A run: its plan, an entry for each step, and the states of the steps computed so far. An edit changes the plan from
  // a step on; what it changes shows when the run is computed again from that step.
  function newRun({ model, world, puzzle, prompts, seed, steps }) {
    const given = condition(model, puzzle.board), middle = Math.floor(model.blocks / 2), area = CELLS ** 2;
    const plan = sigmas(steps, model.shift).slice(0, -1).map((sigma) => (
      { sigma, edit: null, frame: null, prompt: puzzle.prompt, keep: Array(model.blocks).fill(1), merge: false }));
    const drawn = (stream, row = 0) => noise(seed + row, stream, model.size);
    let turn = 0, edited = 0;

    // Compute the steps from `first` on, and call seen(step) after each. False if it was stopped, or begun again.
    async function compute(first, seen) {
      const mine = ++turn, seeds = plan.some((one) => one.merge) ? 3 : 1;
      if (run.states[0]?.x.length !== seeds) first = 0;
      run.states = run.states.slice(0, first);
      for (let i = first; i < plan.length; i++) {
        const { sigma, edit, frame, prompt, keep, merge } = plan[i], past = run.states[i - 1];
        let x = past ? past.after : Array.from({ length: seeds }, (_, row) => drawn(0, row));
        if (edit) {
          const fresh = drawn(edit.stream), kept = edit.renoise && past;
          x = x.map((_, row) => fresh.map((n, k) => (kept ? sigma * n + (1 - sigma) * past.x0[row][k] : n)));
        }
        if (frame) {
          const fresh = drawn(frame.stream + i), there = (k) => Math.floor(k / area) % model.frames === frame.latent;
          x = x.map((values) => values.map((value, k) => (there(k) ? fresh[k] : value)));
        }
        const state = await step(model, world, puzzle, given, prompts[prompt], x, sigma, plan[i + 1]?.sigma ?? 0, {
          memory: past && sigma < past.sigma ? past.x0 : null,
          keep,
          merge: keep.map((_, block) => Number(merge && block === middle)),
        });
        if (mine !== turn) return false;
        run.states.push(state);
        seen(i);
        await new Promise((done) => setTimeout(done));
        if (mine !== turn) return false;
      }
      return true;
    }

    const fresh = (at, renoise = false) => ({ renoise, stream: 1000 * edited + at });
    const edits = {
      noise: (at) => { plan[at].edit = fresh(at); },
      renoise: (at) => { plan[at].edit = fresh(at, true); },
      restart: (at) => {
        const left = sigmas(plan.length - at, model.shift);
        plan.slice(at).forEach((one, k) => Object.assign(one, { sigma: left[k], edit: k ? null : fresh(at) }));
      },
      frame: (at, shown) => {
        const frame = { latent: Math.ceil(shown / 4), stream: 1000 * edited + 500 };
        for (const one of plan.slice(at)) one.frame = frame;
      },
      merge: (at) => { plan[at].merge = true; },
      prompt: (at, text) => { for (const one of plan.slice(at)) one.prompt = text; },
      block: (at, number) => {
        const keep = plan[at].keep.map((kept, k) => (k === number ? 1 - kept : kept));
        for (const one of plan.slice(at)) one.keep = keep;
      },
    };
    const run = {
      plan, compute, states: [],
      stop: () => { turn += 1; },
      done: () => run.states.length === plan.length,
      edit: (name, at, value) => {
        edited += 1;
        edits[name](at, value);
      },
    };
    return run;
  }

  // The answers of a puzzle as `answers.js` draws them.
  const answersOf = ({ names, options, blank, films }) => names.map((name) => (
    { name, right: name in films, cells: [...blank.keys()].filter((cell) => options[name][cell] !== blank[cell]) }));

  // 80 x 80 x 3 values in [0, 1] on a canvas.
  function paint(canvas, values) {
    const image = new ImageData(SIDE, SIDE);
    image.data.fill(255);
    for (let i = 0; i < values.length; i++) image.data[i + Math.floor(i / 3)] = 255 * values[i];
    canvas.width = canvas.height = SIDE;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // What the leading answer of a state is, in words.
  function leader({ shares, solved }, answers, done) {
    const most = Math.max(0, ...shares), { name, right } = answers[shares.indexOf(most)] ?? {};
    return most < 0.05 ? "none" : `${name} (${right ? "right" : "wrong"}${done && solved() ? ", solved" : ""})`;
  }

  function check() {
    if (!window.WebAssembly || !window.DecompressionStream) throw new Error("this browser lacks WebAssembly or DecompressionStream");
  }

  return { CELLS, SIDE, check, loadWorlds, loadModel, noise, sigmas, condition, velocity, draw, puzzle, maze, step, newRun, answersOf,
    paint, leader };
})();
