"use strict";
// A metric over the steps: a line for each setting, with its standard error over seeds.

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((value) => value >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

function curveFigure(title, lines) {
  const [width, height, left, right, top, bottom] = [340, 200, 46, 10, 8, 22];
  const every = lines.flatMap((line) => line.mean.map((mean, k) => {
    const error = line.error ? line.error[k] : 0;
    return [mean - error, mean + error];
  }).flat());
  let [low, high] = [Math.min(...every), Math.max(...every)];
  if (low === high) [low, high] = [low - (Math.abs(low) / 10 || 1), high + (Math.abs(high) / 10 || 1)];
  const steps = lines.flatMap((line) => line.steps);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const share = (step) => (last > first ? (step - first) / (last - first) : 0.5);
  const x = (step) => left + share(step) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const chart = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const value of ticks(low, high, 6)) {
    chart.append(
      drawn("path", { class: "frame", d: `M${left} ${y(value)}H${width - right}`, opacity: 0.6 }),
      drawn("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  for (const step of last > first ? ticks(first, last, 4) : [first]) {
    chart.append(drawn("text", { x: x(step), y: height - 6, "text-anchor": "middle" }, short(step)));
  }
  for (const line of lines) {
    const at = line.steps.map((step, k) => [x(step), line.mean[k]]);
    if (line.error) {
      const edge = (sign) => at.map(([px, mean], k) => `${px} ${y(mean + sign * line.error[k])}`);
      const band = drawn("path", { d: `M${edge(1).join("L")}L${edge(-1).reverse().join("L")}Z`, opacity: 0.2 });
      band.style.fill = line.color;
      chart.append(band);
    }
    const path = drawn("path", { d: `M${at.map(([px, mean]) => `${px} ${y(mean)}`).join("L")}`, fill: "none", "stroke-width": 1.8 });
    path.style.stroke = line.color;
    chart.append(path);
    if (at.length <= 30) {
      for (const [px, mean] of at) {
        const dot = drawn("circle", { cx: px, cy: y(mean), r: 2.4 });
        dot.style.fill = line.color;
        chart.append(dot);
      }
    }
  }
  const marker = drawn("path", { class: "frame", d: "" });
  chart.append(marker);
  const readout = element("div", { class: "readout" });
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * width;
    const nearest = steps.reduce((best, step) =>
      (Math.abs(x(step) - wanted) < Math.abs(x(best) - wanted) ? step : best));
    marker.setAttribute("d", `M${x(nearest)} ${top}V${height - bottom}`);
    const said = lines.map((line) => {
      const k = line.steps.indexOf(nearest);
      if (k < 0) return null;
      const error = line.error ? ` ± ${short(line.error[k])}` : "";
      return `${lines.length > 1 ? `${line.name}: ` : ""}${short(line.mean[k])}${error}`;
    });
    readout.textContent = `step ${nearest}: ${said.filter((text) => text).join("; ")}`;
  });
  return element("figure", {}, element("h3", {}, title), chart, readout);
}

function curvesOf(groups) {
  const titles = new Map();
  for (const group of groups) {
    for (const curve of group.curves) titles.set(curve.key, curve.title);
  }
  const figures = [...titles].map(([key, title]) => {
    const lines = groups.map((group, index) => {
      const curve = group.curves.find((found) => found.key === key);
      return curve && { ...curve, name: group.name, color: groupColor(groups, index) };
    });
    return curveFigure(title, lines.filter((line) => line));
  });
  return element("div", { class: "grid" }, ...figures);
}

function groupColor(groups, index) {
  return groups.length === 1 ? ink("accent") : hue(index);
}
