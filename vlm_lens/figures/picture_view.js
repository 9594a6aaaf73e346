(() => {
  const root = document.getElementById($name), data = $data;
  if (!root || root.dataset.live) return;
  root.dataset.live = "1";
  const bytes = Uint8Array.from(atob(data.values), c => c.charCodeAt(0));
  const values = new Float32Array(bytes.buffer), n = data.shape[data.shape.length - 1];
  const at = data.sliders.map(() => 0);
  const idle = "colour is relative to the strongest shown; point at a patch or a token";
  const told = root.querySelector(".told"), most = root.querySelector(".most");
  const all = [...root.querySelectorAll("[data-i]")];
  const twins = new Map();
  for (const e of all) twins.set(e.dataset.i, [...(twins.get(e.dataset.i) || []), e]);
  const show = v => Number.isNaN(v) ? "none" : Math.abs(v) >= 1e-3 || v === 0 ? v.toFixed(4) : v.toExponential(2);
  let now = values.subarray(0, n);
  const draw = () => {
    let start = 0;
    at.forEach((a, i) => { start = start * data.shape[i] + a; });
    now = values.subarray(start * n, start * n + n);
    let largest = 0;
    for (const v of now) if (Math.abs(v) > largest) largest = Math.abs(v);
    most.textContent = show(largest);
    for (const e of all) {
      const v = now[+e.dataset.i] || 0, s = largest ? 0.85 * Math.abs(v) / largest : 0;
      e.classList.toggle("minus", v < 0);
      e.classList.toggle("plus", v >= 0);
      if (e.tagName === "rect") e.setAttribute("fill-opacity", s); else e.style.setProperty("--s", s);
    }
    for (const e of root.querySelectorAll("[data-all]")) {
      const inside = JSON.parse(e.dataset.all);
      e.querySelector("output").textContent = inside.length ? "sum " + show(inside.reduce((t, i) => t + now[i], 0)) : "";
    }
  };
  root.querySelectorAll("[data-slider]").forEach(input => input.addEventListener("input", () => {
    const i = +input.dataset.slider;
    at[i] = +input.value;
    input.parentElement.querySelector("output").textContent = data.sliders[i][at[i]];
    draw();
  }));
  const mark = (i, on) => {
    for (const e of twins.get(i) || []) e.classList.toggle("on", on);
    told.textContent = on ? data.labels[+i] + ": " + data.name + " " + show(now[+i]) : idle;
  };
  for (const e of all) {
    e.addEventListener("pointerenter", () => mark(e.dataset.i, true));
    e.addEventListener("pointerleave", () => mark(e.dataset.i, false));
  }
  told.textContent = idle;
  draw();
})();
