(() => {
  const root = document.getElementById($name), data = $data;
  if (!root || root.dataset.live) return;
  root.dataset.live = "1";
  const bytes = Uint8Array.from(atob(data.values), c => c.charCodeAt(0));
  const values = new Float32Array(bytes.buffer), n = data.shape[data.shape.length - 1];
  const at = data.sliders.map(() => 0);
  const told = root.querySelector(".told");
  const all = [...root.querySelectorAll("[data-i]")];
  const groups = {patches: all.filter(e => e.tagName === "rect"), tokens: all.filter(e => e.tagName !== "rect")};
  const idle = (groups.patches.length && groups.tokens.length ? "patches are set against patches, tokens against tokens; " : "") + "point at one to see its number";
  const twins = new Map();
  for (const e of all) twins.set(e.dataset.i, [...(twins.get(e.dataset.i) || []), e]);
  const show = v => Number.isNaN(v) ? "none" : Math.abs(v) >= 1e-3 || v === 0 ? v.toFixed(4) : v.toExponential(2);
  let now = values.subarray(0, n);
  const draw = () => {
    let start = 0;
    at.forEach((a, i) => { start = start * data.shape[i] + a; });
    now = values.subarray(start * n, start * n + n);
    for (const [group, mine] of Object.entries(groups)) {
      let largest = 0;
      for (const e of mine) { const v = Math.abs(now[+e.dataset.i]); if (v > largest) largest = v; }
      const scale = root.querySelector(".scale." + group);
      if (scale) {
        const known = mine.some(e => !Number.isNaN(now[+e.dataset.i]));
        const least = scale.querySelector(".both") ? show(-largest) : "0";
        scale.querySelector("i").style.display = largest ? "" : "none";
        scale.querySelector(".least").textContent = largest ? least : known ? "all 0" : "none";
        scale.querySelector(".most").textContent = largest ? show(largest) : "";
      }
      for (const e of mine) {
        const v = now[+e.dataset.i] || 0, s = largest ? $opaque * Math.abs(v) / largest : 0;
        e.classList.toggle("minus", v < 0);
        e.classList.toggle("plus", v >= 0);
        if (group === "patches") e.setAttribute("fill-opacity", s); else e.style.setProperty("--s", s);
      }
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
