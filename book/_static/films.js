// A paused film's controls lie over its lower edge: make its box 80 pixels higher, so that they lie below the film.
"use strict";

const CONTROLS = 80;

function fit(film) {
  if (film.videoWidth && film.clientWidth) {
    film.style.aspectRatio = `${film.videoWidth} / ${film.videoHeight + (CONTROLS * film.videoWidth) / film.clientWidth}`;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const films = document.querySelectorAll("video.film");
  const all = () => films.forEach(fit);
  films.forEach((film) => film.addEventListener("loadedmetadata", all, { once: true }));
  window.addEventListener("resize", all);
  all();
});
