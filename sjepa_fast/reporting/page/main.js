"use strict";
// Puts the page together and connects map, skeleton, tokens and controls.

const DATA = JSON.parse(document.getElementById("data").textContent);

let CURRENT = null;

// The clips of a setting: map and skeleton side by side.
class Clips {
  constructor(scene, objective) {
    this.scene = scene;
    this.playing = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.frame = 0;
    const modes = Object.keys(MODES).filter((mode) =>
      MODES[mode].key === null || MODES[mode].key in scene.clips[0]);
    this.map = mapOf(scene, (index) => this.choose(index));
    this.box = element("div", { class: "stage" });
    this.label = element("div", { class: "label" });
    this.box.append(this.label);
    this.play = element("button", { type: "button", onclick: () => this.run(!this.playing) }, "play");
    this.scrub = element("input", { type: "range", min: 0, max: scene.frames - 1, step: "any", value: 0, "aria-label": "time" });
    this.scrub.addEventListener("input", () => {
      this.run(false);
      this.seek(Number(this.scrub.value));
    });
    this.mode = modes[0];
    const names = modes.map((mode) => MODES[mode].label);
    this.colors = options(element("select", { "aria-label": "color" }), names);
    this.colors.addEventListener("change", () => {
      this.mode = modes[Number(this.colors.value)];
      this.paint();
    });
    this.list = options(element("select", { "aria-label": "clip" }),
      scene.clips.map((clip) => `${className(scene, clip.label)}: ${clip.name}`));
    this.list.addEventListener("change", () => this.choose(Number(this.list.value)));
    this.legend = element("div");
    this.grid = new TokenGrid((frame) => {
      this.run(false);
      this.seek(frame);
    });
    const said = `${scene.clips.length} of ${scene.of} clips of the ${scene.part} part, on the two `
      + `principal axes of their features (${scene.pool} pooling). Touch a point to play its clip.`;
    this.node = element("div", { class: "two", "data-objective": objective },
      element("figure", {}, this.map, classLegend(scene), element("figcaption", {}, said)),
      element("div", {}, this.box,
        element("div", { class: "row" }, this.play, this.scrub),
        element("div", { class: "row" }, this.colors, this.list),
        this.legend, this.grid.node, this.grid.readout,
        element("div", { class: "soft" }, "Tokens: joints down, time across. Crop without augmentation, mask of step 0.")));
  }

  start() {
    try {
      this.stage = new Stage(this.box);
    } catch (error) {
      this.label.textContent = "This browser has no WebGL, so the skeleton cannot be drawn.";
    }
    this.choose(0);
    this.run(this.playing);
  }

  choose(index) {
    this.index = index;
    this.clip = decoded(this.scene.clips[index]);
    this.map.choose(index);
    this.list.value = String(index);
    if (this.stage) {
      this.label.textContent = `${className(this.scene, this.clip.label)}`;
      this.stage.show(this.scene, this.clip);
    }
    this.box.dataset.clip = String(index);
    this.frame = 0;
    this.paint();
    this.run(true);
  }

  paint() {
    this.legend.replaceChildren(legend(this.scene, this.mode));
    this.grid.show(this.scene, this.clip, this.mode);
    this.seek(this.frame);
  }

  seek(frame) {
    this.frame = Math.min(Math.max(frame, 0), this.scene.frames - 1);
    this.scrub.value = String(this.frame);
    this.box.dataset.frame = this.frame.toFixed(2);
    if (this.stage) this.stage.draw(this.frame, this.mode);
    this.grid.mark(this.frame);
  }

  run(on) {
    this.playing = on;
    this.play.textContent = on ? "pause" : "play";
    if (on && !this.ticking) {
      this.ticking = true;
      let before = performance.now();
      const tick = (now) => {
        this.ticking = this.playing && this.node.isConnected;
        if (!this.ticking) return;
        const seconds = Math.min(Math.max(this.clip.seconds, 1.5), 8);
        const frame = this.frame + (((now - before) / 1000) * this.scene.frames) / seconds;
        before = now;
        this.seek(frame >= this.scene.frames ? 0 : frame);
        requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    }
  }
}

function clipsSection(groups) {
  const shown = groups.filter((group) => group.scene);
  if (!shown.length) return null;
  const place = element("div");
  const show = (index) => {
    if (CURRENT && CURRENT.stage) CURRENT.stage.leave();
    const clips = new Clips(shown[index].scene, shown[index].objective);
    CURRENT = clips;
    place.replaceChildren(clips.node);
    clips.start();
  };
  const select = options(element("select", { "aria-label": "setting" }), shown.map((group) => group.name));
  select.addEventListener("change", () => show(Number(select.value)));
  const row = shown.length > 1 ? element("div", { class: "row" }, "setting", select) : null;
  return [element("h2", {}, "Clips"), row, place, () => show(Number(select.value) || 0)];
}

function settings(groups) {
  const names = groups.map((group, index) => {
    const mark = element("i");
    mark.style.background = groupColor(groups, index);
    const seeds = group.seeds.length > 1 ? ` (seeds ${group.seeds.join(", ")})` : "";
    return element("span", {}, mark, `${group.name}${seeds}`);
  });
  return element("div", { class: "legend" }, ...names);
}

function perGroup(groups, part) {
  const found = groups.map((group) => {
    const node = part(group);
    if (!node) return null;
    return groups.length > 1 ? element("div", {}, element("h3", {}, group.name), node) : node;
  });
  return found.some((node) => node) ? found : null;
}

function build() {
  const { groups, notes, differing } = DATA;
  const main = document.getElementById("main");
  const several = groups.length > 1;
  const runs = groups.reduce((sum, group) => sum + group.runs.length, 0);
  const [group] = groups;
  const title = several ? `${runs} runs in ${groups.length} settings` : group.name;
  document.title = `${title} – sjepa_fast report`;
  const one = group.seeds.length > 1
    ? `${group.seeds.length} runs, mean ± standard error over seeds ${group.seeds.join(", ")}`
    : `seed ${group.seeds[0]}`;
  const nodes = [
    element("h1", {}, title),
    element("p", { class: "soft" }, several
      ? "Seeds of one setting are folded into mean ± standard error."
      : `${group.objective} on ${group.store}, split ${group.split}; ${one}; sjepa_fast ${DATA.version}`),
    several ? settings(groups) : tiles(group),
  ];
  for (const note of notes) nodes.push(element("p", { class: "soft" }, `Note: ${note}`));
  const findings = groups.flatMap((each) => each.findings.map((text) =>
    element("li", {}, several ? `${each.name}: ${text}` : text)));
  if (findings.length) nodes.push(element("p", {}, "What the run's records say is wrong:"), element("ul", {}, ...findings));
  const clips = clipsSection(groups);
  let start = () => {};
  if (clips) {
    start = clips.pop();
    nodes.push(...clips);
  }
  nodes.push(element("h2", {}, "Curves"), several ? settings(groups) : null, curvesOf(groups));
  const scores = scoresOf(groups);
  if (scores) {
    nodes.push(element("h2", {}, "Scores"), scores, element("p", { class: "soft" },
      "±: standard error, over runs where there are several, else for the number of test clips."));
  }
  const matrices = perGroup(groups, (each) => each.confusion && matrixOf(each.confusion));
  if (matrices) nodes.push(element("h2", {}, "Confusion, 1-NN at the end"), element("div", { class: several ? "grid" : "" }, ...matrices.filter((node) => node)));
  nodes.push(element("h2", {}, "Speed"), ...perGroup(groups, (each) =>
    element("div", { class: "two" }, facts(each.speed), passesOf(each.passes))));
  nodes.push(element("h2", {}, "Configuration"));
  if (several) {
    nodes.push(element("p", { class: "soft" }, "What differs:"),
      table(["setting", ...groups.map((each) => each.name)],
        differing.map((key) => [key, ...groups.map((each) => each.settings[key])])));
  }
  nodes.push(...perGroup(groups, configurationOf));
  main.replaceChildren(...nodes.filter((node) => node));
  start();
}

build();
// Pictures have the colors of the theme in them.
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
document.documentElement.dataset.ready = performance.now().toFixed(0);
