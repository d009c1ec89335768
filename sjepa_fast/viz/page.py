# SPDX-License-Identifier: Apache-2.0
"""A page that plays the frames of a movie: one file that needs nothing else, from no network.

matplotlib's own page fetches the signs on its buttons.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>sjepa_fast</title>
<style>
body { font: 14px sans-serif; margin: 1em; }
img { max-width: 100%; display: block; }
div { display: flex; gap: .6em; align-items: center; max-width: 60em; }
input[type=range] { flex: 1; }
</style>
<img id="frame" alt="frame of the movie">
<div>
<button id="play">pause</button>
<input id="place" type="range" min="0" value="0" aria-label="frame">
<output id="number"></output>
<label>speed <select id="speed"><option>0.25<option>0.5<option selected>1<option>2</select></label>
</div>
<p>Space plays and pauses, the arrow keys go a frame back and forth.</p>
<script>
const frames = FRAMES, pause = PAUSE;
const [image, play, place, number, speed] =
  ["frame", "play", "place", "number", "speed"].map(id => document.getElementById(id));
let at = 0, playing = true;
place.max = frames.length - 1;
function show(frame) {
  at = (frame + frames.length) % frames.length;
  image.src = "data:image/png;base64," + frames[at];
  place.value = at;
  number.value = `${at + 1} / ${frames.length}`;
}
function run(on) { playing = on; play.textContent = on ? "pause" : "play"; }
function tick() {
  if (playing) show(at + 1);
  setTimeout(tick, pause / speed.value);
}
play.onclick = () => run(!playing);
place.oninput = () => { run(false); show(+place.value); };
document.onkeydown = event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step) { run(false); show(at + step); }
  else if (event.key === " ") run(!playing);
  else return;
  event.preventDefault();
};
show(0);
tick();
</script>
"""


def page(frames: Sequence[bytes], rate: float) -> str:
    """Return the HTML that shows PNG images in turn, so many a second, with a slider."""
    texts = [base64.b64encode(frame).decode() for frame in frames]
    filled = _PAGE.replace("PAUSE", str(round(1000 / rate)))
    return filled.replace("FRAMES", json.dumps(texts))
