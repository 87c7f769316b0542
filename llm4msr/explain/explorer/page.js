// Every text of data or LLM goes onto the page as text: through `textContent`, never as markup.
const SHOWN = 20, UNFOLDED = 12, TITLE_LENGTH = 120, PAUSE_MS = 150;
const byId = (id) => document.getElementById(id);
const state = { token: "", person: null, history: null, edited: false, asked: {}, places: {} };

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

/** The answer, or null if something else was asked for the same place meanwhile. */
async function latest(place, path, body) {
  const number = state.asked[place] = (state.asked[place] ?? 0) + 1;
  const answer = await request(path, body);
  return number === state.asked[place] ? answer : null;
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

const RIVALS = { plain: "The plain model", bare: "This model without knowledge" };

async function start() {
  const run = state.run = await request("run");
  byId("name").textContent = run.name;
  for (const id of ["scenario", "where"]) byId(id).replaceChildren(...run.scenarios.map((scenario) => newElement("option", short(scenario), { value: scenario })));
  byId("rival").replaceChildren(...run.rivals.map((rival) => newElement("option", RIVALS[rival], { value: rival })));
  for (const level of ["user", "scenario"]) byId(`${level}-level`).hidden = !run.levels.includes(level);
  byId("levels").hidden = !run.levels.length;
  byId("add").hidden = byId("reset").hidden = !run.editable;
  byId("edit-note").textContent = run.history_note;
  byId("told").hidden = !run.takes_events;
  byId("token-form").hidden = true;
  nameRival();
  await search();
}

function nameRival() {
  const name = RIVALS[byId("rival").value];
  byId("rival-name").textContent = name;
  const [without, with_] = byId("toggle").children;
  without.textContent = name;
  with_.textContent = "This model";
}

async function search() {
  const users = await latest("found", `users?begins=${encodeURIComponent(byId("search").value)}`);
  if (!users) return;
  byId("found").replaceChildren(...users.map((user) => {
    const row = newElement("li");
    const button = newElement("button", "", { type: "button", "aria-pressed": String(user.user_id === state.person?.user_id) });
    button.append(newElement("span", user.known ? "● " : "○ ", { "aria-hidden": "true" }), newElement("bdi", short(user.user_id)));
    if (!user.known) button.append(newElement("span", ", not known to the model", { class: "sr" }));
    button.title = `${user.rows} rows, most in ${short(user.main)}${user.known ? "" : ", not known to the model"}`;
    button.dataset.user = user.user_id;
    button.addEventListener("click", () => attempt(() => choose(user.user_id)));
    row.append(button);
    return row;
  }));
  if (!users.length) byId("found").append(newElement("li", "Nobody's id begins so."));
}

async function complete() {
  const titles = await latest("titles", `titles?part=${encodeURIComponent(byId("title").value)}`);
  if (!titles) return;
  byId("titles").replaceChildren(...titles.map((title) => newElement("option", "", { value: title })));
}

async function choose(user) {
  const person = await latest("person", `user?user_id=${encodeURIComponent(user)}`);
  if (!person) return;
  state.person = person;
  byId("scenario").value = byId("where").value = state.person.scenario;
  restoreHistory();
  for (const button of byId("found").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.user === user));
  showEvents();
  await rank();
}

/** What was before the test rows of another scenario may be another history. */
async function changeScenario() {
  byId("where").value = byId("scenario").value;
  if (!state.person) return;
  if (!state.edited) {
    const scenario = encodeURIComponent(byId("scenario").value);
    const person = await latest("person", `user?user_id=${encodeURIComponent(state.person.user_id)}&scenario=${scenario}`);
    if (!person) return;
    state.person = person;
    restoreHistory();
  }
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
    const rows = part.titles.map((title, place) => titleRow(part, title, place));
    const read = state.run.titles_read || UNFOLDED;
    const early = rows.splice(0, Math.max(rows.length - read, 0));
    parts.push(newElement("h3", short(part.scenario || "unknown scenario")));
    if (early.length) parts.push(fold(early, `${early.length} earlier, ${state.run.titles_read ? "which the LLM does not read" : "which count too"}`));
    parts.push(list(rows));
  }
  byId("history").replaceChildren(...(parts.length ? parts : [newElement("p", "Nothing liked before what is held out.", { class: "note" })]));
}

function titleRow(part, title, place) {
  const row = newElement("li");
  row.append(newElement("bdi", short(title)));
  if (state.run.editable) row.append(smallButton("Take out", title, () => edit(() => part.titles.splice(place, 1))));
  return row;
}

function smallButton(text, title, action) {
  const button = newElement("button", text, { type: "button", "aria-label": `${text} ${short(title)}` });
  button.addEventListener("click", action);
  return button;
}

function list(rows) {
  const element = newElement("ul", "", { class: "chips" });
  element.append(...rows);
  return element;
}

function fold(rows, text) {
  const details = newElement("details", "", { class: "fold" });
  details.append(newElement("summary", text), list(rows));
  return details;
}

function showEvents() {
  const { events } = state.person;
  const none = events ? "None." : "The newest events could not be read: the endpoint's log does not answer. Choose the user again.";
  const rows = (events ?? []).map((event) => {
    const row = newElement("li"), when = new Date(1000 * event.time).toISOString().slice(0, 16).replace("T", " ");
    row.append(newElement("bdi", short(event.title)), newElement("span", `${event.liked ? "liked" : "not liked"}, ${short(event.scenario)}, ${when} UTC`, { class: "note" }));
    if (state.run.editable && event.liked) row.append(smallButton("Add", event.title, () => add(event.title, event.scenario)));
    return row;
  });
  byId("events").replaceChildren(...(rows.length ? rows : [newElement("li", none, { class: "note" })]));
}

function showKnowledge(prompt) {
  const { interests, answer, known } = state.person;
  const parts = Object.entries(interests).map(([scenario, words]) => newElement("p", `${short(scenario)}: ${words.map(short).join("; ")}`));
  if (!parts.length && answer) parts.push(newElement("blockquote", answer, { dir: "auto" }));
  if (!parts.length) parts.push(newElement("p", known ? "A vector; no text was asked for (extract.answers = \"all\" asks one for each user)." : "Nothing: this user has no knowledge, so the model uses its learned default.", { class: "note" }));
  if (state.edited) parts.unshift(newElement("p", "The texts below are of the true history.", { class: "note" }));
  byId("llm").hidden = !state.run.titles_read;
  byId("knowledge").replaceChildren(...parts);
  byId("prompt").textContent = prompt;
}

function edit(change) {
  change();
  state.edited = true;
  showHistory();
  attempt(rank);
}

function add(title, scenario) {
  edit(() => {
    const part = state.history.find((one) => one.scenario === scenario);
    if (part) part.titles.push(title);
    else state.history.push({ scenario, titles: [title] });
  });
}

async function rank() {
  if (!state.person) return;
  const begun = performance.now(), reads = state.run.titles_read;
  byId("status").textContent = state.edited && reads ? "The LLM reads the new history …" : "Ranking …";
  const ranking = await latest("ranking", "rank", {
    user_id: state.person.user_id,
    scenario: byId("scenario").value,
    user_strength: Number(byId("user-strength").value),
    scenario_strength: Number(byId("scenario-strength").value),
    history: state.edited ? state.history : null,
    rival: byId("rival").value,
  });
  if (!ranking) return;
  const before = [...ranking.lines].sort((a, b) => a.rank_without - b.rank_without);
  byId("without").replaceChildren(...shown(before, (line) => line.rank_without).map((line) => row(line, line.rank_without, line.score_without)));
  byId("with").replaceChildren(...shown(ranking.lines, (line) => line.rank_with).map((line) => ownRow(line)));
  state.places = Object.fromEntries(ranking.lines.map((line) => [line.title, line.rank_with]));
  if (state.edited) showKnowledge(ranking.prompt);
  const own = reads ? "the user's own vector" : "the user's own history", edited = reads ? "the vector of the edited history" : "the edited history";
  const whose = { own, edited, none: "no knowledge of this user" }[ranking.knowledge];
  byId("status").textContent = `${ranking.lines.length} candidates ranked with ${whose} in ${Math.round(performance.now() - begun)} ms.`;
  byId("legend").textContent = "A score is the probability that the model gives. “Held out: liked” is what the user took afterwards, in the test rows; both rankings are from before that."
    + (state.run.calibrated ? " The endpoint calibrates its scores (export.calibration): they differ from these, in the same order." : "")
    + (ranking.nearness ? ` Below a title: the liked items that the match finds nearest to it, by ${ranking.nearness}.` : "");
}

/** The top, and what was held out and liked below it. */
function shown(lines, place) {
  return lines.filter((line) => place(line) <= SHOWN || line.held_out === "liked");
}

function row(line, place, score) {
  const item = newElement("li", "", { class: [line.held_out === "liked" ? "held" : "", place > SHOWN ? "below" : ""].join(" ").trim() });
  const title = newElement("span", "", { class: "title" });
  title.append(newElement("bdi", line.title));
  if (line.held_out) title.append(newElement("span", line.held_out === "liked" ? "held out: liked" : "held out as a negative", { class: `tag ${line.held_out}` }));
  item.append(newElement("span", String(place), { class: "place" }), title, newElement("span", score.toFixed(3), { class: "score" }));
  return item;
}

function ownRow(line) {
  const item = row(line, line.rank_with, line.score_with), last = state.places[line.title];
  if (line.nearest.length) {
    const near = newElement("span", "near ", { class: "near" });
    line.nearest.forEach((one, place) => near.append(place ? "; " : "", newElement("bdi", one.title), ` ${one.near.toFixed(2)}`));
    item.querySelector(".title").append(near);
  }
  const places = line.rank_without - line.rank_with;
  const words = places > 0 ? ["up", `▲ ${places}`] : places < 0 ? ["down", `▼ ${-places}`] : ["", "·"];
  const move = newElement("span", words[1], { class: `move ${words[0]}`.trim() });
  move.append(newElement("span", places ? ` places ${words[0]}` : " same place", { class: "sr" }));
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
byId("title").addEventListener("input", debounce(complete));
byId("scenario").addEventListener("change", () => attempt(changeScenario));
byId("rival").addEventListener("change", () => { nameRival(); attempt(rank); });
for (const button of byId("toggle").children) button.addEventListener("click", () => {
  byId("rankings").dataset.shown = button.dataset.list;
  for (const one of byId("toggle").children) one.setAttribute("aria-pressed", String(one === button));
});
byId("reset").addEventListener("click", () => { restoreHistory(); attempt(rank); });
byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const title = byId("title").value.trim();
  if (!title || !state.person) return;
  add(title, byId("where").value);
  byId("title").value = "";
});
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value;
  attempt(start);
});
attempt(start);
