"use strict";
// Clips out of the page's data.

function bytesOf(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

function parts(values, count) {
  const size = values.length / count;
  return Array.from({ length: count }, (_, k) => values.subarray(k * size, (k + 1) * size));
}

function posesOf(text, clip) {
  const bytes = bytesOf(text);
  const view = new DataView(bytes.buffer);
  const poses = new Float32Array(bytes.length / 2);
  for (let i = 0; i < poses.length; i++) {
    poses[i] = (view.getInt16(2 * i, true) / 32767) * clip.reach + clip.middle[i % 3];
  }
  return parts(poses, clip.bodies);
}

// Arrays by body: poses (key frame, joint, coordinate), tokens (segment, joint).
function decoded(clip) {
  const found = { ...clip, poses: posesOf(clip.poses, clip) };
  for (const key of ["hidden", "loss", "attention"]) {
    found[key] = clip[key] === undefined ? null : parts(bytesOf(clip[key]), clip.bodies);
  }
  found.predicted = clip.predicted === undefined ? null : posesOf(clip.predicted, clip);
  return found;
}

// The pose at a frame of the network's crop, on straight lines between key frames.
function poseAt(poses, keys, frame, out) {
  let next = keys.findIndex((key) => key > frame);
  if (next < 0) next = keys.length - 1;
  const last = Math.max(next - 1, 0);
  const span = keys[next] - keys[last];
  const share = span > 0 ? Math.min((frame - keys[last]) / span, 1) : 0;
  const size = out.length;
  for (let i = 0; i < size; i++) {
    const from = poses[last * size + i];
    out[i] = from + (poses[next * size + i] - from) * share;
  }
  return out;
}
