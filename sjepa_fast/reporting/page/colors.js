"use strict";
// Colors as [red, green, blue] of 0 to 255.

const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const VISIBLE = [209, 73, 91];
const HIDDEN = [160, 168, 180];
const LEFT = [58, 124, 214];
const RIGHT = [226, 131, 42];
const MIDDLE = [128, 140, 156];
const GUESS = [222, 138, 30];

function ramp(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const at = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[at].map((low, k) => low + (RAMP[at + 1][k] - low) * (place - at));
}

function rgb(color) {
  return `rgb(${color.map(Math.round).join(",")})`;
}

// One of so many classes or runs: hues a golden angle apart, in three shades, so that those of near
// hues differ.
function hue(index) {
  return `hsl(${(212 + index * 137.508) % 360}, 62%, ${[50, 38, 66][index % 3]}%)`;
}

const MODES = {
  mask: { label: "mask", key: "hidden" },
  loss: { label: "loss by token", key: "loss" },
  attention: { label: "attention received by token", key: "attention" },
  side: { label: "left and right", key: null },
};

// The color of a token of a decoded clip, in a mode.
function tokenColor(clip, mode, body, token, joint, sides) {
  if (mode === "mask") return clip.hidden[body][token] ? HIDDEN : VISIBLE;
  if (mode === "side") return [MIDDLE, LEFT, RIGHT][sides[joint]];
  const level = clip[mode][body][token];
  return level === 0 ? HIDDEN : ramp((level - 1) / 254);
}

function legend(scene, mode) {
  const box = element("div", { class: "legend" });
  const entry = (color, text) => {
    const mark = element("i");
    mark.style.background = rgb(color);
    box.append(element("span", {}, mark, text));
  };
  if (mode === "mask") {
    entry(VISIBLE, "seen by the view encoder");
    entry(HIDDEN, "masked");
  } else if (mode === "side") {
    entry(LEFT, "left");
    entry(RIGHT, "right");
  } else {
    const [low, high] = scene.ranges[mode];
    const strip = element("span", { class: "ramp" });
    const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => rgb(ramp(share)));
    strip.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
    box.append(short(low), strip, short(high));
    if (mode === "loss") entry(HIDDEN, "visible, without a loss");
    else box.append(element("span", {}, "(1 is an even share)"));
  }
  if (scene.predicted) entry(GUESS, "what the network predicts, beside the clip");
  return box;
}
