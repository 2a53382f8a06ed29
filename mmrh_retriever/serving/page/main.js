/** The page: files, a question, the pages that answer it, and where on them. */

import { readAddress, writeAddress } from "./address.js";
import { citation, copyText, percent } from "./citation.js";
import { Details } from "./details.js";
import { byId, count, say } from "./elements.js";
import { Files } from "./files.js";
import { forgetPictures } from "./pictures.js";
import { Ranks } from "./ranks.js";
import { readAhead } from "./reading.js";
import { apiKey, isReady, keepApiKey, model, rank } from "./server.js";
import { Viewer } from "./viewer.js";

const BEST = 20; // pages shown
const REGIONS = 5; // boxes per page
const DOUBTFUL = 0.3; // if no page is this probable, the page says so
const SLOW = 3000; // milliseconds after which the seconds are counted

const files = new Files({ changed: filesChanged, refused });
const ranks = new Ranks({ selected: showPage });
const viewer = new Viewer({ boxChosen: chooseBox, refused });
const details = new Details({ boxChosen: chooseBox, copied: (box) => copy(box) });
const question = byId("question");

let asking = null; // AbortController of the question on its way
let answered = null; // { question, ids } of the ranking that is shown
let box = 0;
let loaded = null; // promise of the model as it is once it is loaded

/** Read the server's files, and ask what the page's address says. */
async function start() {
  const wanted = readAddress();
  question.value = wanted.question;
  fitQuestion();
  try {
    await files.load(wanted.files);
    byId("forget").hidden = apiKey() === null;
    if (!byId("key-form").hidden) {
      byId("key-form").hidden = true;
      question.focus();
    }
    const loading = whenLoaded();
    if (wanted.question && files.ids.length) return await ask();
    clearAnswers();
    await loading;
  } catch (error) {
    refused(error);
  }
}

/** The model as it is once it is loaded. */
function whenLoaded() {
  loaded ??= loadedModel().catch((error) => {
    loaded = null; // to be asked again
    throw error;
  });
  return loaded;
}

async function loadedModel() {
  const { name } = await model();
  if (!(await isReady())) {
    byId("model").textContent = `Model: ${name}, loading`;
    say("The model is being loaded.");
    while (!(await isReady())) await new Promise((later) => setTimeout(later, 1000));
  }
  byId("model").textContent = `Model: ${name}`;
  return model();
}

async function ask({ focus = false } = {}) {
  const asked = question.value.trim();
  const ids = files.ids;
  if (!ids.length) return missing("Choose a file first.", byId("choose"));
  if (!asked) return missing("Write a question first.", question);
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  problem("");
  const { clock, doing, part } = showWaiting();
  try {
    doing("Waiting for the model");
    const { readsAhead } = await Promise.race([whenLoaded(), cancelled(mine.signal)]);
    if (readsAhead) {
      const progress = (done, all) => {
        doing(`Reading new pages, ${done} of ${all}`);
        part(done / all);
      };
      await readAhead(ids.map((id) => files.known.get(id)), { signal: mine.signal, progress });
    }
    doing(`Ranking ${count(files.pages, "page")}`);
    part(null);
    const found = await rank(asked, ids, { best: BEST, regions: REGIONS, signal: mine.signal });
    writeAddress(asked, ids, { asked: focus });
    answered = { question: asked, ids, ...found };
    showAnswers(focus);
  } catch (error) {
    if (!mine.signal.aborted) refused(error);
  } finally {
    clearInterval(clock);
    if (asking === mine) {
      asking = null;
      byId("waiting").hidden = true;
      byId("work").removeAttribute("aria-busy");
    }
  }
}

/** A promise that fails once a signal says so. */
function cancelled(signal) {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}

function showAnswers(focus) {
  const { results, pages } = answered;
  document.title = `${answered.question} \u2013 mmrh`;
  byId("empty").hidden = true;
  byId("answers").hidden = false;
  const probable = results.map((result) => result.probability).filter((value) => value !== undefined);
  const highest = Math.max(...probable);
  const doubt = probable.length > 0 && highest < DOUBTFUL;
  byId("doubt").hidden = !doubt;
  byId("doubt").textContent = doubt
    ? `No page is probably evidence: the highest probability is ${percent(highest)}. The pages are ranked all the same.`
    : "";
  ranks.show(results, pages);
  if (focus) ranks.focus();
  const [best] = results;
  say(`${count(pages, "page")} ranked. First: ${best.name}, page ${best.page}. ${byId("doubt").textContent}`);
}

function showPage(index) {
  const { results, question: asked } = answered;
  const result = results[index];
  box = 0;
  byId("copied").textContent = "";
  byId("place").textContent = `${index + 1} / ${results.length}`;
  byId("back").setAttribute("aria-disabled", String(index === 0));
  byId("on").setAttribute("aria-disabled", String(index === results.length - 1));
  details.show(result, results, files.known.get(result.file)?.page_count);
  viewer.show(result, asked);
}

function chooseBox(index) {
  box = index;
  viewer.choose(index);
  details.choose(index);
}

async function copy(index) {
  const result = answered.results[ranks.index];
  const text = citation(result, result.regions?.[index], files.known.get(result.file)?.kind);
  try {
    await copyText(text);
    say(`Copied: ${text}`);
    byId("copied").textContent = `Copied: ${text}`;
  } catch {
    problem(`The browser does not let this page copy. The citation is: ${text}`);
  }
}

function filesChanged(removed) {
  writeAddress(question.value.trim(), files.ids);
  if (removed && answered?.ids.includes(removed)) clearAnswers();
}

function clearAnswers() {
  answered = null;
  document.title = "mmrh";
  byId("answers").hidden = true;
  byId("doubt").hidden = true;
  byId("empty").hidden = false;
}

/** Show what is being done, and for how long; gives the clock, and what changes the text and the part that is done. */
function showWaiting() {
  const began = Date.now();
  let text = "";
  const show = () => {
    const passed = Date.now() - began;
    const seconds = passed < SLOW ? "" : `, ${Math.round(passed / 1000)} s. Later questions are quick`;
    byId("waiting-text").textContent = `${text}${seconds}\u2026`;
  };
  const doing = (said) => {
    if (text && text.split(",")[0] !== said.split(",")[0]) say(`${said}.`);
    text = said;
    show();
  };
  const part = (done) => {
    byId("waiting-part").hidden = done === null;
    byId("waiting-part").value = done ?? 0;
  };
  part(null);
  byId("waiting").hidden = false;
  byId("work").setAttribute("aria-busy", "true");
  return { clock: setInterval(show, 500), doing, part };
}

function refused(error) {
  if (error.status === 401) askForKey(error);
  else problem(error.message);
}

function askForKey(error) {
  const wrong = apiKey() !== null;
  byId("key-problem").textContent = wrong ? error.message : "";
  byId("key-form").hidden = false;
  byId("key").focus();
  if (!wrong) say("This server asks for an API key.");
}

function missing(text, where) {
  problem(text);
  where.focus();
}

function problem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight + 2, 200)}px`;
}

byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ focus: true });
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask-form").requestSubmit();
});
question.addEventListener("input", fitQuestion);
byId("cancel").addEventListener("click", () => {
  asking?.abort();
  say("Cancelled.");
  question.focus();
});
byId("back").addEventListener("click", () => ranks.step(-1));
byId("on").addEventListener("click", () => ranks.step(1));
byId("copy").addEventListener("click", () => copy(box));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepApiKey(byId("key").value.trim());
  byId("key").value = "";
  problem("");
  start();
});
byId("forget").addEventListener("click", () => {
  keepApiKey(null);
  forgetPictures();
  location.reload();
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address keeps the question
  question.focus();
});
addEventListener("popstate", start);
start();
