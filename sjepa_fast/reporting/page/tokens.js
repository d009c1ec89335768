"use strict";
// All tokens of a clip: joints down, segments of time across, bodies one below the other.

class TokenGrid {
  constructor(onframe) {
    this.canvas = element("canvas", { class: "tokens", "aria-label": "tokens of the clip" });
    this.marker = element("div", { class: "marker" });
    this.node = element("div", { class: "marked" }, this.canvas, this.marker);
    this.readout = element("div", { class: "readout" });
    this.canvas.addEventListener("pointermove", (event) => this.say(event));
    this.canvas.addEventListener("click", (event) => {
      this.say(event);
      const { segment } = this.cell(event);
      onframe(segment * this.scene.segment);
    });
  }

  show(scene, clip, mode) {
    Object.assign(this, { scene, clip, mode });
    const joints = scene.joints.length;
    this.segments = scene.frames / scene.segment;
    this.step = Math.max(1, Math.min(10, 240 / joints / clip.bodies));
    this.width = Math.max(this.node.clientWidth, 100);
    this.tall = joints * this.step + 6;
    const height = clip.bodies * this.tall - 6;
    this.canvas.style.height = `${height}px`;
    const context = canvasOf(this.canvas, this.width, height);
    const wide = this.width / this.segments;
    for (let body = 0; body < clip.bodies; body++) {
      for (let token = 0; token < this.segments * joints; token++) {
        const joint = token % joints;
        context.fillStyle = rgb(tokenColor(clip, mode, body, token, joint, scene.sides));
        const [x, y] = [Math.floor(token / joints) * wide, body * this.tall + joint * this.step];
        context.fillRect(x + 0.5, y, Math.max(wide - 1, 0.5), Math.max(this.step - 0.7, 0.6));
      }
    }
    this.marker.style.width = `${100 / this.segments}%`;
  }

  mark(frame) {
    const segment = Math.floor(frame / this.scene.segment);
    this.marker.style.left = `${(100 * segment) / this.segments}%`;
  }

  cell(event) {
    const box = this.canvas.getBoundingClientRect();
    const clamp = (value, most) => Math.min(Math.max(Math.floor(value), 0), most - 1);
    const y = event.clientY - box.top;
    const body = clamp(y / this.tall, this.clip.bodies);
    return {
      body,
      segment: clamp(((event.clientX - box.left) / box.width) * this.segments, this.segments),
      joint: clamp((y - body * this.tall) / this.step, this.scene.joints.length),
    };
  }

  say(event) {
    const { body, segment, joint } = this.cell(event);
    const token = segment * this.scene.joints.length + joint;
    const person = this.clip.bodies > 1 ? `person ${body + 1}, ` : "";
    const words = [this.clip.hidden[body][token] ? "masked" : "seen"];
    for (const [name, [low, high]] of Object.entries(this.scene.ranges)) {
      const level = this.clip[name][body][token];
      if (level) words.push(`${name} ${short(low + ((high - low) * (level - 1)) / 254)}`);
    }
    this.readout.textContent =
      `${person}${this.scene.joints[joint]}, segment ${segment}: ${words.join(", ")}`;
  }
}
