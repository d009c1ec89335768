"use strict";
// The map of features: a point for each clip.

const NO_LABEL = -1;

function labelColor(scene, label) {
  const labels = Object.keys(scene.classes).map(Number);
  return label === NO_LABEL ? ink("soft") : hue(labels.indexOf(label));
}

function className(scene, label) {
  return label === NO_LABEL ? "no label" : scene.classes[label];
}

function mapOf(scene, choose) {
  const side = 400;
  const margin = 16;
  const range = (key) => {
    const values = scene.clips.map((clip) => clip[key]);
    return [Math.min(...values), Math.max(...values)];
  };
  const [xs, ys] = [range("x"), range("y")];
  const span = Math.max(xs[1] - xs[0], ys[1] - ys[0]) || 1;
  const place = (value, [low, high]) =>
    side / 2 + ((value - (low + high) / 2) / span) * (side - 2 * margin);
  const map = drawn("svg", { class: "map", viewBox: `0 0 ${side} ${side}`, role: "listbox" });
  scene.clips.forEach((clip, index) => {
    const circle = drawn(
      "circle",
      {
        cx: place(clip.x, xs).toFixed(1),
        cy: (side - place(clip.y, ys)).toFixed(1),
        r: 7,
        tabindex: 0,
        role: "option",
        "data-clip": index,
        onclick: () => choose(index),
        onkeydown: (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          choose(index);
        },
      },
      drawn("title", {}, `${className(scene, clip.label)}: ${clip.name}`),
    );
    circle.style.fill = labelColor(scene, clip.label);
    map.append(circle);
  });
  map.choose = (index) => {
    for (const circle of map.querySelectorAll(".chosen")) circle.classList.remove("chosen");
    const chosen = map.querySelector(`[data-clip="${index}"]`);
    chosen.classList.add("chosen");
    map.append(chosen);
  };
  return map;
}

function classLegend(scene) {
  const box = element("div", { class: "legend" });
  for (const [label, name] of Object.entries(scene.classes)) {
    const mark = element("i");
    mark.style.background = labelColor(scene, Number(label));
    box.append(element("span", {}, mark, name));
  }
  return box;
}
