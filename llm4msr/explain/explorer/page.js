// Every text of data or LLM goes onto the page as text: through `textContent`, never as markup.
const SHOWN = 20, TITLE_LENGTH = 120, PAUSE_MS = 150;
const byId = (id) => document.getElementById(id);
const state = { token: "", person: null, history: null, edited: false, requests: 0, places: {} };

function newElement(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function short(text) {
  const line = text.slice(0, 4 * TITLE_LENGTH).replace(/[\p{Cc}\p{Cs}\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/gu, "\ufffd").replace(/\s+/g, " ").trim();
  return line.length > TITLE_LENGTH ? line.slice(0, TITLE_LENGTH - 1) + "…" : line;
}

async function request(path, body) {
  const headers = { "content-type": "application/json" };
  if (state.token) headers.authorization = `Bearer ${state.token}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const response = await fetch(`api/${path}`, options);
  if (response.status === 401) {
    byId("token-form").hidden = false;
    byId("token").focus();
  }
  const data = await response.json();
  if (response.ok) return data;
  const message = Array.isArray(data.detail) ? data.detail.map((error) => `${error.loc.join(".")}: ${error.msg}`).join("; ") : data.detail;
  throw new Error(message || `the endpoint answers ${response.status}`);
}

async function attempt(action) {
  byId("problem").hidden = true;
  try {
    await action();
  } catch (error) {
    byId("problem").textContent = error.message;
    byId("problem").hidden = false;
    byId("status").textContent = "";
  }
}

function debounce(action) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(() => attempt(action), PAUSE_MS); };
}

async function start() {
  const { scenarios, editable, name, titles_read } = await request("run");
  byId("name").textContent = name;
  for (const id of ["scenario", "where"]) byId(id).replaceChildren(...scenarios.map((scenario) => newElement("option", scenario, { value: scenario })));
  byId("add").hidden = !editable;
  byId("edit-note").textContent += ` The LLM reads the last ${titles_read} of each scenario.`;
  if (!editable) byId("edit-note").textContent = "This run pools vectors from items or answers, so a history cannot be edited here.";
  state.editable = editable;
  byId("token-form").hidden = true;
  await search();
}

async function search() {
  const users = await request(`users?begins=${encodeURIComponent(byId("search").value)}`);
  byId("found").replaceChildren(...users.map((user) => {
    const row = newElement("li");
    const button = newElement("button", "", { type: "button", "aria-pressed": String(user.user_id === state.person?.user_id) });
    button.append(newElement("bdi", short(user.user_id)));
    button.title = `${user.rows} rows, most in ${user.main}${user.known ? "" : ", no knowledge"}`;
    button.addEventListener("click", () => attempt(() => choose(user.user_id)));
    row.append(button);
    return row;
  }));
  if (!users.length) byId("found").append(newElement("li", "Nobody's id begins so."));
}

async function choose(user) {
  state.person = await request(`user?user_id=${encodeURIComponent(user)}`);
  byId("scenario").value = byId("where").value = state.person.scenario;
  restoreHistory();
  for (const button of byId("found").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.textContent === short(user)));
  await rank();
}

function restoreHistory() {
  state.history = structuredClone(state.person.history);
  state.edited = false;
  state.places = {};
  showHistory();
  showKnowledge(state.person.prompt);
}

function showHistory() {
  byId("reset").disabled = !state.edited;
  const parts = [];
  for (const part of state.history.filter((one) => one.titles.length)) {
    parts.push(newElement("h3", short(part.scenario)));
    const list = newElement("ul", "", { class: "chips" });
    part.titles.forEach((title, place) => {
      const row = newElement("li");
      row.append(newElement("bdi", short(title)));
      if (state.editable) {
        const button = newElement("button", "Take out", { type: "button", "aria-label": `Take out ${short(title)}` });
        button.addEventListener("click", () => edit(() => part.titles.splice(place, 1)));
        row.append(button);
      }
      list.append(row);
    });
    parts.push(list);
  }
  byId("history").replaceChildren(...(parts.length ? parts : [newElement("p", "Nothing liked before the cut.", { class: "note" })]));
}

function showKnowledge(prompt) {
  const { interests, answer, known } = state.person;
  const parts = Object.entries(interests).map(([scenario, words]) => newElement("p", `${short(scenario)}: ${words.map(short).join("; ")}`));
  if (!parts.length && answer) parts.push(newElement("blockquote", answer, { dir: "auto" }));
  if (!parts.length) parts.push(newElement("p", known ? "A vector; no text was asked for (extract.answers = \"all\" asks one for each user)." : "Nothing: this user has no knowledge, so the model uses its learned default.", { class: "note" }));
  if (state.edited) parts.unshift(newElement("p", "The texts below are of the true history.", { class: "note" }));
  byId("knowledge").replaceChildren(...parts);
  byId("prompt").textContent = prompt;
}

function edit(change) {
  change();
  state.edited = true;
  showHistory();
  attempt(rank);
}

async function rank() {
  if (!state.person) return;
  const number = ++state.requests, begun = performance.now();
  byId("status").textContent = state.edited ? "The LLM reads the new history …" : "Ranking …";
  const ranking = await request("rank", {
    user_id: state.person.user_id,
    scenario: byId("scenario").value,
    user_strength: Number(byId("user-strength").value),
    scenario_strength: Number(byId("scenario-strength").value),
    history: state.edited ? state.history : null,
  });
  if (number !== state.requests) return; // a later request was sent meanwhile
  const before = [...ranking.lines].sort((a, b) => a.rank_without - b.rank_without);
  byId("without").replaceChildren(...before.slice(0, SHOWN).map((line) => row(line)));
  byId("with").replaceChildren(...ranking.lines.slice(0, SHOWN).map((line) => row(line, state.places[line.title])));
  state.places = Object.fromEntries(ranking.lines.map((line) => [line.title, line.rank_with]));
  if (state.edited) showKnowledge(ranking.prompt);
  const whose = { own: "the user's own vector", edited: "the vector of the edited history", none: "no knowledge of this user" }[ranking.knowledge];
  byId("status").textContent = `${ranking.lines.length} candidates ranked with ${whose} in ${Math.round(performance.now() - begun)} ms.`;
}

function row(line, last) {
  const item = newElement("li");
  const title = newElement("span", "", { class: "title" });
  title.append(newElement("bdi", line.title));
  item.append(title);
  const places = line.rank_without - line.rank_with;
  const words = places > 0 ? ["up", `▲ ${places}`] : places < 0 ? ["down", `▼ ${-places}`] : ["", "·"];
  const move = newElement("span", words[1], { class: `move ${words[0]}` });
  move.append(newElement("span", places ? ` places ${words[0]} with the levels` : " same place with the levels", { class: "sr" }));
  item.append(move);
  if (last !== undefined && last !== line.rank_with) item.classList.add("moved");
  return item;
}

for (const level of ["user", "scenario"]) {
  const rankLater = debounce(rank);
  byId(`${level}-strength`).addEventListener("input", () => {
    byId(`${level}-shown`).textContent = Number(byId(`${level}-strength`).value).toFixed(2);
    rankLater();
  });
}
byId("search").addEventListener("input", debounce(search));
byId("scenario").addEventListener("change", () => attempt(rank));
byId("reset").addEventListener("click", () => { restoreHistory(); attempt(rank); });
byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const title = byId("title").value.trim(), scenario = byId("where").value;
  if (!title || !state.person) return;
  edit(() => {
    const part = state.history.find((one) => one.scenario === scenario);
    if (part) part.titles.push(title);
    else state.history.push({ scenario, titles: [title] });
  });
  byId("title").value = "";
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value;
  attempt(start);
});
attempt(start);
