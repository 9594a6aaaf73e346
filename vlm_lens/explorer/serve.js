// Asks the program that serves the page for what the page lacks: one thing at a time, the latest first.
function serving() {
  const busy = document.getElementById("busy"), failed = new Set();
  let asking = 0, flying = false;
  const say = (text, error) => {
    busy.hidden = !text;
    busy.textContent = text;
    busy.classList.toggle("error", !!error);
  };
  async function ask(path, body) {
    asking += 1;
    say("Computing\u2026");
    try {
      const response = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      const found = await response.json();
      if (!response.ok) throw new Error(found.error);
      if (asking === 1) say("");
      return found;
    } catch (error) {
      say(error instanceof TypeError ? "The program that serves this page does not answer; is it still running?" : error.message, true);
      throw error;
    } finally { asking -= 1; }
  }
  const load = {
    scene(model, i, then) {
      if (model.scenes[i].plain) return then();
      ask("/scene", { scene: model.scenes[i].name }).then(found => { model.scenes[i] = found; then(); }, () => {});
    },
    next(state, scene, run, draw) {
      if (flying) return;
      const held = (scene.written[state.vector] || {})[state.block];
      const body = state.vector && (!held || held.short) ? { scene: scene.name, vector: state.vector, block: state.block }
        : run ? null : { scene: scene.name, at: state.at };
      const key = JSON.stringify(body);
      if (!body || failed.has(key)) return;
      flying = true;
      ask(body.vector ? "/written" : "/position", body).then(found => {
        if (!body.vector) (scene.more ||= []).push(found);
        else for (const [block, one] of Object.entries(found)) {
          const mine = (scene.written[body.vector] ||= {});
          if (!mine[block] || mine[block].short) mine[block] = one;
        }
      }, () => failed.add(key)).finally(() => { flying = false; draw(); });
    },
  };
  document.getElementById("ask").addEventListener("submit", async event => {
    event.preventDefault();
    const file = document.getElementById("file").files[0];
    const picture = file ? await new Promise((done, lost) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result.split(",")[1]);
      reader.onerror = () => lost(reader.error);
      reader.readAsDataURL(file);
    }) : null;
    const text = document.getElementById("text").value.replaceAll("\\n", "\n");
    const found = await ask("/prompt", { text, picture, name: file ? file.name : text }).catch(() => null);
    if (!found) return;
    DATA.models[0].scenes.push(found);
    load.added(DATA.models[0].scenes.length - 1);
  });
  return load;
}
const DATA = JSON.parse(document.getElementById("data").textContent);
explorer(DATA, serving());
