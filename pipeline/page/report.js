"use strict";
// Sliders: the range input does the work of mouse, touch and keyboard; both pictures of a photo move together.
for (const card of document.querySelectorAll(".photo")) {
  const inputs = card.querySelectorAll('input[type="range"]');
  const show = (value) => {
    for (const input of inputs) {
      input.value = value;
      input.setAttribute("aria-valuetext", `${value} % before, ${100 - value} % after`);
      input.closest(".compare").style.setProperty("--split", `${value}%`);
    }
  };
  for (const input of inputs) {
    input.addEventListener("input", () => show(input.value));
    input.addEventListener("pointerdown", (event) => drag(event, input, show));
  }
  show(50);
}

// The thumb of a range has a width: without this, the line would not be where the pointer is.
function drag(event, input, show) {
  if (event.button !== 0 || event.pointerType === "touch") return;
  event.preventDefault();
  input.focus({ preventScroll: true, focusVisible: false });
  input.setPointerCapture(event.pointerId);
  const move = (at) => {
    const box = input.getBoundingClientRect();
    show(Math.round(Math.min(1, Math.max(0, (at.clientX - box.left) / box.width)) * 100));
  };
  const stop = () => {
    input.removeEventListener("pointermove", move);
    input.removeEventListener("pointerup", stop);
    input.removeEventListener("pointercancel", stop);
  };
  input.addEventListener("pointermove", move);
  input.addEventListener("pointerup", stop);
  input.addEventListener("pointercancel", stop);
  move(event);
}

// Groups: each photo is in the page once, and tells its place in every group that it belongs to.
const groups = document.getElementById("groups");
if (groups !== null) {
  const list = document.getElementById("photos");
  const photos = [...list.children];
  const choose = (group) => {
    for (const button of groups.children) {
      button.setAttribute("aria-pressed", String(button.dataset.group === group));
    }
    const place = (photo) => (group === "all" ? photos.indexOf(photo) : Number(photo.dataset[group]));
    const shown = photos.filter((photo) => group === "all" || group in photo.dataset);
    for (const photo of photos) photo.hidden = !shown.includes(photo);
    list.append(...shown.sort((one, other) => place(one) - place(other)));
  };
  for (const button of groups.children) button.addEventListener("click", () => choose(button.dataset.group));
  groups.hidden = false;
  choose(groups.children[0].dataset.group);
}

// The theme: that of the system, until someone asks for another. A page from a disk may not be allowed to remember it.
const theme = document.getElementById("theme");
const themes = ["auto", "light", "dark"];
const remembered = () => {
  try { return localStorage.getItem("degrain-theme"); } catch { return null; }
};
const apply = (name) => {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.lastElementChild.textContent = name;
};
theme.hidden = false;
apply(themes.includes(remembered()) ? remembered() : "auto");
theme.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  apply(next);
  try { localStorage.setItem("degrain-theme", next); } catch { /* then it is forgotten */ }
});
