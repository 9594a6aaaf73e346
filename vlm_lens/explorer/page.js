// Draws the explorer from data; `load`, where there is one, brings runs that the data lacks.
function explorer(data, load) {
  const $ = id => document.getElementById(id);
  const make = (tag, props = {}, ...inside) => {
    const svg = ["svg", "image", "rect", "text", "title"].includes(tag);
    const e = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(props)) {
      if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
      else if (value !== undefined && value !== false) e.setAttribute(key, value === true ? "" : value);
    }
    e.append(...inside);
    return e;
  };
  const percent = p => p >= 0.9995 ? "100%" : p >= 0.1 ? (100 * p).toFixed(0) + "%" : p >= 0.001 ? (100 * p).toFixed(1) + "%" : "<0.1%";
  const numbers = text => {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    return new Uint16Array(bytes.buffer);
  };
  const UNIT = 65535;

  // ---------------------------------------------------------------- state, and its link
  const state = { model: 0, scene: 0, vector: "", block: 0, look: 0, head: 0, at: 0, show: "attention", sinks: true };
  const model = () => data.models[state.model], scene = () => model().scenes[state.scene];
  const byName = (list, name, otherwise) => { const i = list.findIndex(x => x.name === name); return i < 0 ? otherwise : i; };
  const within = (text, count, otherwise) => /^\d+$/.test(text || "") && +text < count ? +text : otherwise;
  function fresh() {  // where a scene opens: the last token, the vector whose answer is known
    const s = scene(), n = model().blocks;
    state.at = s.last;
    if (!model().vectors.some(v => v.name === state.vector)) state.vector = "";
    state.block = Math.min(state.block, n - 1);
    if (!model().attentionBlocks.includes(state.look)) state.look = model().attentionBlocks[0] ?? 0;
    if (!canShow().includes(state.show)) state.show = canShow()[0];
  }
  function goTo(i) {  // another prompt: the vector stays where its task has an answer
    const there = () => {
      state.scene = i;
      if (state.vector && !(state.vector in scene().expected)) opening(); else fresh();
      draw();
    };
    if (model().scenes[i].plain) there(); else load.scene(model(), i, there);
  }
  function opening() {
    const m = model(), s = scene();
    const succeeds = v => Object.values(s.written[v.name] || {}).some(run => (run.right || [])[0]);
    state.vector = (m.vectors.find(succeeds) || m.vectors.find(v => v.name in s.expected) || m.vectors[0] || { name: "" }).name;
    const runs = s.written[state.vector] || {};
    const right = Object.keys(runs).map(Number).filter(b => (runs[b].right || [])[0]);
    state.block = right.length ? right[right.length >> 1] : m.blocks >> 1;
    fresh();
    [state.look, state.head] = strongest();
  }
  function strongest() {  // the head that looks at the picture most
    const run = runAt(state.at);
    let best = [state.look, state.head], most = -1;
    if (run && run.attention) for (const look of model().attentionBlocks)
      for (let head = 0; head < run.heads; head++) {
        const share = toTarget(run, look, head);
        if (share > most) [best, most] = [[look, head], share];
      }
    return best;
  }
  function readLink() {
    let link;
    try { link = new URLSearchParams(location.hash.slice(1)); } catch { return false; }
    if (![...link.keys()].length) return false;
    state.model = byName(data.models, link.get("model"), 0);
    const row = byName(model().scenes, link.get("row"), 0);
    if (model().scenes[row].plain) state.scene = row;
    opening();
    const n = model().blocks;
    if (link.has("vector")) state.vector = byName(model().vectors, link.get("vector"), -1) < 0 ? "" : link.get("vector");
    state.block = within(link.get("block"), n, state.block);
    state.look = within(link.get("look"), n, state.look);
    state.at = within(link.get("at"), scene().tokens.length, state.at);
    state.head = within(link.get("head"), heads(), state.head);
    if (canShow().includes(link.get("show"))) state.show = link.get("show");
    state.sinks = link.get("sinks") !== "out";
    return true;
  }
  function writeLink() {
    const link = new URLSearchParams({ model: model().name, row: scene().name, vector: state.vector || "none",
      block: state.block, look: state.look, head: state.head, at: state.at, show: state.show });
    if (!state.sinks) link.set("sinks", "out");
    try { history.replaceState(null, "", "#" + link); } catch { /* a frame without an address */ }
  }

  // ---------------------------------------------------------------- numbers
  const need = (vector, block) => vector ? ((scene().written[vector] ||= {})[block]) : scene().plain;
  const decoded = new WeakMap();
  function arrays(run) {
    if (!decoded.has(run)) decoded.set(run, {
      attention: run.attention && numbers(run.attention),
      words: run.lensWords && numbers(run.lensWords), probs: run.lensProbs && numbers(run.lensProbs),
      index: new Map(run.positions.map((p, i) => [p, i])) });
    return decoded.get(run);
  }
  // the run that holds a position: with the vector where the writing changed it
  function runAt(position, vector = state.vector) {
    for (const run of [vector && need(vector, state.block), scene().plain, ...(scene().more || [])])
      if (run && arrays(run).index.has(position)) return run;
    return null;
  }
  function attentionOf(run, position, look, head) {  // over all keys
    const a = arrays(run), n = scene().tokens.length, i = a.index.get(position);
    const l = model().attentionBlocks.indexOf(look);
    if (!a.attention || i === undefined || l < 0) return null;
    const start = ((l * run.heads + head) * run.positions.length + i) * n;
    return Array.from(a.attention.subarray(start, start + n), (v, key) => hiddenSink(key) ? 0 : v / UNIT);
  }
  const hiddenSink = key => !state.sinks && scene().sinks.includes(key);
  const heads = () => scene().plain.heads || 0;
  const isPicture = i => scene().tokens[i][1].startsWith("image");
  function targets() {  // what the heads are coloured by
    const all = scene().tokens.map((_, i) => i), pictures = all.filter(isPicture);
    return pictures.length ? pictures : all.filter(i => i > 0 && i !== state.at);
  }
  const toTarget = (run, look, head) => {
    const row = attentionOf(run, state.at, look, head);
    return row ? targets().reduce((t, key) => t + row[key], 0) : 0;
  };
  function lensOf(run, position, block) {
    const a = arrays(run), i = a.index.get(position), k = run.lensK;
    if (!a.words || i === undefined) return null;
    const start = (block * run.positions.length + i) * k;
    return [...Array(k).keys()].map(j => [run.words[a.words[start + j]], a.probs[start + j] / UNIT]);
  }
  const canShow = () => [
    ...(heads() && model().attentionBlocks.length ? ["attention"] : []),
    ...(scene().plain.lensWords ? ["lens"] : []), "patches"];

  // ---------------------------------------------------------------- parts
  const word = text => make("span", { class: "word" }, text);
  function bar(text, p, right) {
    const mark = right ? [make("span", { class: "right" }, " \u2713"), make("span", { class: "hush" })] : [];
    const e = make("li", { class: "bar" }, make("span", {}, word(text), ...mark), make("span", { class: "percent" }, percent(p)));
    e.style.setProperty("--p", (100 * p).toFixed(1) + "%");
    if (right) e.setAttribute("aria-label", text + ", right, " + percent(p));
    return e;
  }
  // black or white on a colour, whichever is read better
  let plus, panel;
  const rgb = name => { const v = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return v[0] === "#" ? (v.length < 7 ? [1, 2, 3].map(i => parseInt(v[i] + v[i], 16)) : [1, 3, 5].map(i => parseInt(v.slice(i, i + 2), 16))) : v.split(",").map(Number); };
  function tint(e, alpha) {
    const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = plus.map((v, i) => linear(v * alpha + panel[i] * (1 - alpha)));
    e.style.setProperty("--s", alpha.toFixed(3));
    if (alpha > 0.02) e.style.setProperty("--on", 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff");
  }
  function radios(box, name, items, current, pick) {
    box.replaceChildren(...items.map(({ value, inside, label }) => make("label", {},
      make("input", { type: "radio", name, value, "data-key": name + "=" + value, checked: value === current, "aria-label": label, onchange: () => pick(value) }), ...inside)));
  }
  // one stop of the tab key for a group; arrows go on inside it
  function rove(box, items, current, columns) {
    items.forEach((e, i) => {
      e.setAttribute("tabindex", i === current ? 0 : -1);
      e.addEventListener("keydown", event => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
        const to = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : step === undefined ? -1 : i + step;
        if (to >= 0 && to < items.length) { items[to].focus(); event.preventDefault(); }
        if (e.namespaceURI.endsWith("svg") && (event.key === "Enter" || event.key === " ")) {
          e.dispatchEvent(new MouseEvent("click")); event.preventDefault();
        }
      });
    });
  }
  function keepingFocus(draw) {  // what is drawn anew keeps the place of the keyboard
    const key = document.activeElement && document.activeElement.dataset && document.activeElement.dataset.key;
    draw();
    if (key) { const e = document.querySelector('[data-key="' + CSS.escape(key) + '"]'); if (e) e.focus({ preventScroll: true }); }
  }

  // ---------------------------------------------------------------- panels
  function drawChoices() {
    const m = model();
    $("models").hidden = data.models.length < 2;
    radios($("models").lastElementChild, "model", data.models.map((x, i) => ({ value: String(i), inside: [x.name] })), String(state.model),
      i => { state.model = +i; state.scene = byName(model().scenes, m.scenes[state.scene].name, 0); opening(); draw(); });
    radios($("scenes").lastElementChild, "scene", m.scenes.map((x, i) => ({ value: String(i), inside: [
      ...x.pictures.slice(0, 1).map(p => make("img", { src: p.uri, alt: "" })), x.name] })), String(state.scene),
      i => goTo(+i));
    $("vectors").hidden = !m.vectors.length;
    radios($("vectors").querySelector(".chips"), "vector", [{ value: "", inside: ["none"] }, ...m.vectors.map(v => ({ value: v.name, inside: [v.name] }))],
      state.vector, v => { state.vector = v; state.at = scene().last; draw(); });
    const about = m.vectors.find(v => v.name === state.vector);
    $("vector-about").textContent = about
      ? "The vector " + about.name + (about.about ? " was " + about.about : "") + ". It replaces what the last token holds after one block; the prompt stays as it is."
      : "A task vector is what a model holds while it reads examples of a task. Choose one, and see the answer change.";
  }
  function drawAnswers() {
    const s = scene(), run = state.vector && need(state.vector, state.block), expected = s.expected[state.vector];
    const list = (title, r, right) => make("div", {}, make("h3", {}, title),
      r ? make("ol", {}, ...r.answers.map((w, i) => bar(r.words[w], r.probs[i], right && right[i]))) : make("p", { class: "soft" }, load ? "computing\u2026" : "not in this page"));
    $("answer-about").textContent = "The likeliest next tokens after the prompt." + (expected ? " Right for " + state.vector + " would be: " + expected + "." : "");
    document.querySelector(".answers").replaceChildren(
      list(state.vector ? "As it is" : "The prompt as it is", s.plain),
      ...(state.vector ? [list("With " + state.vector + " after block " + state.block, run, run && run.right)] : []));
    $("writing").hidden = !state.vector;
    $("block").max = model().blocks - 1;
    $("block").value = state.block;
    $("block-value").textContent = state.block;
    $("block").setAttribute("aria-valuetext", "block " + state.block + (run ? ", answer " + run.words[run.answers[0]] : ""));
    const strip = document.querySelector(".strip"), runs = state.vector ? s.written[state.vector] || {} : {};
    strip.hidden = !Object.keys(runs).length;
    const fields = Object.keys(runs).map(Number).sort((a, b) => a - b).map(b => make("button", { type: "button", "data-key": "strip" + b,
      "aria-pressed": String(b === state.block), onclick: () => { state.block = b; draw(); } },
      make("small", {}, "block " + b), make("span", {}, word(runs[b].words[runs[b].answers[0]]),
        ...(runs[b].right && runs[b].right[0] ? [make("span", { class: "right" }, " \u2713")] : []))));
    strip.style.setProperty("--columns", fields.length <= 4 ? fields.length : fields.length <= 12 ? Math.ceil(fields.length / 2) : 6);
    strip.replaceChildren(...fields);
    rove(strip, fields, Math.max(0, fields.findIndex(f => f.getAttribute("aria-pressed") === "true")), 1);
  }
  function drawStory() {
    const s = scene(), run = state.vector && need(state.vector, state.block), first = r => make("b", {}, r.words[r.answers[0]]);
    $("story").replaceChildren("Given ", make("code", {}, s.prompt), ", " + model().name + " goes on with ", first(s.plain), ".",
      ...(run ? [" With the vector of " + state.vector + " written after block " + state.block + " it goes on with ", first(run),
        run.right && run.right[0] ? ", which is right." : s.expected[state.vector] ? "; right would be " + s.expected[state.vector] + "." : "."] : []));
  }
  let places = new Map(), values = null;
  const nameOf = i => { const [text, kind] = scene().tokens[i]; const cell = cellsAt.get(i);
    return kind.startsWith("image") ? (cell ? "patch (" + cell[5] + ", " + cell[6] + ")" : scene().drawings.some(d => d.latents) ? "latent" : "picture token") + " at " + i : "\u201c" + text + "\u201d at " + i; };
  let cellsAt = new Map(), latentCells = [];
  const select = i => { state.at = i; draw(); };
  function place(e, i) {
    places.set(i, [...(places.get(i) || []), e]);
    e.addEventListener("click", () => select(i));
    for (const [event, on] of [["pointerenter", 1], ["pointerleave", 0], ["focus", 1], ["blur", 0]])
      e.addEventListener(event, () => light(i, on));
  }
  function light(i, on) {
    for (const e of places.get(i) || []) e.classList.toggle("on", !!on);
    for (const { rects, latents, weights, base } of latentCells) {  // what a latent has read, while it is pointed at
      const l = latents.indexOf(i), n = rects.length;
      if (l >= 0) rects.forEach((e, k) => e.setAttribute("fill-opacity", on ? 0.7 * weights[l * n + k] / Math.max(...weights.subarray(l * n, l * n + n)) : base[k]));
    }
    $("told").textContent = on ? tell(i) : idle();
  }
  function pool(d, svg) {  // patches without tokens: what is looked at of each latent, times what it has read
    const n = d.cells.length, weights = numbers(d.weights);
    const seen = d.cells.map((_, k) => values ? d.latents.reduce((t, at, l) => t + values[at] * weights[l * n + k] / UNIT, 0) : 0);
    const most = Math.max(...seen, 1e-9), base = seen.map(v => (0.7 * v / most).toFixed(3));
    const rects = d.cells.map((c, k) => {
      const e = make("rect", { x: c[0], y: c[1], width: c[2], height: c[3], class: "cell", "fill-opacity": base[k] });
      const best = d.latents.reduce((b, _, l) => weights[l * n + k] > weights[b * n + k] ? l : b, 0);
      e.addEventListener("pointerenter", () => {
        for (const twin of places.get(d.latents[best]) || []) twin.classList.add("on");
        $("told").textContent = "patch (" + c[5] + ", " + c[6] + "), read most by the latent at " + d.latents[best] + (values ? "; it gets " + percent(seen[k]) + " of the attention through its latents" : "") + ".";
      });
      e.addEventListener("pointerleave", () => light(d.latents[best], 0));
      return e;
    });
    svg.append(...rects);
    latentCells.push({ rects, latents: d.latents, weights, base });
  }
  const idle = () => ({
    attention: "Colour: attention from " + nameOf(state.at) + " in head " + state.head + " of block " + state.look
      + ", patches set against the strongest patch, other tokens against the strongest of them.",
    lens: (cellsAt.size ? "On each patch" : "At each token of the picture") + ": what block " + state.look + " would say there.",
    patches: cellsAt.size ? "Each square is one patch. Point at one to find its token." : "The picture as it is given." }[state.show]);
  function tell(i) {
    const told = [nameOf(i)], run = runAt(i), lens = run && lensOf(run, i, state.look);
    if (scene().sinks.includes(i)) told.push("an attention sink");
    if (values) told.push("gets " + percent(values[i]) + " of the attention");
    if (lens) told.push("block " + state.look + " would say " + lens.slice(0, 3).map(([w, p]) => w + " " + percent(p)).join(", "));
    return told.join("; ") + ".";
  }
  function drawPrompt() {
    const s = scene(), drawings = s.drawings, run = runAt(state.at);
    latentCells = [];
    cellsAt = new Map(drawings.filter(d => !d.latents).flatMap(d => d.cells).map(c => [c[4], c]));
    values = state.show === "attention" && run ? attentionOf(run, state.at, state.look, state.head) : null;
    places = new Map();
    // patches are set against patches, the rest against the rest: a token that draws a hundred times
    // what a patch draws would leave every picture blank
    const peak = patches => Math.max(1e-9, ...(values || []).filter((_, i) => cellsAt.has(i) === patches));
    const peaks = [peak(false), peak(true)], shade = i => values ? values[i] / peaks[+cellsAt.has(i)] : 0;
    $("prompt-about").textContent = cellsAt.size
      ? "Each square of the picture is one patch, and each patch is one token. Select a patch or a token to see where the model looks from it, and what each block would say there."
      : "Select a token to see where the model looks from it, and what each block would say there." + (drawings.some(d => d.latents)
        ? " The picture\u2019s tokens are latents, each a mixture of patches: a patch is coloured by the attention to each latent, times what the latent has read of the patch. Point at a latent to see what it has read." : s.why.some(Boolean) ? " The picture has no squares: " + s.why.find(Boolean) + "." : "");
    radios($("show"), "show", canShow().map(v => ({ value: v, inside: [v] })), state.show, v => { state.show = v; draw(); });
    $("show").prepend(make("legend", {}, "Show"));
    $("show").hidden = canShow().length < 2;
    $("look").max = model().blocks - 1;
    $("look").value = state.look;
    $("look-value").textContent = state.look;
    $("look-label").hidden = state.show === "patches";
    document.querySelector(".pictures").replaceChildren(...drawings.map(d => drawing(s, d, shade)));
    const crowded = s.tokens.filter((_, i) => isPicture(i)).length > 160;  // then one field a picture
    const tokens = s.tokens.map(([text, kind], i) => {
      if (crowded && isPicture(i) && i !== state.at) {
        if (i && s.tokens[i - 1][1] === kind) return null;
        let end = i;
        while (end + 1 < s.tokens.length && s.tokens[end + 1][1] === kind) end += 1;
        const all = [...Array(end - i + 1).keys()].map(j => i + j);
        const e = make("span", { class: "token picture run" }, make("small", {}, i + "\u2013" + end),
          kind + (values ? ", " + percent(all.reduce((t, j) => t + values[j], 0)) : ""));
        for (const j of all) places.set(j, [...(places.get(j) || []), e]);
        return e;
      }
      const picture = kind.startsWith("image"), cell = cellsAt.get(i), sh = 0.85 * shade(i);
      const lensed = state.show === "lens" && picture && runAt(i) ? lensOf(runAt(i), i, state.look) : null;
      const e = make("button", { type: "button", class: "token" + (picture ? " picture" : "") + (i === state.at ? " at" : "") + (s.sinks.includes(i) ? " sink" : ""),
        "data-key": "token" + i, "aria-pressed": String(i === state.at), "aria-label": nameOf(i) + (values ? ", " + percent(values[i]) : "") },
        make("small", {}, String(i)), lensed ? lensed[0][0] : picture ? (cell ? cell[5] + "," + cell[6] : drawings.some(d => d.latents) ? "latent" : "img") : text);
      tint(e, sh);
      place(e, i);
      return e;
    }).filter((e, i) => e && s.tokens[i][1] !== "pad");
    const box = document.querySelector(".tokens");
    box.replaceChildren(...tokens);
    const chosen = tokens.filter(e => e.tagName === "BUTTON");
    rove(box, chosen, Math.max(0, chosen.findIndex(e => e.classList.contains("at"))), 1);
    $("told").textContent = idle();
  }
  function drawing(s, d, shade) {
    const [x, y, w, h] = d.box, zoom = Math.min(340 / w, 340 / h), picture = s.pictures[d.image];
    const svg = make("svg", { viewBox: d.box.join(" "), width: Math.round(w * zoom), height: Math.round(h * zoom), role: "group",
      "aria-label": "picture " + d.image + ", " + (d.cells.length ? d.cells.length + " patches" : "no patches") });
    if (picture) svg.append(make("image", { href: picture.uri, x: 0, y: 0, width: d.size[0], height: d.size[1], preserveAspectRatio: "none",
      class: state.show === "attention" && d.cells.length ? "grey" : undefined }));
    if (d.latents) pool(d, svg);
    const words = [], rects = (d.latents ? [] : d.cells).map(c => {
      const e = make("rect", { x: c[0], y: c[1], width: c[2], height: c[3], "fill-opacity": (0.7 * shade(c[4])).toFixed(3), role: "button",
        class: "cell" + (c[4] === state.at ? " at" : "") + (s.sinks.includes(c[4]) ? " sink" : ""), "data-key": "patch" + c[4], "aria-label": nameOf(c[4]) });
      place(e, c[4]);
      const lens = state.show === "lens" && runAt(c[4]) && lensOf(runAt(c[4]), c[4], state.look);
      if (lens && c[2] * zoom >= 26) {
        const size = Math.min(13, 1.55 * c[2] * zoom / Math.max(lens[0][0].length, 3), 0.7 * c[3] * zoom) / zoom;
        words.push(make("text", { class: "cell-word", x: c[0] + c[2] / 2, y: c[1] + c[3] / 2, "font-size": size.toFixed(2), "stroke-width": (3 / zoom).toFixed(2) }, lens[0][0]));
      }
      return e;
    });
    svg.append(...rects, ...words);
    const columns = d.cells.length ? Math.max(...d.cells.map(c => c[6])) + 1 : 1;
    if (rects.length) rove(svg, rects, Math.max(0, d.cells.findIndex(c => c[4] === state.at)), columns);
    return make("figure", {}, svg, ...(s.drawings.length > 1 ? [make("figcaption", {}, "picture " + d.image + (d.tiles ? ", its tiles" : ""))] : []));
  }
  function drawAttention() {
    const run = runAt(state.at), m = model(), box = document.querySelector(".heads"), why = scene().missing.attention;
    const pictured = scene().tokens.some((_, i) => isPicture(i));
    const usable = run && run.attention;
    $("attention-about").textContent = why ? "No attention here: " + why : usable
      ? "How much of the attention of " + nameOf(state.at) + " goes to " + (pictured ? "the picture" : "other tokens than the first and itself") + ", by block and head. Select a field to see it over the picture and the tokens."
      : load ? "Computing\u2026" : "This page does not hold the attention of " + nameOf(state.at) + ".";
    box.hidden = !usable;
    if (usable) {
      const n = run.heads, fields = [];
      const rows = m.attentionBlocks.flatMap(look => [make("span", {}, "block " + look), ...[...Array(n).keys()].map(head => {
        const share = toTarget(run, look, head);
        const e = make("button", { type: "button", "data-key": "head" + look + "." + head, "aria-pressed": String(look === state.look && head === state.head), "aria-label": "block " + look + ", head " + head + ": " + percent(share),
          title: "block " + look + ", head " + head + ": " + percent(share),
          onclick: () => { state.look = look; state.head = head; state.show = "attention"; draw(); } }, percent(share));
        tint(e, 0.9 * share);
        fields.push(e);
        return e;
      })]);
      box.style.gridTemplateColumns = "max-content repeat(" + n + ", minmax(" + (n > 12 ? 18 : 38) + "px, 1fr))";
      box.classList.toggle("many", n > 12);
      box.replaceChildren(make("span"), ...[...Array(n).keys()].map(h => make("span", {}, n > 12 ? String(h) : "head " + h)), ...rows);
      rove(box, fields, Math.max(0, fields.findIndex(f => f.getAttribute("aria-pressed") === "true")), n);
    }
    const sinks = scene().sinks;
    $("sinks").checked = !state.sinks;
    $("sinks").disabled = !sinks.length;
    $("sinks-label").hidden = !usable;
    $("sinks-label").lastElementChild.textContent = sinks.length
      ? "leave out attention sinks (tokens that draw attention whatever is asked): " + sinks.map(nameOf).join(", ")
      : "no attention sinks in this prompt (tokens that draw attention whatever is asked)";
  }
  function drawLens() {
    const s = scene(), plain = s.plain, with_ = state.vector && need(state.vector, state.block);
    const why = s.missing.lens, changed = with_ && arrays(with_).index.has(state.at);
    const table = $("lens").querySelector("table"), known = arrays(plain).index.has(state.at) && plain.lensWords;
    $("lens-about").textContent = why ? "No lens here: " + why : known
      ? "The logit lens: what the model would say at " + nameOf(state.at) + " if this block were its last."
        + (state.vector && with_ && !changed ? " The vector is written at the last token and leaves this one as it is." : "")
      : load ? "Computing\u2026" : "This page does not hold what is read at " + nameOf(state.at) + ".";
    table.hidden = !known;
    if (!known) return;
    table.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "block"), make("th", { scope: "col" }, changed ? "as it is" : "would say"),
      ...(changed ? [make("th", { scope: "col" }, "with " + state.vector)] : [])));
    const cell = (top, here) => make("td", {}, ...(here ? [make("div", { class: "here" }, "written here")] : []), ...(top ? [bar(...top[0]), make("div", { class: "more" }, top.slice(1, 3).map(([w, p]) => w + " " + percent(p)).join("  \u00b7  "))] : []));
    table.tBodies[0].replaceChildren(...[...Array(model().blocks).keys()].map(b => make("tr", { "aria-current": String(b === state.look),
      class: changed && b === state.block ? "written" : undefined },
      make("th", { scope: "row" }, make("button", { type: "button", "data-key": "lens" + b, onclick: () => { state.look = b; draw(); } }, String(b))),
      cell(lensOf(plain, state.at, b)), ...(changed ? [cell(lensOf(with_, state.at, b), b === state.block)] : []))));
    for (const li of table.querySelectorAll("li")) { const div = make("div", { class: "bar", style: li.getAttribute("style") }); div.append(...li.childNodes); li.replaceWith(div); }
  }
  function draw() {
    [plus, panel] = [rgb("--plus"), rgb("--panel")];
    keepingFocus(() => { drawChoices(); drawStory(); drawAnswers(); drawPrompt(); drawAttention(); drawLens(); });
    writeLink();
    if (load) load.next(state, scene(), runAt(state.at), draw);
  }

  $("block").addEventListener("input", e => { state.block = +e.target.value; draw(); });
  $("look").addEventListener("input", e => { state.look = +e.target.value; draw(); });
  $("sinks").addEventListener("change", e => { state.sinks = !e.target.checked; draw(); });
  const edge = box => box.classList.toggle("fades", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  const sized = new ResizeObserver(all => all.forEach(({ target }) => edge(target.closest(".scroll"))));
  for (const box of document.querySelectorAll(".scroll")) {  // what goes on to the right fades out there
    sized.observe(box);
    sized.observe(box.firstElementChild);
    box.addEventListener("scroll", () => edge(box));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("hashchange", () => { if (readLink()) draw(); });
  function start() {
    if (!readLink()) opening();
    draw();
  }
  if (load) {  // the prompt that a link names has to be there before the link is read
    const wanted = byName(model().scenes, new URLSearchParams(location.hash.slice(1)).get("row"), 0);
    load.scene(model(), wanted, () => { state.scene = wanted; start(); });
    load.added = i => goTo(i);
  } else start();
}
