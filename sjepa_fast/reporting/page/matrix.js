"use strict";
// The confusion matrix of 1-NN: rows are true classes, columns the predicted ones.

function matrixOf(confusion) {
  const { classes, cells } = confusion;
  const count = classes.length;
  const totals = new Array(count).fill(0);
  for (const [truth, , clips] of cells) totals[truth] += clips;
  const named = count <= 60;
  const cell = Math.max(2, Math.min(26, Math.floor(480 / count)));
  const left = named ? 118 : 4;
  const top = named ? 18 : 4;
  const [width, height] = [left + count * cell + 2, top + count * cell + 2];
  const canvas = element("canvas", { class: "matrix", "aria-label": "confusion matrix" });
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.style.width = `${width}px`;
  const context = canvasOf(canvas, width, height);
  context.fillStyle = ink("panel");
  context.fillRect(left, top, count * cell, count * cell);
  for (const [truth, guess, clips] of cells) {
    const share = clips / totals[truth];
    context.fillStyle = ink("accent");
    context.globalAlpha = 0.12 + 0.88 * share;
    context.fillRect(left + guess * cell, top + truth * cell, cell - 0.5, cell - 0.5);
    context.globalAlpha = 1;
    if (cell >= 22) {
      context.fillStyle = share > 0.55 ? ink("ground") : ink("ink");
      context.font = "10px system-ui, sans-serif";
      context.textAlign = "center";
      context.fillText(String(Math.round(100 * share)), left + (guess + 0.5) * cell, top + (truth + 0.65) * cell);
    }
  }
  if (named) {
    context.fillStyle = ink("soft");
    context.font = `${Math.min(11, Math.max(cell, 6))}px system-ui, sans-serif`;
    classes.forEach((name, k) => {
      context.textAlign = "right";
      const words = `${name.length > 17 ? `${name.slice(0, 16)}…` : name} ${k}`;
      context.fillText(words, left - 5, top + (k + 0.68) * cell, left - 8);
      context.textAlign = "center";
      if (cell >= 12) context.fillText(String(k), left + (k + 0.5) * cell, top - 5);
    });
  }
  const readout = element("div", { class: "readout" }, "touch a cell; numbers are % of the true class");
  const say = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size, start) => Math.floor(((offset / size) * (size === box.width ? width : height) - start) / cell);
    const guess = at(event.clientX - box.left, box.width, left);
    const truth = at(event.clientY - box.top, box.height, top);
    if (!(truth >= 0 && truth < count && guess >= 0 && guess < count)) return;
    const found = cells.find((entry) => entry[0] === truth && entry[1] === guess);
    const clips = found ? found[2] : 0;
    const share = totals[truth] ? ((100 * clips) / totals[truth]).toFixed(0) : "0";
    readout.textContent = `${classes[truth]}, taken for ${classes[guess]}: ${clips} of ${totals[truth]} clips (${share} %)`;
  };
  canvas.addEventListener("pointermove", say);
  canvas.addEventListener("click", say);
  const wrong = cells.filter(([truth, guess]) => truth !== guess).sort((a, b) => b[2] - a[2]);
  const list = wrong.slice(0, 5).map(([truth, guess, clips]) =>
    element("li", {}, `${classes[truth]}, taken for ${classes[guess]}: ${clips}`));
  return element("figure", {}, element("div", { class: "wide" }, canvas), readout,
    list.length ? element("p", { class: "soft" }, "Most frequent errors, in clips:") : null,
    list.length ? element("ol", { class: "soft" }, ...list) : null);
}
