"use strict";
// The skeleton: three.js draws it, fingers or the mouse turn it.

class Figure {
  // The bodies of a clip: a sphere for each joint, a cylinder for each bone.
  constructor(stage, scene, bodies, color) {
    this.scene = scene;
    this.bodies = bodies;
    const joints = scene.joints.length;
    this.pose = new Float32Array(3 * joints);
    const cloth = (options) => new THREE.MeshLambertMaterial(options);
    const round = new THREE.SphereGeometry(1, 14, 10);
    const stick = new THREE.CylinderGeometry(1, 1, 1, 8);
    this.joints = new THREE.InstancedMesh(round, cloth({}), bodies * joints);
    const paint = color ? rgb(color) : ink("bone");
    const bones = Math.max(bodies * scene.bones.length, 1);
    this.bones = new THREE.InstancedMesh(stick, cloth({ color: paint }), bones);
    for (const mesh of [this.joints, this.bones]) {
      mesh.frustumCulled = false;
      stage.add(mesh);
    }
    if (color) this.paint(() => color);
  }

  paint(colorOf) {
    const color = new THREE.Color();
    const joints = this.scene.joints.length;
    for (let body = 0; body < this.bodies; body++) {
      for (let joint = 0; joint < joints; joint++) {
        const [red, green, blue] = colorOf(body, joint).map((value) => value / 255);
        color.setRGB(red, green, blue, "srgb");
        this.joints.setColorAt(body * joints + joint, color);
      }
    }
    this.joints.instanceColor.needsUpdate = true;
  }

  place(poses, frame, size, shift) {
    const { bones, joints, keys } = this.scene;
    const matrix = new THREE.Matrix4();
    const [from, to, middle, along] = Array.from({ length: 4 }, () => new THREE.Vector3());
    const turn = new THREE.Quaternion();
    const up = new THREE.Vector3(0, 1, 0);
    const at = (joint, out) => out.fromArray(this.pose, 3 * joint).setX(this.pose[3 * joint] + shift);
    for (let body = 0; body < this.bodies; body++) {
      poseAt(poses[body], keys, frame, this.pose);
      for (let joint = 0; joint < joints.length; joint++) {
        at(joint, from);
        matrix.makeScale(size, size, size).setPosition(from);
        this.joints.setMatrixAt(body * joints.length + joint, matrix);
      }
      bones.forEach(([child, parent], k) => {
        at(child, from);
        at(parent, to);
        along.subVectors(to, from);
        const length = Math.max(along.length(), 1e-6);
        turn.setFromUnitVectors(up, along.divideScalar(length));
        middle.addVectors(from, to).multiplyScalar(0.5);
        matrix.compose(middle, turn, new THREE.Vector3(0.4 * size, length, 0.4 * size));
        this.bones.setMatrixAt(body * bones.length + k, matrix);
      });
    }
    this.joints.instanceMatrix.needsUpdate = true;
    this.bones.instanceMatrix.needsUpdate = true;
  }

  leave(stage) {
    for (const mesh of [this.joints, this.bones]) {
      stage.remove(mesh);
      mesh.geometry.dispose();
      mesh.material.dispose();
      mesh.dispose();
    }
  }
}

class Stage {
  constructor(box) {
    this.box = box;
    this.canvas = element("canvas", { "aria-label": "skeleton; drag to turn, pinch to zoom" });
    box.append(this.canvas);
    this.renderer = new THREE.WebGLRenderer({ canvas: this.canvas, antialias: true, alpha: true });
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
    this.world = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(35, 1, 0.01, 1000);
    // The sensor is at smaller z, a little to the side shows depth.
    this.camera.position.set(0.5, 0.3, -1);
    this.controls = new THREE.OrbitControls(this.camera, this.canvas);
    this.controls.enablePan = false;
    this.controls.addEventListener("change", () => this.ask());
    const lamp = new THREE.DirectionalLight(0xffffff, 1.7);
    this.camera.add(lamp);
    this.world.add(this.camera, new THREE.AmbientLight(0xffffff, 1.6));
    this.figures = [];
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(box);
  }

  // A browser has few contexts for all its pages.
  leave() {
    this.sizes.disconnect();
    this.controls.dispose();
    this.renderer.dispose();
    this.renderer.forceContextLoss();
    this.clip = null;
  }

  show(scene, clip) {
    for (const figure of this.figures) figure.leave(this.world);
    this.scene = scene;
    this.clip = clip;
    this.figures = [new Figure(this.world, scene, clip.bodies, null)];
    if (clip.predicted) this.figures.push(new Figure(this.world, scene, clip.bodies, GUESS));
    const [low, high] = this.bounds();
    this.size = 0.13 * this.boneLength();
    this.half = (high[0] - low[0]) / 2;
    // A gap as wide as the figure, at least a step.
    this.apart = clip.predicted ? this.half + 0.25 * (high[1] - low[1]) : 0;
    this.low = low;
    this.high = high;
    if (this.floor) this.world.remove(this.floor);
    const cells = 2 * (this.half + this.apart + (high[2] - low[2]) / 2) + 1;
    this.floor = new THREE.GridHelper(cells, 10, ink("line"), ink("line"));
    this.floor.position.set((low[0] + high[0]) / 2, low[1] - 1.2 * this.size, (low[2] + high[2]) / 2);
    this.world.add(this.floor);
    this.fit(true);
  }

  bounds() {
    const low = [Infinity, Infinity, Infinity];
    const high = [-Infinity, -Infinity, -Infinity];
    for (const poses of this.clip.poses) {
      poses.forEach((value, i) => {
        low[i % 3] = Math.min(low[i % 3], value);
        high[i % 3] = Math.max(high[i % 3], value);
      });
    }
    return [low, high];
  }

  boneLength() {
    const pose = this.clip.poses[0];
    const lengths = this.scene.bones.map(([a, b]) =>
      Math.hypot(...[0, 1, 2].map((k) => pose[3 * a + k] - pose[3 * b + k])));
    lengths.sort((a, b) => a - b);
    return lengths.length ? Math.max(lengths[lengths.length >> 1], 1e-3) : 0.1;
  }

  fit(anew) {
    const { clientWidth: width, clientHeight: height } = this.box;
    if (!width || !height || !this.clip) return;
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    if (anew) {
      const { low, high } = this;
      const middle = low.map((value, k) => (value + high[k]) / 2);
      const tall = (high[1] - low[1]) / 2;
      const wide = Math.hypot(this.half + this.apart, (high[2] - low[2]) / 2);
      const lens = Math.tan((this.camera.fov * Math.PI) / 360);
      const away = 1.05 * Math.max(tall / lens, wide / (lens * this.camera.aspect)) + 0.4 * wide;
      const direction = this.camera.position.clone().sub(this.controls.target).normalize();
      this.controls.target.fromArray(middle);
      this.camera.position.copy(direction.multiplyScalar(away)).add(this.controls.target);
      this.camera.near = away / 50;
      this.camera.far = away * 20;
      this.camera.updateProjectionMatrix();
      this.controls.update();
    }
    this.ask();
  }

  // Draws the clip at a frame of the network's crop.
  draw(frame, mode) {
    if (!this.clip) return;
    const { joints, sides, segment } = this.scene;
    const first = Math.floor(frame / segment) * joints.length;
    const [truth, guess] = this.figures;
    truth.paint((body, joint) => tokenColor(this.clip, mode, body, first + joint, joint, sides));
    truth.place(this.clip.poses, frame, this.size, this.apart);
    // The camera looks from smaller z, so larger x is on the left.
    if (guess) guess.place(this.clip.predicted, frame, this.size, -this.apart);
    this.ask();
  }

  ask() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      if (this.clip) this.renderer.render(this.world, this.camera);
    });
  }
}
