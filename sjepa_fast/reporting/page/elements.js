"use strict";
// Elements of the page. Text goes in as text nodes alone, whatever it holds.

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(+value.toPrecision(size >= 1000 ? 5 : 3));
}

function percent(pair) {
  if (pair === null || pair === undefined) return "–";
  const [mean, error] = pair;
  return error === null ? mean.toFixed(1) : `${mean.toFixed(1)} ± ${error.toFixed(1)}`;
}

// A canvas of so many CSS pixels, sharp on any screen; returns its context.
function canvasOf(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

function options(select, names) {
  names.forEach((name, value) => select.append(element("option", { value }, name)));
  return select;
}
