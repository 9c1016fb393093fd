// The landing page's two runs, side by side: the last frame of the clean estimate at every step, and two shares as curves.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const front = document.getElementById("front");
  if (!front || !window.cosFront) return;
  const SVG = "http://www.w3.org/2000/svg";
  const [WIDTH, HEIGHT, LEFT, BASE] = [300, 190, 10, 166];
  const steps = window.cosFront[0].right.length;
  const x = (step) => LEFT + (step * (WIDTH - 2 * LEFT)) / (steps - 1);
  const y = (share) => BASE - share * (BASE - 12);
  const make = (kind, values, text) => {
    const node = document.createElementNS(SVG, kind);
    Object.entries(values).forEach(([key, value]) => node.setAttribute(key, value));
    if (text) node.textContent = text;
    return node;
  };

  const update = [];
  const cases = document.createElement("div");
  cases.className = "front-cases";
  window.cosFront.forEach((run) => {
    const figure = document.createElement("figure");
    const title = document.createElement("p");
    title.className = "front-title";
    title.textContent = `${run.title} (${run.case})`;
    const tile = document.createElement("div");
    tile.className = "front-tile";
    tile.setAttribute("role", "img");
    tile.style.backgroundImage = `url("${front.dataset.folder}/${run.picture}")`;
    tile.style.backgroundSize = `${steps * 100}% 100%`;
    const curve = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
      "aria-label": `Share of the right answer ${run.right[0]} at step 0, ${run.right[steps - 1]} at the last; of the ` +
        `strongest wrong one ${run.wrong[0]} and ${run.wrong[steps - 1]}` });
    curve.append(make("line", { x1: LEFT, x2: WIDTH - LEFT, y1: BASE, y2: BASE, class: "axis" }));
    for (const step of [0, 5, 10, 15, 19]) curve.append(make("text", { x: x(step), y: HEIGHT - 5, "text-anchor": "middle" }, step));
    for (const kind of ["wrong", "right"]) {
      const points = run[kind].map((share, step) => `${x(step)},${y(share)}`).join(" ");
      curve.append(make("polyline", { points, class: kind }));
    }
    const now = make("line", { y1: 6, y2: BASE, class: "now" });
    const dots = ["wrong", "right"].map((kind) => make("circle", { r: 7, class: kind }));
    curve.append(now, ...dots);
    const said = document.createElement("p");
    said.className = "front-said";
    update.push((step) => {
      tile.style.backgroundPositionX = `${(step * 100) / (steps - 1)}%`;
      tile.setAttribute("aria-label", `Last frame of the clean estimate at step ${step}`);
      now.setAttribute("x1", x(step));
      now.setAttribute("x2", x(step));
      ["wrong", "right"].forEach((kind, index) => {
        dots[index].setAttribute("cx", x(step));
        dots[index].setAttribute("cy", y(run[kind][step]));
      });
      said.innerHTML = `<span class="right">right answer ${run.right[step].toFixed(2)}</span> ` +
        `<span class="wrong">strongest wrong one ${run.wrong[step].toFixed(2)}</span>`;
    });
    figure.append(title, tile, curve, said);
    cases.append(figure);
  });

  const controls = document.createElement("div");
  controls.className = "front-controls";
  const play = document.createElement("button");
  play.type = "button";
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: steps - 1, step: 1, value: 0 });
  slider.setAttribute("aria-label", "Denoising step");
  const count = document.createElement("output");
  controls.append(play, slider, count);
  front.replaceChildren(cases, controls);

  let timer = null;
  const show = (step) => {
    slider.value = step;
    count.textContent = `step ${step} (0 to ${steps - 1})`;
    update.forEach((draw) => draw(step));
  };
  const run = (wanted) => {
    clearInterval(timer);
    let wait = 0;
    timer = wanted
      ? setInterval(() => {
          const step = Number(slider.value);
          if (step === steps - 1 && wait++ < 6) return; // the end stays for a while
          wait = 0;
          show((step + 1) % steps);
        }, 450)
      : null;
    play.textContent = wanted ? "Pause" : "Play";
  };
  play.addEventListener("click", () => run(timer === null));
  slider.addEventListener("input", () => {
    run(false);
    show(Number(slider.value));
  });
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  show(still ? steps - 1 : 0);
  run(!still);
});
