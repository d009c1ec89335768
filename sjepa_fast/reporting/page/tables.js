"use strict";
// Figures as tables, bars and text.

function table(head, rows) {
  const cells = (tag, values) =>
    values.map((value) => element(tag, {}, value instanceof Node ? value : String(value)));
  return element("div", { class: "wide" }, element("table", {},
    element("thead", {}, element("tr", {}, ...cells("th", head))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells("td", row))))));
}

function facts(pairs) {
  const rows = pairs.map(([name, value]) =>
    element("tr", {}, element("td", { class: "name" }, name), element("td", { class: "words" }, value)));
  return element("div", { class: "wide" }, element("table", {}, element("tbody", {}, ...rows)));
}

function tiles(group) {
  const found = [];
  const knn = group.knn;
  if (knn) {
    found.push([`1-NN, ${knn.pool} pooling, %`, `${percent(knn.before)} → ${percent(knn.after)}`]);
  }
  found.push(["steps", group.steps.toLocaleString("en")]);
  for (const [name, value] of group.speed.slice(0, 2)) found.push([name, value]);
  const env = group.environment;
  found.push(["device", env.gpu || env.device || "unknown"]);
  found.push(["data", `${group.store}, ${group.split}`]);
  return element("div", { class: "tiles" }, ...found.map(([name, value]) =>
    element("div", { class: "tile" }, element("b", {}, value), element("span", {}, name))));
}

function scoresOf(groups) {
  const beside = (group, label) => group.scores.some((score) => label in score.beside)
    || (label !== "scratch" && group.knn && typeof group.knn.raw === "number");
  const labels = ["raw", "random", "scratch"].filter((label) =>
    groups.some((group) => beside(group, label)));
  const setting = groups.length > 1 ? ["setting"] : [];
  const rows = [];
  for (const group of groups) {
    const own = setting.length ? [group.name] : [];
    const { knn } = group;
    if (knn) {
      const others = { raw: knn.raw, random: knn.before[0] };
      const dashes = labels.map((label) =>
        percent(typeof others[label] === "number" ? [others[label], null] : null));
      rows.push([...own, `1-NN at the end, ${knn.pool} pooling`, percent(knn.after), knn.runs, ...dashes]);
    }
    for (const score of group.scores) {
      const beside = labels.map((label) => percent(label in score.beside ? [score.beside[label], null] : null));
      rows.push([...own, score.name, percent([score.mean, score.error]), score.runs, ...beside]);
    }
  }
  if (!rows.length) return null;
  const found = table([...setting, "result", "score, %", "runs", ...labels], rows);
  if (setting.length) found.className = "wide results";
  return found;
}

function passesOf(passes) {
  const total = passes.parts.reduce((sum, [, value]) => sum + value, 0) || 1;
  const most = Math.max(...passes.parts.map(([, value]) => value), 1e-12);
  const bars = passes.parts.map(([name, value]) => {
    const bar = element("div");
    bar.style.width = `${(100 * value) / most}%`;
    const share = ((100 * value) / total).toFixed(0);
    return element("div", { class: "bar" }, element("span", {}, name), bar,
      element("span", {}, `${short(value)} ${passes.unit}, ${share} %`));
  });
  const words = passes.measured
    ? "Passes of a step, clocked one by one (--profile)."
    : "What a step multiplies, counted from the configuration; --profile measures the passes.";
  return element("figure", {}, ...bars, element("figcaption", {}, words));
}

function configurationOf(group) {
  return element("div", {},
    facts(Object.entries(group.environment)),
    element("details", {}, element("summary", {}, "config.yaml"), element("pre", {}, group.config)));
}
