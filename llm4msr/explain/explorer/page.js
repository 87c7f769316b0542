// Every text of data or LLM goes onto the page as text: through `textContent`, never as markup.
const SHOWN = 20, TITLE = 120, PAUSE = 150;
const at = (id) => document.getElementById(id);
const state = { token: "", person: null, history: null, edited: false, asked: 0, places: {} };

function made(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function short(text) {
  const line = text.slice(0, 4 * TITLE).replace(/[\p{Cc}\p{Cs}\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/gu, "\ufffd").replace(/\s+/g, " ").trim();
  return line.length > TITLE ? line.slice(0, TITLE - 1) + "…" : line;
}

async function ask(path, body) {
  const headers = { "content-type": "application/json" };
  if (state.token) headers.authorization = `Bearer ${state.token}`;
  const sent = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(`api/${path}`, sent);
  if (answer.status === 401) {
    at("token-form").hidden = false;
    at("token").focus();
  }
  const found = await answer.json();
  if (answer.ok) return found;
  const told = Array.isArray(found.detail) ? found.detail.map((one) => `${one.loc.join(".")}: ${one.msg}`).join("; ") : found.detail;
  throw new Error(told || `the endpoint answers ${answer.status}`);
}

async function tried(action) {
  at("problem").hidden = true;
  try {
    await action();
  } catch (error) {
    at("problem").textContent = error.message;
    at("problem").hidden = false;
    at("status").textContent = "";
  }
}

function later(action) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(() => tried(action), PAUSE); };
}

async function start() {
  const { scenarios, editable, name, titles_read } = await ask("run");
  at("name").textContent = name;
  for (const id of ["scenario", "where"]) at(id).replaceChildren(...scenarios.map((one) => made("option", one, { value: one })));
  at("add").hidden = !editable;
  at("edit-note").textContent += ` The LLM reads the last ${titles_read} of each scenario.`;
  if (!editable) at("edit-note").textContent = "This run pools vectors from items or answers, so a history cannot be edited here.";
  state.editable = editable;
  at("token-form").hidden = true;
  await search();
}

async function search() {
  const found = await ask(`users?begins=${encodeURIComponent(at("search").value)}`);
  at("found").replaceChildren(...found.map((one) => {
    const row = made("li");
    const button = made("button", "", { type: "button", "aria-pressed": String(one.user_id === state.person?.user_id) });
    button.append(made("bdi", short(one.user_id)));
    button.title = `${one.rows} rows, most in ${one.main}${one.known ? "" : ", no knowledge"}`;
    button.addEventListener("click", () => tried(() => choose(one.user_id)));
    row.append(button);
    return row;
  }));
  if (!found.length) at("found").append(made("li", "Nobody's id begins so."));
}

async function choose(user) {
  state.person = await ask(`user?user_id=${encodeURIComponent(user)}`);
  at("scenario").value = at("where").value = state.person.scenario;
  back();
  for (const button of at("found").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.textContent === short(user)));
  await rank();
}

function back() {
  state.history = structuredClone(state.person.history);
  state.edited = false;
  state.places = {};
  showHistory();
  showKnowledge(state.person.prompt);
}

function showHistory() {
  at("reset").disabled = !state.edited;
  const parts = [];
  for (const part of state.history.filter((one) => one.titles.length)) {
    parts.push(made("h3", short(part.scenario)));
    const list = made("ul", "", { class: "chips" });
    part.titles.forEach((title, place) => {
      const row = made("li");
      row.append(made("bdi", short(title)));
      if (state.editable) {
        const button = made("button", "Take out", { type: "button", "aria-label": `Take out ${short(title)}` });
        button.addEventListener("click", () => edit(() => part.titles.splice(place, 1)));
        row.append(button);
      }
      list.append(row);
    });
    parts.push(list);
  }
  at("history").replaceChildren(...(parts.length ? parts : [made("p", "Nothing liked before the cut.", { class: "note" })]));
}

function showKnowledge(prompt) {
  const { interests, answer, known } = state.person;
  const parts = Object.entries(interests).map(([scenario, words]) => made("p", `${short(scenario)}: ${words.map(short).join("; ")}`));
  if (!parts.length && answer) parts.push(made("blockquote", answer, { dir: "auto" }));
  if (!parts.length) parts.push(made("p", known ? "A vector; no text was asked for (extract.answers = \"all\" asks one for each user)." : "Nothing: this user has no knowledge, so the model uses its learned default.", { class: "note" }));
  if (state.edited) parts.unshift(made("p", "The texts below are of the true history.", { class: "note" }));
  at("knowledge").replaceChildren(...parts);
  at("prompt").textContent = prompt;
}

function edit(change) {
  change();
  state.edited = true;
  showHistory();
  tried(rank);
}

async function rank() {
  if (!state.person) return;
  const number = ++state.asked, begun = performance.now();
  at("status").textContent = state.edited ? "The LLM reads the new history …" : "Ranking …";
  const found = await ask("rank", {
    user_id: state.person.user_id,
    scenario: at("scenario").value,
    user_strength: Number(at("user-strength").value),
    scenario_strength: Number(at("scenario-strength").value),
    history: state.edited ? state.history : null,
  });
  if (number !== state.asked) return; // a later question was asked meanwhile
  const before = [...found.lines].sort((a, b) => a.rank_without - b.rank_without);
  at("without").replaceChildren(...before.slice(0, SHOWN).map((line) => row(line)));
  at("with").replaceChildren(...found.lines.slice(0, SHOWN).map((line) => row(line, state.places[line.title])));
  state.places = Object.fromEntries(found.lines.map((line) => [line.title, line.rank_with]));
  if (state.edited) showKnowledge(found.prompt);
  const whose = { own: "the user's own vector", edited: "the vector of the edited history", none: "no knowledge of this user" }[found.knowledge];
  at("status").textContent = `${found.lines.length} candidates ranked with ${whose} in ${Math.round(performance.now() - begun)} ms.`;
}

function row(line, last) {
  const item = made("li");
  const title = made("span", "", { class: "title" });
  title.append(made("bdi", line.title));
  item.append(title);
  const places = line.rank_without - line.rank_with;
  const words = places > 0 ? ["up", `▲ ${places}`] : places < 0 ? ["down", `▼ ${-places}`] : ["", "·"];
  const move = made("span", words[1], { class: `move ${words[0]}` });
  move.append(made("span", places ? ` places ${words[0]} with the levels` : " same place with the levels", { class: "sr" }));
  item.append(move);
  if (last !== undefined && last !== line.rank_with) item.classList.add("moved");
  return item;
}

for (const level of ["user", "scenario"]) {
  const asks = later(rank);
  at(`${level}-strength`).addEventListener("input", () => {
    at(`${level}-shown`).textContent = Number(at(`${level}-strength`).value).toFixed(2);
    asks();
  });
}
at("search").addEventListener("input", later(search));
at("scenario").addEventListener("change", () => tried(rank));
at("reset").addEventListener("click", () => { back(); tried(rank); });
at("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const title = at("title").value.trim(), scenario = at("where").value;
  if (!title || !state.person) return;
  edit(() => {
    const part = state.history.find((one) => one.scenario === scenario);
    if (part) part.titles.push(title);
    else state.history.push({ scenario, titles: [title] });
  });
  at("title").value = "";
});
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = at("token").value;
  tried(start);
});
tried(start);
